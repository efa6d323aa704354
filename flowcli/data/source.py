"""Files and standard input → Arrow record batches."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from flowcli.data import store
from flowcli.errors import DataError, UsageError
from flowcli.places import is_object

BATCH_ROWS = 65_536
MAX_COLUMNS = 16_384
MAX_HEADER = 1 << 20  # bytes of a first line
STDIN = "-"

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet",
    ".csv": "csv", ".tsv": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".arrow": "arrow", ".arrows": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip


def format_of(path: str) -> str:
    """The format that a file's ending names. Raises UsageError when it names none."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: cannot tell the format from '{suffix}'. Known endings: {', '.join(FORMATS)}.")
    return FORMATS[suffix]


@dataclass(frozen=True)
class Source:
    """Files of one schema, read one after the other in batches.

    ``format`` is that of every file when the endings do not say. ``types`` are the Arrow types that named columns are
    read as from formats that carry no types of their own (CSV, JSON lines).
    """

    files: tuple[str, ...]
    format: str | None = None
    types: Mapping[str, pa.DataType] | None = None

    @staticmethod
    def of(names: Sequence[str], format: str | None = None, types: Mapping[str, pa.DataType] | None = None) -> Source:
        """A source from paths, objects, globs, folders and ``-``. Raises DataError when a name matches no file."""
        files: list[str] = []
        for name in names:
            if is_object(name):
                with reading(name):
                    objects = store.named(name, FORMATS)
                if not objects:
                    raise DataError(f"{name}: no such object, and none below it that ends in {', '.join(FORMATS)}.")
                files += objects
                continue
            path = pathlib.Path(name)
            if name == STDIN or path.is_file():
                files.append(name)
            elif path.is_dir():
                inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in FORMATS and p.is_file())
                if not inside:
                    raise DataError(f"{name}: no data files in this folder (looked for {', '.join(FORMATS)}).")
                files += inside
            else:
                found = sorted(glob.glob(name, recursive=True))
                if not found:
                    raise DataError(f"{name}: no such file.")
                files += found
        if files.count(STDIN) > 1:
            raise UsageError("standard input (-) can be read only once.")
        return Source(tuple(files), format, types)

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Each batch with the name of its file. Raises DataError naming the file that cannot be read, or whose
        columns are not those of the first."""
        if len(self.files) > 1:
            self.schemas()  # before a row is given out, so that a wrong file cannot end a job half-way
        first: pa.Schema | None = None
        for file in self.files:
            for batch in self._read(file):
                first = first or batch.schema
                same_columns(file, batch.schema, first)
                yield file, batch

    def schemas(self) -> list[pa.Schema]:
        """Those of the files that can be read more than once, each as its first rows have it."""
        schemas: list[pa.Schema] = []
        for file in self.files:
            for batch in self._read(file) if _rereadable(file) else ():
                schemas.append(batch.schema)
                same_columns(file, batch.schema, schemas[0])
                break
        return schemas

    @property
    def once(self) -> bool:
        """Whether some of it can be read only once: standard input and other pipes."""
        return not all(map(_rereadable, self.files))

    def schema(self) -> pa.Schema:
        """The columns of the files that can be read more than once, each of the widest type that the first rows of one
        of them ask for. Raises DataError as :meth:`batches` does, and when the types do not go together."""
        try:
            whole = pa.unify_schemas([pa.schema([]), *self.schemas()], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{', '.join(self.files)}: the files do not fit together: {first_line(error)}") from None
        # A text file's column that begins with nothing is text until someone knows better.
        return pa.schema([(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in whole])

    @property
    def bytes(self) -> int:
        """About how many the rows take as doubles in memory; nothing for standard input, which nobody knows."""
        total = 0
        for file in self.files:
            if file != STDIN and self._format(file) == "parquet":
                meta = footer(file)
                total += 8 * meta.num_rows * meta.num_columns
            elif file != STDIN:
                with reading(file):
                    total += store.info(file).size if is_object(file) else pathlib.Path(file).stat().st_size
        return total

    def _read(self, file: str) -> Iterator[pa.RecordBatch]:
        with reading(file):
            yield from _READERS[self._format(file)](file, self.types or {})

    def table(self) -> pa.Table:
        """Everything at once. Raises DataError as :meth:`batches` does, and when there are no rows."""
        parts: list[pa.Table] = []
        for file in self.files:
            format = self._format(file)
            with reading(file):
                if format in ("csv", "tsv"):
                    # Reading at once lets types settle over the whole file, not only its first block.
                    with _open(file) as raw:
                        _, stream = _header(raw, format)
                        part = pa.csv.read_csv(stream, **_csv_options(format, self.types or {}))
                else:
                    batches = list(_READERS[format](file, self.types or {}))
                    if not batches:
                        continue
                    part = pa.Table.from_batches(batches)
                parts.append(part)
                same_columns(file, part.schema, parts[0].schema)
        if not parts:
            raise DataError(f"{', '.join(self.files)}: no rows.")
        try:
            table = pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{', '.join(self.files)}: the files do not fit together: {first_line(error)}") from None
        if table.num_rows == 0:
            raise DataError(f"{', '.join(self.files)}: no rows.")
        return table

    @property
    def formats(self) -> set[str]:
        """Those of its files."""
        return {self._format(file) for file in self.files}

    def _format(self, file: str) -> str:
        if file == STDIN:
            return self.format or "csv"
        return self.format if self.format and pathlib.Path(file).suffix.lower() not in FORMATS else format_of(file)


def _rereadable(file: str) -> bool:
    return is_object(file) or (file != STDIN and pathlib.Path(file).is_file())


def footer(file: str) -> pa.parquet.FileMetaData:
    """What a parquet file says of itself. Raises DataError."""
    with reading(file), open_parquet(file) as parquet:
        return parquet.metadata


def open_parquet(
    file: str | pa.NativeFile, meta: pa.parquet.FileMetaData | None = None, ahead: bool = False
) -> pa.parquet.ParquetFile:
    """A parquet file, whose footer may be known. ``ahead`` asks for all columns of a row group at the same time, which
    is for stores, and keeps all that was read until the file is closed. Raises OSError or ArrowException."""
    source = store.open_object(file) if is_object(file) else file
    return pa.parquet.ParquetFile(source, metadata=meta, pre_buffer=ahead)


class reading:
    """Turns what reading a file can raise into one DataError that names it."""

    def __init__(self, file: str) -> None:
        self.file = "standard input" if file == STDIN else file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{self.file}: no such file.") from None
        if isinstance(error, MemoryError):  # which a damaged file may ask for, by the petabyte
            raise DataError(f"{self.file}: cannot be read: it takes more memory than there is.") from None
        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError) and not isinstance(
            error, BrokenPipeError
        ):
            raise DataError(f"{self.file}: cannot be read: {first_line(error)}") from None


def spelled(file: str) -> str:
    """A file's name as text that can be written: bytes in it that are no UTF-8 become a mark."""
    return os.fsencode(file).decode(errors="replace")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, as the end of a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".") + "."


