"""Arrow record batches → files and standard output. The one way results leave flowcli."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from flowcli.data import store
from flowcli.data.source import BATCH_ROWS, FORMATS, format_of
from flowcli.data.whole import whole_file, writing
from flowcli.errors import DataError, UsageError
from flowcli.places import is_object

STDOUT = "-"


class Sink(Protocol):
    """Takes batches of one schema."""

    def write(self, batch: pa.RecordBatch, /) -> None:
        """Append a batch."""


def output_format(output: str, format: str | None = None) -> str:
    """The format that an output gets: that of its ending, else ``format``, else CSV for standard output. Raises
    UsageError when there is none."""
    if output == STDOUT:
        return format or "csv"
    return format if format and pathlib.Path(output).suffix.lower() not in FORMATS else format_of(output)


@contextlib.contextmanager
def open_sink(output: str, schema: pa.Schema, format: str | None = None, force: bool = False) -> Iterator[Sink]:
    """A sink for ``schema`` to a file, which appears whole when the block ends well; to a pipe or a device; or to
    ``-``, standard output. A link stays, and what it points to is written.

    Raises UsageError when the file exists (without ``force``) or the terminal would be sent binary, DataError when it
    cannot be written.
    """
    kind = output_format(output, format)
    if output == STDOUT:
        if sys.stdout is None:
            raise DataError("standard output is closed.")
        if kind in ("parquet", "arrow") and sys.stdout.isatty():
            raise UsageError(f"{kind} is binary and standard output is a terminal; give a file with -o or a pipe.")
        with _writer(kind, sys.stdout.buffer, schema) as sink:
            yield sink
        sys.stdout.buffer.flush()
        return
    check_output(output, format, force)
    path: pathlib.Path | str = output if is_object(output) else _real(pathlib.Path(output))
    if kind == "arrow" and pathlib.Path(output).suffix.lower() in (".arrow", ".feather", ".ipc"):
        kind = "arrow file"
    # What is no file, such as a named pipe, cannot appear whole, and must not be replaced.
    pipe = isinstance(path, pathlib.Path) and path.exists() and not path.is_file()
    place = contextlib.nullcontext(pathlib.Path(path)) if pipe else whole_file(path)
    with place as beside, writing(path), beside.open("wb") as stream:
        with _writer(kind, stream, schema) as sink:
            yield sink
        stream.flush()


def check_output(output: str, format: str | None, force: bool) -> None:
    """Refuse, before any work is done, an output that could not be written at its end. Raises UsageError."""
    output_format(output, format)
    if output == STDOUT:
        return
    path = pathlib.Path(output)
    folder, file = path.is_dir(), path.is_file()
    if is_object(output):
        with writing(output):
            found = store.info(output)
        folder, file = False, found.is_file
    if folder:
        raise UsageError(f"{output}: is a folder; name a file in it.")
    if file and not force:
        raise UsageError(f"{output}: exists already; --force replaces it.")


def _real(path: pathlib.Path) -> pathlib.Path:
    return path.resolve() if path.is_symlink() else path


@contextlib.contextmanager
def _writer(format: str, stream: IO[bytes], schema: pa.Schema) -> Iterator[Sink]:
    with _WRITERS[format](stream, schema) as sink:
        yield sink


@contextlib.contextmanager
def parquet_writer(path: pathlib.Path, schema: pa.Schema) -> Iterator[Sink]:
    """A sink to a parquet file that is written in place. Raises DataError when it cannot be."""
    with writing(path), path.open("wb") as stream:
        with _writer("parquet", stream, schema) as sink:
            yield sink
        stream.flush()


class _JsonLines:
    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self.stream = stream

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, batch: pa.RecordBatch) -> None:
        lines = (
            "{" + ", ".join(f"{_json(key)}: {_json(value)}" for key, value in row.items()) + "}\n"
            for row in batch.to_pylist()
        )
        self.stream.write("".join(lines).encode())


def _json(value: Any) -> str:
    """JSON for one value. It has no infinity: the largest number stands for it, which ranks as it should."""
    if isinstance(value, float) and not math.isfinite(value):
        value = None if math.isnan(value) else math.copysign(sys.float_info.max, value)
    return json.dumps(value, ensure_ascii=False, default=str)


class _Parquet:
    """Row groups of ``BATCH_ROWS`` rows or a little more, however few come at a time."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        # Dictionaries are for what repeats: building one of real numbers takes longer than all other writing. Of rows'
        # numbers the differences are stored, which take next to no space.
        rows = [field.name for field in schema if field.name == "row_id" and pa.types.is_integer(field.type)]
        repeating = [field.name for field in schema if field.name not in rows and not pa.types.is_floating(field.type)]
        self.writer = pa.parquet.ParquetWriter(
            stream, schema, use_dictionary=repeating, column_encoding=dict.fromkeys(rows, "DELTA_BINARY_PACKED")
        )
        self.waiting: list[pa.RecordBatch] = []

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self.writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        if sum(map(len, self.waiting)) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            self.writer.write_table(pa.Table.from_batches(self.waiting))
            self.waiting.clear()


_WRITERS: dict[str, Callable[[Any, pa.Schema], Any]] = {
    "parquet": _Parquet,
    "csv": pa.csv.CSVWriter,
    "tsv": lambda stream, schema: pa.csv.CSVWriter(stream, schema, write_options=pa.csv.WriteOptions(delimiter="\t")),
    "jsonl": _JsonLines,
    "arrow": pa.ipc.new_stream,
    "arrow file": pa.ipc.new_file,
}
