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

from flowcli.data.source import format_of
from flowcli.data.whole import whole_file, writing
from flowcli.errors import DataError, UsageError

STDOUT = "-"


class Sink(Protocol):
    """Takes batches of one schema."""

    def write(self, batch: pa.RecordBatch, /) -> None:
        """Append a batch."""


@contextlib.contextmanager
def open_sink(output: str, schema: pa.Schema, format: str | None = None, force: bool = False) -> Iterator[Sink]:
    """A sink for ``schema`` to a file, which appears whole when the block ends well, or to ``-``, standard output.

    The format follows the file's ending; to a pipe it is CSV unless ``format`` says otherwise. Raises UsageError when
    the file exists (without ``force``) or the terminal would be sent binary, DataError when it cannot be written.
    """
    if output == STDOUT:
        format = format or "csv"
        if sys.stdout is None:
            raise DataError("standard output is closed.")
        if format in ("parquet", "arrow") and sys.stdout.isatty():
            raise UsageError(f"{format} is binary and standard output is a terminal; give a file with -o or a pipe.")
        with _writer(format, sys.stdout.buffer, schema) as sink:
            yield sink
        sys.stdout.buffer.flush()
        return
    check_output(output, format, force)
    path = pathlib.Path(output)
    with whole_file(path) as beside, writing(path), beside.open("wb") as stream:
        kind = format or format_of(output)
        if kind == "arrow" and path.suffix.lower() != ".arrows":
            kind = "arrow file"
        with _writer(kind, stream, schema) as sink:
            yield sink
        stream.flush()


def check_output(output: str, format: str | None, force: bool) -> None:
    """Refuse, before any work is done, an output that could not be written at its end. Raises UsageError."""
    if output == STDOUT:
        return
    path = pathlib.Path(output)
    if not format:
        format_of(output)
    if path.is_dir():
        raise UsageError(f"{output}: is a folder; name a file in it.")
    if path.exists() and not force:
        raise UsageError(f"{output}: exists already; --force replaces it.")


@contextlib.contextmanager
def _writer(format: str, stream: IO[bytes], schema: pa.Schema) -> Iterator[Sink]:
    with _WRITERS[format](stream, schema) as sink:
        yield sink


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


_WRITERS: dict[str, Callable[[Any, pa.Schema], Any]] = {
    "parquet": pa.parquet.ParquetWriter,
    "csv": pa.csv.CSVWriter,
    "tsv": lambda stream, schema: pa.csv.CSVWriter(stream, schema, write_options=pa.csv.WriteOptions(delimiter="\t")),
    "jsonl": _JsonLines,
    "arrow": pa.ipc.new_stream,
    "arrow file": pa.ipc.new_file,
}
