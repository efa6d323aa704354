"""Columns that are told by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.columns.column import (
    Codes,
    ColumnCodec,
    Floats,
    alike,
    arrow_type,
    arrow_values,
    biggest,
    dense,
    plain_values,
    require,
    typed,
)
from flowcli.data.status import MISSING, OK, VIOLATED
from flowcli.errors import DataError


@dataclass(frozen=True)
class Told(ColumnCodec):
    """A column whose value the columns ``by`` tell, as origin and destination tell the distance: given these it is
    constant. It stays out of the flow; a row with another value is the oddest of all, and one whose ``keys`` were never
    seen may have any.

    ``keys`` has the seen values of each of ``by``, a list for each, and ``values`` what goes with them.
    """

    by: tuple[str, ...]
    types: tuple[str, ...]
    keys: tuple[tuple[Any, ...], ...]
    values: tuple[Any, ...]

    kind: ClassVar[str] = "told"
    continuous: ClassVar[bool] = False

    MAX_KEYS: ClassVar[int] = 65_536

    @staticmethod
    def fit(name: str, by: Sequence[str], table: pa.Table) -> Told:
        """Raises DataError when rows with the same ``by`` differ, or there are too many of them to keep."""
        keys = [dense(table.column(key).combine_chunks()) for key in by]
        seen = pa.table(
            {**{f"k{i}": key for i, key in enumerate(keys)}, "v": dense(table.column(name).combine_chunks())}
        )
        found = seen.group_by([f"k{i}" for i in range(len(by))]).aggregate([("v", "count_distinct"), ("v", "min")])
        listed = ", ".join(by)
        several = int(pc.sum(pc.greater(found["v_count_distinct"], 1)).as_py())
        if several:
            raise DataError(f"column '{name}': {several} of {len(found)} values of {listed} go with several of it.")
        if len(found) > Told.MAX_KEYS:
            raise DataError(f"column '{name}': {listed} have {len(found)} values; {Told.MAX_KEYS} is the most.")
        kept = tuple(tuple(plain_values(found[f"k{i}"].combine_chunks())) for i in range(len(by)))
        return Told(
            name, str(table.schema.field(name).type), tuple(by), tuple(str(key.type) for key in keys), kept,
            tuple(plain_values(found["v_min"].combine_chunks())),
        )  # fmt: skip

    @property
    def context_width(self) -> int:
        return 0

    @property
    def largest(self) -> int:
        return biggest(self.values)

    def check(self) -> None:
        require(0 < len(self.by) == len(self.types) == len(self.keys), "as many types and keys as columns that tell it")
        require(all(len(keys) == len(self.values) > 0 for keys in self.keys), "a value for each key")
        arrow_values(self.values, arrow_type(self.arrow_type))
        self._codes([arrow_values(keys, arrow_type(t)) for keys, t in zip(self.keys, self.types, strict=True)])

    def _codes(self, keys: Sequence[pa.Array]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """One number for each seen key, in rising order of the places, and for each of ``keys``; which of these have
        only seen parts."""
        n = len(keys[0])
        seen, asked, known = np.zeros(len(self.values), np.int64), np.zeros(n, np.int64), np.ones(n, bool)
        for kept, type_, key in zip(self.keys, self.types, keys, strict=True):
            parts = arrow_values(kept, arrow_type(type_))
            levels = parts.unique().sort()
            places = pc.index_in(*alike(dense(key), levels))
            seen = seen * len(levels) + np.asarray(pc.index_in(parts, levels))
            asked = asked * len(levels) + np.asarray(places.fill_null(0))
            known = known & np.asarray(places.is_valid())
        return seen, asked, known

    def _found(self, keys: Sequence[pa.Array]) -> tuple[pa.Array, NDArray[np.bool_]]:
        """The values that go with keys, and whether these were seen; with one that was not goes the next one's."""
        seen, asked, known = self._codes(keys)
        order = np.argsort(seen)
        place = np.minimum(np.searchsorted(seen[order], asked), len(seen) - 1)
        known &= seen[order][place] == asked
        return arrow_values(self.values, arrow_type(self.arrow_type)).take(pa.array(order[place])), known

    def read_beside(self, values: pa.Array, keys: Sequence[pa.Array]) -> Codes:
        """Statuses of values beside those of ``by``."""
        told, known = self._found(keys)
        plain = dense(values)
        differs = ~np.asarray(pc.equal(*alike(plain, told)).fill_null(True))
        missing = np.asarray(plain.is_null(nan_is_null=True))
        return np.where(missing, MISSING, np.where(known & differs, VIOLATED, OK)).astype(np.int8)

    def write_beside(self, keys: Sequence[pa.Array]) -> pa.Array:
        """The values that go with those of ``by``."""
        return typed(self._found(keys)[0], arrow_type(self.arrow_type))

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        return np.zeros((len(values), 0)), np.zeros(len(values), np.int8)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return raw, raw.new_zeros(len(raw))

    def decode(self, y: Tensor) -> Tensor:
        return y

    def write(self, raw: Floats) -> pa.Array:
        return pa.nulls(len(raw), arrow_type(self.arrow_type))

    def usual(self) -> Floats:
        return np.zeros(0)
