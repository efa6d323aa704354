"""Rows of a file with their scores: where each is, what was kept of it, and how odd it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from flowcli.data.image import COLUMN as IMAGE
from flowcli.data.image import FILE, ImageCodec
from flowcli.data.pictures import holds_images
from flowcli.data.source import spelled
from flowcli.errors import DataError, UsageError
from flowcli.scoring.predict import Predictor
from flowcli.scoring.score import Scorer

PLACE = pa.schema([("row_id", pa.int64()), ("source", pa.string())])
TOGETHER = 4  # batches of the flow's that are read, ranked and put together at once

S = TypeVar("S", bound=Scorer | Predictor)  # what gives a batch its columns


class Piece(NamedTuple):
    """What goes through the flow at once: the number of its first row, its file, and its rows."""

    row: int
    file: str
    batch: pa.RecordBatch


def pieces(
    batches: Iterable[tuple[str, pa.RecordBatch]], size: int, row: int = 0, together: int = 1
) -> Iterator[Piece]:
    """The batches of files in pieces of ``size`` rows and a shorter one at the end of each; ``row`` is the first's.
    Where nothing is missing, which takes long, ``together`` times so many."""
    for file, batch in batches:
        step = size if any(column.null_count for column in batch.columns) else together * size
        for start in range(0, batch.num_rows, step):
            yield Piece(row + start, spelled(file), batch.slice(start, step))
        row += batch.num_rows


@dataclass(frozen=True)
class RowScorer(Generic[S]):
    """Gives a piece its place, the columns to ``keep`` (None: all) and its scores, or predictions. May be called in
    several threads, as the scorer may.

    ``text`` says that the result becomes text, which cannot hold files or arrays.
    """

    scorer: S
    keep: tuple[str, ...] | None = ()
    text: bool = False

    def __call__(self, piece: Piece) -> pa.RecordBatch:
        """One row for each of the piece's, in order. Raises UsageError or DataError for columns that cannot be kept,
        and as the scorer does."""
        row, file, batch = piece
        kept = self.kept(batch.schema)
        place = [
            pa.array(np.arange(row, row + batch.num_rows)),
            batch.column(FILE) if self._pictures else pa.repeat(file, batch.num_rows),
        ]
        scores = self.scorer(batch)
        return pa.RecordBatch.from_arrays(
            [*place, *(batch.column(name) for name in kept.names), *scores.columns],
            names=[*PLACE.names, *kept.names, *scores.schema.names],
        )

    @property
    def together(self) -> int:
        """How many of the flow's batches are worth taking at once: reading has costs of its own for each. One, where
        rows take long."""
        return 1 if isinstance(self.scorer, Scorer) and self.scorer.explain else TOGETHER

    def kept(self, columns: pa.Schema) -> pa.Schema:
        """Those of an input's columns that are kept. Raises as a call does."""
        own = (FILE, IMAGE) if self._pictures else ()
        names = [n for n in columns.names if n not in own] if self.keep is None else list(dict.fromkeys(self.keep))
        there, taken = set(columns.names), {*PLACE.names, *self.scorer.schema.names}
        for name in names:
            if name not in there:
                raise DataError(f"--keep: the data has no column '{name}'.")
            if name in taken:
                raise UsageError(f"--keep: '{name}' is also the name of a column of the result; rename it.")
            if self.text and holds_images(columns.field(name).type):
                raise UsageError(f"--keep: '{name}' holds files or arrays; those go to parquet or Arrow.")
        return pa.schema([columns.field(name) for name in names])

    def schema(self, columns: pa.Schema) -> pa.Schema:
        """The columns of the result for an input's ``columns``. Raises as a call does."""
        return pa.schema([*PLACE, *self.kept(columns), *self.scorer.schema])

    @property
    def _pictures(self) -> bool:
        return isinstance(self.scorer.model.codec, ImageCodec)


def in_one_schema(batches: Iterable[pa.RecordBatch], schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """Batches in one schema, that of the first unless given, with nulls for a column that is not there. Raises
    DataError when a kept column's values do not fit it, or it is new."""
    for batch in batches:
        schema = schema or batch.schema
        extra = sorted(set(batch.schema.names) - set(schema.names))
        if extra:
            raise DataError(f"column '{extra[0]}': is not in the files before; name what to copy with --keep.")
        columns = []
        for field in schema:
            found = field.name in batch.schema.names
            column = batch.column(field.name) if found else pa.nulls(batch.num_rows, field.type)
            try:
                columns.append(column if column.type == field.type else column.cast(field.type))
            except pa.ArrowException:
                raise DataError(f"column '{field.name}': holds {column.type} here and {field.type} before.") from None
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
