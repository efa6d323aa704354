"""Columns with one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    typed,
)
from flowcli.data.status import MISSING, OK, VIOLATED
from flowcli.errors import DataError


@dataclass(frozen=True)
class Constant(ColumnCodec):
    """A column with one value has no density: it stays out of the flow, and a row that differs is the oddest of all."""

    value: str | bool | int | float

    kind: ClassVar[str] = "constant"
    continuous: ClassVar[bool] = False

    @staticmethod
    def fit(name: str, values: pa.Array) -> Constant:
        """Raises DataError for a type that cannot be kept."""
        plain = plain_values(values.slice(0, 1))[0]
        if not isinstance(plain, str | bool | int | float):
            raise DataError(f"column '{name}': holds {values.type}, which cannot be modelled; leave it out.")
        return Constant(name, str(values.type), plain)

    @property
    def context_width(self) -> int:
        return 0

    @property
    def largest(self) -> int:
        return biggest([self.value])

    def check(self) -> None:
        arrow_values([self.value], arrow_type(self.arrow_type))

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        plain = dense(values)
        ours, own = alike(plain, arrow_values([self.value], arrow_type(self.arrow_type)))
        same = np.asarray(pc.equal(ours, own[0]).fill_null(False))
        missing = np.asarray(plain.is_null(nan_is_null=True))
        return np.zeros((len(values), 0)), np.where(missing, MISSING, np.where(same, OK, VIOLATED)).astype(np.int8)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return raw, raw.new_zeros(len(raw))

    def decode(self, y: Tensor) -> Tensor:
        return y

    def write(self, raw: Floats) -> pa.Array:
        type_ = arrow_type(self.arrow_type)
        return typed(arrow_values([self.value] * len(raw), type_), type_)

    def usual(self) -> Floats:
        return np.zeros(0)
