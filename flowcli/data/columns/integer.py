"""Columns of whole numbers: few, each with a probability of its own, or many, spread over the cells between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

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
    arrow_type,
    is_number,
    numbers,
    placed,
    require,
    require_counts,
    robust_scale,
)
from flowcli.data.status import MISSING, NONFINITE, OK
from flowcli.errors import DataError

WITHIN = 12**-0.5  # the standard deviation within a cell
EXACT = 2**53  # up to here a double holds every whole number


@dataclass(frozen=True)
class Integer(ColumnCodec):
    """y = (x − offset + u − centre)/scale: uniform dequantisation (Theis et al. 2016, section 3.1).

    The offset, the least training value, is taken off in whole numbers before anything is rounded to float64;
    ``span`` is how far the greatest is above it.
    """

    offset: int
    span: int
    centre: float
    scale: float

    kind: ClassVar[str] = "integer"
    points: ClassVar[int] = 32  # with which the masses of a two-column table sum to 1 within 0.003

    @staticmethod
    def fit(name: str, values: pa.Array) -> Integer:
        """Values are whole numbers of any Arrow integer or floating type. Raises DataError when they are not."""
        ends = pc.min_max(values).as_py()
        offset = int(ends["min"])
        start = Integer(name, str(values.type), offset, int(ends["max"]) - offset, 0.0, 1.0)
        raw, status = start.read(values)
        if (status != OK).any():
            raise DataError(f"column '{name}': not whole numbers; say `columns: {{{name}: real}}`.")
        centre, scale = robust_scale(raw[:, 0] + 0.5)
        return Integer(name, str(values.type), offset, start.span, centre, max(scale, WITHIN))

    @property
    def largest(self) -> int:
        return max(abs(self.offset), abs(self.offset + self.span))

    def check(self) -> None:
        type_ = arrow_type(self.arrow_type)
        require(is_number(type_) and self.scale > 0, "an integer column holds numbers, and its scale is above 0")
        require(self.span >= 0, "an integer column's span is not below 0")
        pa.scalar(self.offset, type_ if pa.types.is_integer(type_) else pa.float64())
        pa.scalar(self.offset + self.span, type_ if pa.types.is_integer(type_) else pa.float64())

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        if pa.types.is_integer(values.type):
            missing = np.asarray(values.is_null())
            whole = np.asarray(values.fill_null(0))
            wide = whole.astype(np.uint64 if pa.types.is_uint64(values.type) else np.int64)
            # x − offset in two halves of 32 bits: each difference is exact, and nothing wraps round.
            high = (wide >> wide.dtype.type(32)).astype(np.float64) - float(self.offset >> 32)
            low = (wide & wide.dtype.type(0xFFFFFFFF)).astype(np.float64) - float(self.offset & 0xFFFFFFFF)
            raw = high * 2.0**32 + low
            return np.where(missing, self.usual(), raw)[:, None], np.where(missing, MISSING, OK).astype(np.int8)
        x = numbers(values)
        status = _whole(x)
        return np.where(status == OK, x - self.offset, self.usual())[:, None], status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return (raw + u - self.centre) / self.scale, raw.new_full((len(raw),), -math.log(self.scale))

    def decode(self, y: Tensor) -> Tensor:
        """Whole numbers no further out than the training values: those beyond an end are mirrored at it."""
        k = torch.floor(y * self.scale + self.centre).nan_to_num()
        k = torch.where(k < 0, -1 - k, k)
        return torch.where(k > self.span, 2 * self.span + 1 - k, k).clamp(0, self.span)

    def write(self, raw: Floats) -> pa.Array:
        type_, x = arrow_type(self.arrow_type), raw[:, 0]
        if not pa.types.is_integer(type_):
            return pa.array(x + self.offset).cast(type_)
        # Python's integers add exactly; the span's own rounding to a double must not lead out of the type.
        return pa.array([min(int(step), self.span) + self.offset for step in x], type_)

    def usual(self) -> Floats:
        return np.clip(np.floor([self.centre]), 0, self.span)


@dataclass(frozen=True)
class Counted(ColumnCodec):
    """Whole numbers of which there are few: the cells of a discrete number, each seen value's own.

    All others share one more cell, by a fixed law that sums to 1 over them: the gaps between the seen values evenly,
    and on either side the j-th value after the last 1/(j(j+1)). With ``missing``, how often no value was there, that is
    a cell too.
    """

    levels: tuple[int, ...]
    counts: tuple[int, ...]
    missing: int | None = None

    kind: ClassVar[str] = "counted"
    continuous: ClassVar[bool] = False

    MAX_LEVELS: ClassVar[int] = 4000
    EVIDENCE: ClassVar[int] = 20  # rows for each level, at least

    @staticmethod
    def fits(values: pa.Array) -> bool:
        """Whether whole numbers are few enough, and rows enough for each, to be counted."""
        few = min(Counted.MAX_LEVELS, len(values) // Counted.EVIDENCE)
        if pc.count_distinct(values).as_py() > few:
            return False
        return bool(np.abs(numbers(values)).max() < EXACT)

    @staticmethod
    def fit(name: str, values: pa.Array, missing: int | None = None) -> Counted:
        """``values`` are whole and there are none missing among them; ``missing`` counts those that were."""
        x = numbers(values)
        if (_whole(x) != OK).any():
            raise DataError(f"column '{name}': not whole numbers; say `columns: {{{name}: real}}`.")
        levels, counts = np.unique(x, return_counts=True)
        return Counted(name, str(values.type), tuple(map(int, levels)), tuple(counts.tolist()), missing)

    def check(self) -> None:
        require(is_number(arrow_type(self.arrow_type)), "a counted column holds numbers")
        require(
            0 < len(self.levels) == len(self.counts) <= self.MAX_LEVELS, "a count for every level, and not too many"
        )
        require_counts(*self.counts, self.missing or 0)
        pa.array(self.levels).cast(arrow_type(self.arrow_type))
        rise = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(rise and max(map(abs, self.levels)) < EXACT, "levels rise")

    @cached_property
    def cells(self) -> Cells:
        others = [1] if self.missing is None else [1, self.missing + 1]
        smoothed = torch.tensor([*(n + 1 for n in self.counts), *others], dtype=torch.float64)
        levels = torch.tensor(self.levels, dtype=torch.float64)
        scaled = (levels - levels.mean()) / levels.std(correction=0).clamp(min=1e-12)
        return Cells(smoothed / smoothed.sum(), torch.cat([scaled, scaled.new_zeros(len(others))]))

    # Raw numbers: a level's place; len(levels) in a gap and for a missing value one more; the j-th value above the
    # levels j more than that, the j-th below −j.

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        x, k = numbers(values), len(self.levels)
        status = _whole(x)
        x = np.where(status == OK, x, self.levels[0])
        levels = np.array(self.levels, np.float64)
        place = np.minimum(np.searchsorted(levels, x), k - 1)
        raw = np.where(levels[place] == x, place, k).astype(np.float64)
        raw = np.where(x > levels[-1], k + 1 + (x - levels[-1]), np.where(x < levels[0], x - levels[0], raw))
        if self.missing is not None:
            raw, status = np.where(status == MISSING, k + 1, raw), np.where(status == MISSING, np.int8(OK), status)
        return raw[:, None], status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        k, x = len(self.levels), raw[:, 0]
        beyond = torch.where(x < 0, -x, x - (k + 1))
        gaps = self.levels[-1] - self.levels[0] + 1 - k
        log_law = torch.zeros_like(x)
        log_law = torch.where(x == k, -math.log(3 * max(gaps, 1)), log_law)
        side = math.log(3 if gaps else 2)
        log_law = torch.where(beyond > 0, -side - beyond.clamp(min=1).log() - torch.log1p(beyond.clamp(min=1)), log_law)
        return placed(torch.where(beyond > 0, float(k), x)[:, None], u), log_law

    def decode(self, y: Tensor) -> Tensor:
        return y.floor().clamp(0, len(self.levels) + (self.missing is not None))

    def write(self, raw: Floats) -> pa.Array:
        """A value that was never seen is written as the level in the middle."""
        code, k = raw[:, 0].astype(np.int64), len(self.levels)
        values = np.array([*self.levels, self.levels[k // 2], 0])[code]
        return pa.array(values, mask=code == k + 1).cast(arrow_type(self.arrow_type))

    def usual(self) -> Floats:
        return np.array([float(np.argmax(self.counts))])


def _whole(x: Floats) -> Codes:
    """Statuses: are these whole numbers?"""
    with np.errstate(invalid="ignore"):
        fits = np.isfinite(x) & (x == np.floor(x))
    return np.where(np.isnan(x), MISSING, np.where(fits, OK, NONFINITE)).astype(np.int8)