def same_columns(file: str, schema: pa.Schema, first: pa.Schema) -> None:
    """Raises DataError when a file's columns are too many, twice there, or not those of the first."""
    if len(schema.names) > MAX_COLUMNS:
        raise DataError(f"{file}: has {len(schema.names):,} columns; {MAX_COLUMNS:,} is the most.")
    duplicated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if duplicated:
        raise DataError(f"{file}: two columns are called '{duplicated[0]}'.")
    missing, extra = sorted(set(first.names) - set(schema.names)), sorted(set(schema.names) - set(first.names))
    if missing:
        raise DataError(f"{file}: has no column '{missing[0]}', which the file before it has.")
    if extra:
        raise DataError(f"{file}: has a column '{extra[0]}', which the file before it has not.")


def _stdin() -> IO[bytes]:
    if sys.stdin is None:
        raise DataError("standard input is closed.")
    return sys.stdin.buffer


@contextlib.contextmanager
def _open(file: str) -> Iterator[IO[bytes]]:
    if file == STDIN:
        yield _stdin()
        return
    with store.open_stream(file) if is_object(file) else open(file, "rb", buffering=1 << 16) as stream:
        yield stream


def _csv_options(format: str, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    return {
        "parse_options": pa.csv.ParseOptions(delimiter="\t" if format == "tsv" else ",", newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(column_types=dict(types), strings_can_be_null=True),
        "read_options": pa.csv.ReadOptions(block_size=4 << 20),
    }


class _Begun(io.RawIOBase):
    """A stream of which the beginning, ``head``, was read already and is read once more."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self.head, self.stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.head:
            return int(self.stream.readinto1(buffer))  # type: ignore[attr-defined]
        n = min(len(buffer), len(self.head))
        buffer[:n], self.head = self.head[:n], self.head[n:]
        return n


def _again(head: bytes, stream: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Begun(head, stream), 1 << 16)


def _header(stream: IO[bytes], format: str) -> tuple[list[str], IO[bytes]]:
    """The column names on the first line of a stream, and the stream from its beginning; no names where that line
    cannot be read alone. Raises ArrowInvalid for more columns than a table can sensibly have."""
    line = stream.readline(MAX_HEADER)
    if len(line) == MAX_HEADER or line.count(b"\t" if format == "tsv" else b",") >= MAX_COLUMNS:
        raise pa.ArrowInvalid(f"it has more than {MAX_COLUMNS:,} columns, or a first line of more than a megabyte")
    try:
        names = list(pa.csv.read_csv(io.BytesIO(line.rstrip(b"\r\n") + b"\n"), **_csv_options(format, {})).column_names)
    except pa.ArrowInvalid:
        names = []
    return names, _again(line, stream)


def _read_csv(format: str) -> Callable[[str, Mapping[str, pa.DataType]], Iterator[pa.RecordBatch]]:
    def read(file: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with _open(file) as raw:
            names, stream = _header(raw, format)
            # Columns without a type of their own stay the text they are: guessed from one block, they could break
            # in a later one, and leading zeros would be lost.
            text = {name: pa.string() for name in names} if types else {}
            with pa.csv.open_csv(stream, **_csv_options(format, text | dict(types))) as reader:
                yield from map(valid, reader)

    return read


@contextlib.contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """All of a stream in a temporary file: some formats have their index at the end."""
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stream, spool)
        spool.seek(0)
        yield spool


def _read_jsonl(file: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    with _open(file) as raw:
        head = raw.read(1 << 16) + raw.readline()
        # A column that none of the first lines has is not read as one of nulls: the codec must find it missing.
        names = {name for line in head.splitlines() if line.strip() for name in _keys(line)}
        known = pa.schema([(name, type_) for name, type_ in types.items() if name in names])
        options = pa.json.ParseOptions(explicit_schema=known if len(known) else None, unexpected_field_behavior="infer")
        blocks = pa.json.ReadOptions(block_size=4 << 20)
        with pa.json.open_json(_again(head, raw), blocks, options) as reader:
            yield from map(valid, reader)


def _keys(line: bytes) -> list[str]:
    """The keys of a line's object. Raises ArrowInvalid when it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"'{line[:40].decode(errors='replace')}' is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise pa.ArrowInvalid(f"'{line[:40].decode(errors='replace')}' is not a JSON object")
    return list(row)


def _read_arrow(file: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    with _open(file) as stream:
        if stream.peek(6)[:6] == b"ARROW1":  # type: ignore[attr-defined]
            seekable = _spooled(stream) if file == STDIN else contextlib.nullcontext(stream)
            with seekable as whole, pa.ipc.open_file(whole) as reader:
                for i in range(reader.num_record_batches):
                    yield valid(reader.get_batch(i))
        else:
            with pa.ipc.open_stream(stream) as reader:
                yield from map(valid, reader)


def valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose offsets and lengths fit together, and whose text is text: Arrow reads what a damaged file says, and
    fails or crashes on it later. Raises ArrowInvalid or UnicodeDecodeError."""
    batch.validate(full=True)
    _ = batch.schema.names
    return batch


def _read_parquet(file: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    if file != STDIN:
        with open_parquet(file) as reader:
            yield from map(valid, reader.iter_batches(BATCH_ROWS))
        return
    with _spooled(_stdin()) as spool:
        yield from map(valid, pa.parquet.ParquetFile(spool, pre_buffer=False).iter_batches(BATCH_ROWS))


_READERS: dict[str, Callable[[str, Mapping[str, pa.DataType]], Iterator[pa.RecordBatch]]] = {
    "parquet": _read_parquet,
    "csv": _read_csv("csv"),
    "tsv": _read_csv("tsv"),
    "jsonl": _read_jsonl,
    "arrow": _read_arrow,
}
