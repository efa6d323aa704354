"""One user's column ↔ one number of the flow, with the exact log-determinant. All of it in float64.

The road of a value: ``read`` makes Arrow values ``raw`` numbers (integers less an offset, category codes) and says
which rows cannot be used; ``encode`` maps raw numbers to the flow's, with log|dy/dx| in the user's units; ``decode``
and ``write`` go back. Discrete columns spread each value over a cell: ``encode`` takes a place ``u`` in (0, 1) in it,
and exp(log_prob) averaged over u is the value's probability.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.status import MISSING, NONFINITE, OK, UNSEEN, VIOLATED
from flowcli.errors import DataError

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]

STRICT: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # what `plainly` holds fields to
Transform = Literal["none", "log", "asinh", "logit"]
T = TypeVar("T")

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ColumnCodec(ABC):
    """What all columns share. Subclasses are plain data: ``to_dict`` is all that a model file keeps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    arrow_type: str

    kind: ClassVar[str]
    discrete: ClassVar[bool] = False
    width: ClassVar[int] = 1  # numbers in the flow's vector

    @property
    def context_width(self) -> int:
        """How many numbers the column has as context."""
        return 1

    @abstractmethod
    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        """Raw numbers and statuses ``(n,)``; a row whose status is not OK or UNSEEN has a harmless number."""

    @abstractmethod
    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The flow's numbers and log|dy/dx|, both ``(n,)`` float64."""

    @abstractmethod
    def decode(self, y: Tensor) -> Tensor:
        """Raw numbers for the flow's numbers."""

    @abstractmethod
    def write(self, raw: Floats) -> pa.Array:
        """Arrow values for raw numbers, in the type the column had."""

    def embed(self, raw: Tensor) -> Tensor:
        """Context ``(n, context_width)``: the middle of each cell for discrete columns."""
        return self.encode(raw, torch.full_like(raw, 0.5))[0][:, None]

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


