"""Columns of levels: text, flags, dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from flowcli.data.columns.column import (
    Cells,
    Codes,
    ColumnCodec,
    Floats,
    alike,
    arrow_type,
    arrow_values,
    biggest,
    dense,
    placed,
    plain_values,
    require,
    require_counts,
)
from flowcli.data.status import MISSING, OK, UNSEEN
from flowcli.errors import DataError


@dataclass(frozen=True)
class Category(ColumnCodec):
    """Levels are the cells of a discrete number. Levels that were never seen share one more cell, as frequent as a
    single row; with ``missing``, how often no level was there, that is a cell too."""

    levels: tuple[Any, ...]
    counts: tuple[int, ...]
    missing: int | None = None

    kind: ClassVar[str] = "category"
    continuous: ClassVar[bool] = False

    MAX_LEVELS: ClassVar[int] = 1000  # unless asked for
    MOST_LEVELS: ClassVar[int] = 4000

    @staticmethod
    def fit(name: str, values: pa.Array, asked: bool, missing: int | None = None) -> Category:
        """Levels in their own order, which for a dictionary column is its dictionary's. Text that is almost all
        different is refused unless ``asked`` for."""
        counted = dense(values).value_counts()
        table = sorted(zip(plain_values(counted.field("values")), counted.field("counts").to_pylist(), strict=True))
        if not all(isinstance(level, str | bool | int | float) for level, _ in table):
            raise DataError(f"column '{name}': holds {values.type}, whose values cannot be levels; leave it out.")
        if pa.types.is_dictionary(values.type):
            place = {level: i for i, level in enumerate(plain_values(values.dictionary))}
            table.sort(key=lambda item: place[item[0]])
        many = len(table) > Category.MAX_LEVELS or len(table) > len(values) / 2 > 10
        if (many and not asked) or len(table) > Category.MOST_LEVELS:
            raise DataError(
                f"column '{name}': {len(table)} different values in {len(values)} rows look like text or an id; "
                f"leave it out with -s 'data.exclude=[{name}]'."
            )
        return Category(name, str(values.type), tuple(k for k, _ in table), tuple(n for _, n in table), missing)

    def check(self) -> None:
        type_ = arrow_type(self.arrow_type)
        require(0 < len(self.levels) == len(self.counts) <= self.MOST_LEVELS, "a count for every level")
        require_counts(*self.counts, self.missing or 0)
        levels = arrow_values(self.levels, type_)
        require(len(levels.unique()) == len(levels) and levels.null_count == 0, "its levels are not different values")

    @property
    def largest(self) -> int:
        return biggest(self.levels)

    @cached_property
    def cells(self) -> Cells:
        others = [1] if self.missing is None else [1, self.missing + 1]
        smoothed = torch.tensor([*(n + 1 for n in self.counts), *others], dtype=torch.float64)
        return Cells(smoothed / smoothed.sum(), None)

    @property
    def context_width(self) -> int:
        return len(self.levels)

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        plain = dense(values)
        codes = pc.index_in(*alike(plain, arrow_values(self.levels, arrow_type(self.arrow_type))))
        missing, unseen = np.asarray(plain.is_null()), np.asarray(codes.is_null())
        raw = np.asarray(codes.fill_null(len(self.levels)), np.float64)
        status = np.where(missing, MISSING, np.where(unseen, UNSEEN, OK)).astype(np.int8)
        if self.missing is not None:
            raw, status = np.where(missing, len(self.levels) + 1, raw), np.where(missing, np.int8(OK), status)
        return raw[:, None], status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return placed(raw, u), raw.new_zeros(len(raw))

    def decode(self, y: Tensor) -> Tensor:
        return y.floor().clamp(0, len(self.levels) + (self.missing is not None))

    def write(self, raw: Floats) -> pa.Array:
        """A level that was never seen is written as the most frequent one."""
        type_, code, k = arrow_type(self.arrow_type), raw[:, 0].astype(np.int64), len(self.levels)
        code = np.where(code == k, int(self.usual()[0]), code)
        codes = pa.array(np.minimum(code, k - 1), mask=code > k)
        if not pa.types.is_dictionary(type_):
            return arrow_values(self.levels, type_).take(codes)
        levels = arrow_values(self.levels, type_)
        return pa.DictionaryArray.from_arrays(codes.cast(type_.index_type), levels, ordered=type_.ordered)

    def usual(self) -> Floats:
        return np.array([float(np.argmax(self.counts))])

    def embed(self, raw: Tensor) -> Tensor:
        """One-hot levels; all zeros for an unseen one."""
        return torch.nn.functional.one_hot(raw[:, 0].long(), len(self.levels) + 1)[:, :-1].double()
