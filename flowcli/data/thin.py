"""Rows spread evenly over a stream of them, of which no one knows the length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli.data.kinds import require
from flowcli.errors import DataError


@dataclass
class Thinned:
    """At most ``most`` of the rows that pass, in order and evenly spread, of the columns ``names``.

    It keeps every k-th row, and doubles k as soon as that is more than twice too many: memory is bounded whatever
    passes.
    """

    most: int
    names: Sequence[str]
    what: str = "the data"  # for errors
    _kept: list[pa.Table] = field(default_factory=list)
    _rows: int = 0  # that it keeps
    _seen: int = 0
    _step: int = 1

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, looked at on their way."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at a batch. Raises DataError when it has not the columns, or they do not go with those before."""
        for name in self.names:
            require(batch.schema, name, self.what)
        part = pa.Table.from_batches([batch]).select(self.names)
        self._kept.append(part.take(pa.array(np.arange(-self._seen % self._step, len(part), self._step))))
        self._seen += len(part)
        self._rows += len(self._kept[-1])
        while self._rows > 2 * self.most:
            self._step *= 2
            self._kept = [_at(self._whole(), np.arange(0, self._rows, 2))]
            self._rows = len(self._kept[0])

    def table(self) -> pa.Table:
        """The rows. Raises DataError when there are none."""
        if not self._rows:
            raise DataError(f"{self.what}: no rows.")
        if self._rows <= self.most:
            return self._whole()
        return _at(self._whole(), np.linspace(0, self._rows - 1, self.most).round().astype(np.int64))

    def _whole(self) -> pa.Table:
        try:
            return pa.concat_tables(self._kept, promote_options="permissive").unify_dictionaries()
        except pa.ArrowException as error:
            raise DataError(
                f"{self.what}: the rows do not fit together: {str(error).splitlines()[0].rstrip('.')}."
            ) from None


def _at(table: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    return table.combine_chunks().take(pa.array(places))