@dataclass(frozen=True)
class Real(ColumnCodec):
    """y = (t(x) − centre)/scale with t the identity, log, asinh(x/unit) or logit((x − low)/(high − low))."""

    transform: Transform
    centre: float
    scale: float
    low: float = 0.0
    high: float = 1.0
    unit: float = 1.0

    kind: ClassVar[str] = "real"

    @staticmethod
    def fit(name: str, values: pa.Array, transform: Transform, low: float | None, high: float | None) -> Real:
        """Raises DataError where a value is outside the transform's domain."""
        x = _numbers(values)
        low, high = (0.0 if low is None else low), (1.0 if high is None else high)
        unit = 1.0
        if transform == "asinh":
            nonzero = np.abs(x[x != 0])
            unit = float(np.median(nonzero)) if len(nonzero) else 1.0
        start = Real(name, str(values.type), transform, 0.0, 1.0, low, high, unit)
        bad = int((~start._allowed(x)).sum())
        if bad:
            domain = "above 0" if transform == "log" else f"between {low:g} and {high:g}"
            raise DataError(f"column '{name}': transform {transform} needs values {domain}, and {bad} are not.")
        t, _ = start._transform(torch.from_numpy(x))
        with np.errstate(over="ignore", invalid="ignore"):
            centre, scale = robust_scale(t.numpy())
        if not (np.isfinite(centre) and np.isfinite(scale) and scale > 0):
            raise DataError(f"column '{name}': spreads too far to be scaled; give it transform: asinh.")
        return Real(name, str(values.type), transform, centre, scale, low, high, unit)

    def check(self) -> None:
        _require(is_number(arrow_type(self.arrow_type)), "a real column holds numbers")
        _require(self.scale > 0 and self.unit > 0 and self.low < self.high, "its scale, unit and bounds cannot be")

    def _allowed(self, x: Floats) -> NDArray[np.bool_]:
        allowed = np.isfinite(x)
        if self.transform == "log":
            allowed &= x > 0
        elif self.transform == "logit":
            allowed &= (x > self.low) & (x < self.high)
        return allowed

    def _transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t(x) and log t′(x)."""
        if self.transform == "log":
            return x.log(), -x.log()
        if self.transform == "asinh":
            return torch.asinh(x / self.unit), -torch.hypot(x, torch.full_like(x, self.unit)).log()
        if self.transform == "logit":
            left, right = (x - self.low).log(), (self.high - x).log()
            return left - right, math.log(self.high - self.low) - left - right
        return x, torch.zeros_like(x)

    def _harmless(self) -> float:
        return float(self.decode(torch.zeros(1, dtype=torch.float64)))

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        x = _numbers(values)
        status = np.where(np.isnan(x), MISSING, np.where(self._allowed(x), OK, NONFINITE)).astype(np.int8)
        return np.where(status == OK, x, self._harmless()), status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        t, log_slope = self._transform(raw)
        return (t - self.centre) / self.scale, log_slope - math.log(self.scale)

    def decode(self, y: Tensor) -> Tensor:
        t = y * self.scale + self.centre
        if self.transform == "log":
            return t.exp()
        if self.transform == "asinh":
            return self.unit * torch.sinh(t)
        if self.transform == "logit":
            return self.low + (self.high - self.low) * torch.sigmoid(t)
        return t

    def write(self, raw: Floats) -> pa.Array:
        type_ = arrow_type(self.arrow_type)
        if pa.types.is_integer(type_):
            # Whole numbers again, of the type's range and strictly inside the transform's domain.
            low, high = (float(bound) for bound in _range(type_))
            if self.transform in ("log", "logit"):
                low = max(low, np.floor(self.low if self.transform == "logit" else 0.0) + 1)
            if self.transform == "logit":
                high = min(high, np.ceil(self.high) - 1)
            raw = np.clip(np.rint(raw), low, high)
        return pa.array(raw).cast(type_, safe=False)


@dataclass(frozen=True)
class Integer(ColumnCodec):
    """y = (x − offset + u − centre)/scale: uniform dequantisation (Theis et al. 2016, section 3.1).

    The offset is taken off in whole numbers before anything is rounded to float64.
    """

    offset: int
    centre: float
    scale: float

    kind: ClassVar[str] = "integer"
    discrete: ClassVar[bool] = True

    @staticmethod
    def fit(name: str, values: pa.Array) -> Integer:
        """Values are whole numbers of any Arrow integer or floating type."""
        offset = int(pc.min(values).as_py())
        start = Integer(name, str(values.type), offset, 0.0, 1.0)
        raw, status = start.read(values)
        if (status != OK).any():
            raise DataError(f"column '{name}': not whole numbers; say `columns: {{{name}: real}}`.")
        centre, scale = robust_scale(raw + 0.5)
        return Integer(name, str(values.type), offset, centre, scale)

    def check(self) -> None:
        type_ = arrow_type(self.arrow_type)
        _require(is_number(type_) and self.scale > 0, "an integer column holds numbers, and its scale is above 0")
        pa.scalar(self.offset, type_ if pa.types.is_integer(type_) else pa.float64())

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        if pa.types.is_integer(values.type):
            missing = np.asarray(values.is_null())
            whole = np.asarray(values.fill_null(0))
            wide = whole.astype(np.uint64 if pa.types.is_uint64(values.type) else np.int64)
            # x − offset in two halves of 32 bits: each difference is exact, and nothing wraps round.
            high = (wide >> wide.dtype.type(32)).astype(np.float64) - float(self.offset >> 32)
            low = (wide & wide.dtype.type(0xFFFFFFFF)).astype(np.float64) - float(self.offset & 0xFFFFFFFF)
            raw = high * 2.0**32 + low
            return np.where(missing, 0.0, raw), np.where(missing, MISSING, OK).astype(np.int8)
        x = _numbers(values)
        with np.errstate(invalid="ignore"):
            fits = np.isfinite(x) & (x == np.floor(x))
        status = np.where(np.isnan(x), MISSING, np.where(fits, OK, NONFINITE)).astype(np.int8)
        return np.where(status == OK, x - self.offset, 0.0), status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return (raw + u - self.centre) / self.scale, torch.full_like(raw, -math.log(self.scale))

    def decode(self, y: Tensor) -> Tensor:
        return torch.floor(y * self.scale + self.centre)

    def write(self, raw: Floats) -> pa.Array:
        type_ = arrow_type(self.arrow_type)
        if not pa.types.is_integer(type_):
            return pa.array(raw + self.offset).cast(type_)
        # Python's integers add exactly; the type's own range holds what a wild draw could leave.
        low, high = _range(type_)
        return pa.array([min(max(int(x) + self.offset, low), high) for x in np.nan_to_num(raw)], type_)


@dataclass(frozen=True)
class Category(ColumnCodec):
    """Levels as cells of (0, 1), wide as they are frequent, seen through the Gaussian's quantile function.

    v = edge_k + width_k·u and y = Φ⁻¹(v): a column's marginal is then exactly the standard Gaussian, all of the line
    belongs to some level, and no mass leaks. P(k) = ∫ p(y(u))·width_k/φ(y) du. Counts are smoothed by one each, and
    an unseen level has the last cell, as wide as one row.
    """

    levels: tuple[Any, ...]
    counts: tuple[int, ...]

    kind: ClassVar[str] = "category"
    discrete: ClassVar[bool] = True

    MAX_LEVELS: ClassVar[int] = 1000

    def check(self) -> None:
        type_ = arrow_type(self.arrow_type)
        _require(0 < len(self.levels) == len(self.counts) and min(self.counts) >= 0, "a count for every level")
        levels = pa.array(self.levels, type_.value_type if pa.types.is_dictionary(type_) else type_)
        _require(len(levels.unique()) == len(levels) and levels.null_count == 0, "its levels are not different values")

    @staticmethod
    def fit(name: str, values: pa.Array, asked: bool) -> Category:
        """Levels in their own order, which for a dictionary column is its dictionary's. Text that is almost all
        different is refused unless ``asked`` for."""
        plain = _dense(values)
        table = sorted((item["values"].as_py(), item["counts"].as_py()) for item in plain.drop_null().value_counts())
        if pa.types.is_dictionary(values.type):
            place = {level: i for i, level in enumerate(values.dictionary.to_pylist())}
            table.sort(key=lambda item: place[item[0]])
        if not asked and (len(table) > Category.MAX_LEVELS or len(table) > len(values) / 2 > 10):
            raise DataError(
                f"column '{name}': {len(table)} different values in {len(values)} rows look like text or an id; "
                f"leave it out with -s 'data.exclude=[{name}]'."
            )
        return Category(name, str(values.type), tuple(k for k, _ in table), tuple(n for _, n in table))

    @property
    def context_width(self) -> int:
        return len(self.levels)

    def _cells(self) -> Tensor:
        """Edges ``(levels + 2,)`` of the cells, the unseen level's last."""
        smoothed = torch.tensor([*(n + 1 for n in self.counts), 1], dtype=torch.float64)
        return torch.cat([smoothed.new_zeros(1), smoothed.cumsum(0) / smoothed.sum()])

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        plain = _dense(values)
        codes = pc.index_in(plain, pa.array(self.levels, plain.type))
        missing, unseen = np.asarray(plain.is_null()), np.asarray(codes.is_null())
        raw = np.asarray(codes.fill_null(len(self.levels)), np.float64)
        status = np.where(missing, MISSING, np.where(unseen, UNSEEN, OK)).astype(np.int8)
        return raw, status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        edges = self._cells()
        code = raw.long()
        left, width = edges[code], edges[code + 1] - edges[code]
        # Kept off 0 and 1, where the quantile function is infinite.
        y = torch.special.ndtri((left + width * u).clamp(1e-12, 1 - 1e-12))
        return y, width.log() + 0.5 * y.square() + HALF_LOG_2PI

    def decode(self, y: Tensor) -> Tensor:
        code = torch.searchsorted(self._cells(), torch.special.ndtr(y), right=True) - 1
        return code.clamp(0, len(self.levels) - 1).double()  # the unseen cell is written as the level next to it

    def write(self, raw: Floats) -> pa.Array:
        type_, codes = arrow_type(self.arrow_type), raw.astype(np.int64)
        if not pa.types.is_dictionary(type_):
            return pa.array(self.levels, type_).take(pa.array(codes))
        levels = pa.array(self.levels, type_.value_type)
        return pa.DictionaryArray.from_arrays(pa.array(codes, type_.index_type), levels, ordered=type_.ordered)

    def embed(self, raw: Tensor) -> Tensor:
        """One-hot levels; all zeros for an unseen one."""
        return torch.nn.functional.one_hot(raw.long(), len(self.levels) + 1)[:, :-1].double()


