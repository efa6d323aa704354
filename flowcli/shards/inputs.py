"""Parquet files in parts: row groups, one after the other while they are small."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from flowcli.data.source import BATCH_ROWS, Source, footer, open_parquet, reading, same_columns, spelled, valid
from flowcli.errors import DataError, UsageError
from flowcli.places import is_object
from flowcli.shards.plan import PART_ROWS, Part, Plan

READERS = 16  # footers that are waited for at the same time


def plan_inputs(source: Source) -> tuple[tuple[Mapping[str, Any], ...], tuple[Part, ...], pa.Schema]:
    """The inputs and parts of a plan, and the columns of the first file, whose types all parts will have.

    Raises UsageError when not all files are parquet, DataError as reading does, and when there are no rows.
    """
    _require_parquet(source)
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(footer, source.files))
    inputs: list[Mapping[str, Any]] = []
    parts: list[Part] = []
    row, first = 0, next((meta for meta in footers if meta.num_rows), footers[0]).schema.to_arrow_schema()
    for number, (file, meta) in enumerate(zip(source.files, footers, strict=True)):
        if meta.num_rows:
            same_columns(file, meta.schema.to_arrow_schema(), first)
        inputs.append({"file": spelled(file), "rows": meta.num_rows, "sha256": _digest(meta)})
        for start, stop, rows in _together([meta.row_group(i).num_rows for i in range(meta.num_row_groups)]):
            parts.append(Part(len(parts), row, rows, number, (start, stop)))
            row += rows
    if not parts:
        raise DataError(f"{', '.join(source.files)}: no rows.")
    return tuple(inputs), tuple(parts), first


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


def read_part(source: Source, plan: Plan, part: Part, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """A part's batches with the name of its file. Raises DataError when the file cannot be read or is another than it
    was."""
    file, rows = source.files[part.file], 0
    with reading(file), open_parquet(file, ahead=is_object(file)) as parquet:
        if _digest(parquet.metadata) != plan.inputs[part.file]["sha256"]:
            raise DataError(f"{file}: was changed while it was read.")
        for batch in parquet.iter_batches(BATCH_ROWS, [*range(*part.groups)], columns):
            yield file, valid(batch.select(columns))
            rows += batch.num_rows
    if rows != part.rows:
        raise DataError(f"{file}: cannot be read: it has {rows:,} rows where its footer says {part.rows:,}.")
