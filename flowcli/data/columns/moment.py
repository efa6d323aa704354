"""Columns of dates and times."""

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

from flowcli.data.columns.column import Cells, Codes, ColumnCodec, Floats, arrow_type, require
from flowcli.data.columns.integer import Counted, Integer
from flowcli.data.status import NONFINITE

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY = 86_400
CYCLES = (DAY, 7 * DAY, 365.2425 * DAY)  # seconds


@dataclass(frozen=True)
class Moment(ColumnCodec):
    """Moments on a lattice: whole numbers of ``step`` units of the type since 1970, which ``count`` models.

    The step is the longest of a day, an hour, a minute, a second, a milli- or a microsecond that all training values
    are multiples of. A row's log_prob is that of the mass of its step.
    """

    step: int
    count: Integer | Counted

    kind: ClassVar[str] = "datetime"

    @staticmethod
    def fit(name: str, values: pa.Array, counting: bool = True, missing: int | None = None) -> Moment:
        """``values`` are timestamps or dates without missing ones; ``missing`` counts those that were. ``counting``
        allows few moments to be counted."""
        second = PER_SECOND[_timestamp(values.type).unit]
        units = _units(values)
        steps = [DAY * second, 3600 * second, 60 * second, *(second // part for part in (1, 10**3, 10**6))]
        step = next((s for s in steps if s >= 1 and not (units % s).any()), 1)
        whole = pa.array(units // step)
        few = counting and Counted.fits(whole)
        count = Counted.fit(name, whole, missing) if few else Integer.fit(name, whole)
        return Moment(name, str(values.type), step, count)

    @property
    def continuous(self) -> bool:  # type: ignore[override]
        return self.count.continuous

    @property
    def points(self) -> int:  # type: ignore[override]
        return self.count.points

    @cached_property
    def cells(self) -> Cells | None:
        return self.count.cells

    @property
    def context_width(self) -> int:
        return 1 + 2 * len(CYCLES)

    def check(self) -> None:
        require(
            pa.types.is_temporal(arrow_type(self.arrow_type)) and 0 < self.step < 2**62,
            "a moment has a type and a step",
        )
        self.count.check()
        require(self.count.name == self.name and self.count.arrow_type == "int64", "its steps are whole numbers")

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        missing, units = np.asarray(values.is_null()), _units(values)
        # In lowest terms a step is ``ours`` of the values' units to ``theirs`` of our own: a step of a millisecond is
        # 1/1000 of a second. What is no whole number of steps, or too far out for the type, cannot be.
        ours, theirs = self.step * PER_SECOND[_timestamp(values.type).unit], PER_SECOND[self._own.unit]
        ours, theirs = ours // math.gcd(ours, theirs), theirs // math.gcd(ours, theirs)
        off = ~missing & ((units % ours != 0) | (np.abs(units // ours) > (2**62) // theirs))
        raw, status = self.count.read(pa.array(np.where(off, 0, units // ours) * theirs, mask=missing))
        return np.where(off[:, None], self.usual(), raw), np.where(off, np.int8(NONFINITE), status)

    @property
    def _own(self) -> pa.DataType:
        """The timestamps of its type."""
        return _timestamp(arrow_type(self.arrow_type))

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.count.encode(raw, u)

    def decode(self, y: Tensor) -> Tensor:
        return self.count.decode(y)

    def write(self, raw: Floats) -> pa.Array:
        type_ = arrow_type(self.arrow_type)
        return pc.multiply(self.count.write(raw), self.step).cast(_timestamp(type_)).cast(type_)

    def usual(self) -> Floats:
        return self.count.usual()

    def embed(self, raw: Tensor) -> Tensor:
        """Context: when, scaled, and sine and cosine of the place in the day, the week and the year."""
        assert isinstance(self.count, Integer)
        second = PER_SECOND[self._own.unit]
        cycles = [cycle * second / self.step for cycle in CYCLES]  # in steps
        # Less the offset's own place in the cycle, lest large numbers of steps lose their fractions.
        steps = [raw[:, 0] + (self.count.offset % cycle) for cycle in cycles]
        parts = [self.count.embed(raw)]
        for step, cycle in zip(steps, cycles, strict=True):
            angle = 2 * math.pi * (step % cycle) / cycle
            parts += [angle.sin()[:, None], angle.cos()[:, None]]
        return torch.cat(parts, 1)


def _timestamp(type_: pa.DataType) -> pa.DataType:
    """The timestamps that hold a type's moments."""
    return type_ if pa.types.is_timestamp(type_) else pa.timestamp("ms" if pa.types.is_date64(type_) else "s")


def _units(values: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Whole units since 1970, 0 where missing."""
    return np.asarray(values.cast(_timestamp(values.type)).cast(pa.int64()).fill_null(0))