@dataclass(frozen=True)
class Constant(ColumnCodec):
    """A column with one value has no density: it stays out of the flow, and a row that differs is the oddest of all."""

    value: Any

    kind: ClassVar[str] = "constant"
    width: ClassVar[int] = 0

    @property
    def context_width(self) -> int:
        return 0

    def check(self) -> None:
        _require(pa.scalar(self.value, arrow_type(self.arrow_type)).is_valid, "a constant has a value")

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        plain = _dense(values)
        same = np.asarray(pc.equal(plain, pa.scalar(self.value, plain.type)).fill_null(False))
        missing = np.asarray(plain.is_null(nan_is_null=True))
        return np.zeros(len(values)), np.where(missing, MISSING, np.where(same, OK, VIOLATED)).astype(np.int8)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a constant column is not in the flow")

    def decode(self, y: Tensor) -> Tensor:
        raise AssertionError("a constant column is not in the flow")

    def write(self, raw: Floats) -> pa.Array:
        return pa.array([self.value] * len(raw), arrow_type(self.arrow_type))

    def embed(self, raw: Tensor) -> Tensor:
        return raw.new_zeros(len(raw), 0)


CODECS: dict[str, type[ColumnCodec]] = {c.kind: c for c in (Real, Integer, Category, Constant)}


