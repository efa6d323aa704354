"""One user's column ↔ some numbers of the flow, with the exact log-determinant. All of it in float64.

The road of a value: ``read`` makes Arrow values ``raw`` numbers (integers less an offset, codes of levels) and says
which rows cannot be used; ``encode`` maps raw numbers to the flow's, with log|dy/dx| in the user's units; ``decode``
and ``write`` go back.

A column has up to two numbers. A *discrete* one is a code and a place in its cell of width one, ``code + u``: the flow
gives the cells their probabilities, wherever in them it looks. A *continuous* one may still depend on ``u``, a place in
(0, 1): that of a whole number in its cell, or of a number that is not there on the whole line. The probability is then
exp(log_prob) averaged over u.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]

STRICT: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # what `plainly` holds fields to
T = TypeVar("T")

LAST_PLACE = 1 - 2.0**-10  # in a cell, so that a code of up to 4096 and its place are told apart in float32


class Cells(NamedTuple):
    """What a discrete number can be: how often each code is, ``(K,)``, summing to 1; and, where codes have an order, a
    number for each, scaled, ``(K,)``."""

    frequencies: Tensor
    values: Tensor | None


@dataclass(frozen=True)
class ColumnCodec(ABC):
    """What all columns share. Subclasses are plain data: ``to_dict`` is all that a model file keeps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    arrow_type: str

    kind: ClassVar[str]
    continuous: ClassVar[bool] = True  # has it a continuous number?
    points: ClassVar[int] = 1  # how many places u its density is averaged over; one, where it does not depend on u

    @cached_property
    def cells(self) -> Cells | None:
        """Those of its discrete number, where it has one."""
        return None

    @property
    def width(self) -> int:
        """How many numbers of the flow's vector it has: the discrete one first."""
        return (self.cells is not None) + self.continuous

    @property
    def context_width(self) -> int:
        """How many numbers the column has as context."""
        return 1

    @property
    def largest(self) -> int:
        """The greatest size of its whole numbers, where it has such."""
        return 0

    @abstractmethod
    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        """Raw numbers ``(n, width)`` and statuses ``(n,)``; a row whose status is not OK or UNSEEN has harmless
        numbers."""

    @abstractmethod
    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The flow's numbers ``(n, width)`` and log|dy/dx| ``(n,)``, float64, for raw numbers and places ``(n,
        width)``."""

    def placeless(self, raw: Tensor) -> Tensor:
        """For which raw numbers ``(n, width)`` it does not matter what u is, ``(n,)``."""
        return torch.full((len(raw),), self.points == 1)

    @abstractmethod
    def decode(self, y: Tensor) -> Tensor:
        """Raw numbers for the flow's numbers, both ``(n, width)``."""

    @abstractmethod
    def write(self, raw: Floats) -> pa.Array:
        """Arrow values for raw numbers ``(n, width)``, in the type the column had."""

    @abstractmethod
    def usual(self) -> Floats:
        """Raw numbers ``(width,)`` of a value in the middle: the most frequent level, about the median."""

    def embed(self, raw: Tensor) -> Tensor:
        """Context ``(n, context_width)``: the middle of each cell for whole numbers."""
        return self.encode(raw, torch.full_like(raw, 0.5))[0]

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError when no fit could have given this."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON that :func:`from_dict` takes."""
        return {"kind": self.kind, **asdict(self)}


def robust_scale(values: Floats) -> tuple[float, float]:
    """Centre and spread of the values between the 0.5 % and the 99.5 % quantile, the others moved to these.

    At least the largest and the smallest value are left out, so one 1e12 does not squash 9,999 others; and unlike an
    interquartile range it does not shrink to nothing on a column that is mostly one value. Spread is at least a
    rounding error of the centre, and never 0.
    """
    low, high = np.quantile(values, 0.005, method="higher"), np.quantile(values, 0.995, method="lower")
    inner = np.clip(values, low, high) if low < high else values
    centre = float(np.mean(inner / 2) * 2)  # halved, so that a sum of 1e308s stays finite
    largest = float(np.max(np.abs(inner - centre))) or 1.0
    spread = largest * float(np.sqrt(np.mean(((inner - centre) / largest) ** 2)))
    return centre, max(spread, abs(centre) * 1e-15, 1e-300)


def placed(code: Tensor, u: Tensor) -> Tensor:
    """Codes and their places in their cells: ``code + u``."""
    return code + u.clamp(0, LAST_PLACE)


def plainly(kind: type[T], fields: Mapping[str, Any]) -> T:
    """A dataclass from its fields as JSON has them. Raises ValueError when one is missing, unknown or of another type,
    or a number is not finite."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(json.dumps(fields))


def require(holds: bool, otherwise: str) -> None:
    """Raises ValueError, unless it holds."""
    if not holds:
        raise ValueError(otherwise)


def require_counts(*counts: int) -> None:
    """Raises ValueError when rows cannot have been counted so."""
    require(min(counts) >= 0 and max(counts) < 2**53, "counts are not below 0, and not beyond all measure")


def is_number(type_: pa.DataType) -> bool:
    """Whether values of this type are integers or floating-point numbers."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def numbers(values: pa.Array) -> Floats:
    """Float64 with NaN for null."""
    return np.array(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def dense(values: pa.Array) -> pa.Array:
    """Without a dictionary."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def alike(values: pa.Array, others: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Two arrays in one type in which they can be compared: their own, where they share it, else doubles."""
    if values.type == others.type:
        return values, others
    return values.cast(pa.float64(), safe=False), others.cast(pa.float64(), safe=False)


def plain_values(values: pa.Array) -> list[Any]:
    """Values as JSON has them: a moment as the integer that Arrow keeps for it."""
    plain = dense(values)
    if pa.types.is_temporal(plain.type):
        plain = plain.cast(pa.int32() if pa.types.is_date32(plain.type) else pa.int64())
    return list(plain.to_pylist())


def arrow_values(plain: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """What :func:`plain_values` was given, in its type."""
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_temporal(type_):
        return pa.array(plain, pa.int32() if pa.types.is_date32(type_) else pa.int64()).cast(type_)
    return pa.array(plain, type_)


def typed(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Plain values in a type that may be a dictionary's."""
    if not pa.types.is_dictionary(type_):
        return values.cast(type_)
    codes = values.cast(type_.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(codes.indices.cast(type_.index_type), codes.dictionary, ordered=type_.ordered)


def biggest(plain: Iterable[Any]) -> int:
    """The greatest size of the whole numbers among plain values."""
    return max((abs(value) for value in plain if type(value) is int), default=0)


def arrow_type(name: str) -> pa.DataType:
    """An Arrow type from its text form: plain names, timestamps with a zone, and dictionaries of plain ones."""
    if name.startswith("dictionary<"):
        parts = dict(part.split("=") for part in name[len("dictionary<") : -1].split(", "))
        return pa.dictionary(arrow_type(parts["indices"]), arrow_type(parts["values"]), parts.get("ordered") == "1")
    if name.startswith("timestamp["):
        unit, _, zone = name[len("timestamp[") : -1].partition(", tz=")
        return pa.timestamp(unit, zone or None)
    short = {"large_string": "large_string", "double": "float64", "float": "float32"}
    return pa.type_for_alias(short.get(name, name.replace("date32[day]", "date32").replace("date64[ms]", "date64")))
