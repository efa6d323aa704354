"""Parquet files in parts: row groups, one after the other while they are small."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from flowcli.data.pictures import Pictures
from flowcli.data.source import BATCH_ROWS, Source, footer, open_parquet, reading, same_columns, spelled, valid
from flowcli.errors import DataError, UsageError
from flowcli.places import is_object
from flowcli.shards.plan import PART_ROWS, Part

READERS = 16  # footers that are waited for at the same time


class Inputs:
    """Files of a table or of pictures. ``described`` is what a plan says of them, ``parts`` are theirs, and ``columns``
    those of the first file's rows, whose types all have in the end."""

    def __init__(self, source: Source, pictures: Pictures | None = None) -> None:
        """Read all footers. Raises UsageError when not all files are parquet, DataError as reading does, and when there
        are no rows."""
        _require_parquet(source)
        with ThreadPoolExecutor(READERS) as pool:
            footers = list(pool.map(footer, source.files))
        self.files, self.pictures = source.files, pictures
        self.described: list[Mapping[str, Any]] = []
        self.parts: list[Part] = []
        row, first = 0, next((meta for meta in footers if meta.num_rows), footers[0]).schema.to_arrow_schema()
        for number, (file, meta) in enumerate(zip(self.files, footers, strict=True)):
            if meta.num_rows:
                same_columns(file, meta.schema.to_arrow_schema(), first)
            described = {"file": spelled(file), "row": row, "rows": meta.num_rows, "sha256": _digest(meta)}
            self.described.append(described)
            for start, stop, rows in _together([meta.row_group(i).num_rows for i in range(meta.num_row_groups)]):
                self.parts.append(Part(len(self.parts), row, rows, number, (start, stop)))
                row += rows
        if not self.parts:
            raise DataError(f"{', '.join(self.files)}: no rows.")
        empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in first], schema=first)
        self.columns = pictures.of_table(self.files[0], empty, 0).schema if pictures else first

    def read(self, part: Part, wanted: Collection[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
        """A part's batches with the name of its file; of a table, the columns that are wanted. Raises DataError when
        the file cannot be read or is another than it was."""
        file, described, rows = self.files[part.file], self.described[part.file], 0
        names = None if self.pictures else [name for name in self.columns.names if name in wanted]
        with reading(file), open_parquet(file, ahead=is_object(file)) as parquet:
            if _digest(parquet.metadata) != described["sha256"]:
                raise DataError(f"{file}: was changed while it was read.")
            for batch in parquet.iter_batches(BATCH_ROWS, [*range(*part.groups)], names):
                batch = valid(batch if names is None else batch.select(names))
                row = part.row - described["row"] + rows
                yield file, self.pictures.of_table(file, batch, row) if self.pictures else batch
                rows += batch.num_rows
        if rows != part.rows:
            raise DataError(f"{file}: cannot be read: it has {rows:,} rows where its footer says {part.rows:,}.")


def _require_parquet(source: Source) -> None:
    for file in source.files:
        if source.once or Source((file,), source.format).formats != {"parquet"}:
            raise UsageError(f"--shard: {file}: is no parquet file, whose footer would say where its rows are.")


def _together(groups: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Row groups of so many rows each, as parts: the first, the one past the last, and how many rows. Neighbours are
    together while they have at most ``PART_ROWS`` rows; one without rows is no part by itself."""
    start, rows = 0, 0
    for i, more in enumerate(groups):
        if rows and rows + more > PART_ROWS:
            yield start, i, rows
            start, rows = i, 0
        rows += more
    if rows:
        yield start, len(groups), rows


def _digest(meta: pa.parquet.FileMetaData) -> str:
    """SHA-256 of a footer, which says where everything is, and how large and between what bounds."""
    written = io.BytesIO()
    meta.write_metadata_file(written)
    return hashlib.sha256(written.getvalue()).hexdigest()