def from_dict(column: Mapping[str, Any]) -> ColumnCodec:
    """The codec that :meth:`ColumnCodec.to_dict` described. Raises ValueError, KeyError or TypeError for another."""
    codec = plainly(CODECS[column["kind"]], {key: value for key, value in column.items() if key != "kind"})
    try:
        codec.check()
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"column '{codec.name}': {error}") from None
    return codec


def plainly(kind: type[T], fields: Mapping[str, Any]) -> T:
    """A dataclass from its fields as JSON has them. Raises ValueError when one is missing, unknown or of another type,
    or a number is not finite."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(json.dumps(fields))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def is_number(type_: pa.DataType) -> bool:
    """Whether values of this type are integers or floating-point numbers."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _numbers(values: pa.Array) -> Floats:
    """Float64 with NaN for null."""
    return np.array(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _dense(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _range(type_: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(type_.to_pandas_dtype())
    return int(info.min), int(info.max)


def arrow_type(name: str) -> pa.DataType:
    """An Arrow type from its text form: plain names, and dictionaries of them."""
    if name.startswith("dictionary<"):
        parts = dict(part.split("=") for part in name[len("dictionary<") : -1].split(", "))
        return pa.dictionary(arrow_type(parts["indices"]), arrow_type(parts["values"]), parts.get("ordered") == "1")
    return pa.type_for_alias({"large_string": "large_string", "double": "float64", "float": "float32"}.get(name, name))
