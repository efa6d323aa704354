"""Columns of real numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.columns.column import (
    Codes,
    ColumnCodec,
    Floats,
    arrow_type,
    is_number,
    numbers,
    require,
    robust_scale,
)
from flowcli.data.columns.monotone import Monotone
from flowcli.data.status import MISSING, NONFINITE, OK
from flowcli.errors import DataError

Transform = Literal["none", "log", "asinh", "logit", "quantile"]
MAX_DECIMALS = 8


@dataclass(frozen=True)
class Real(ColumnCodec):
    """y = (t(x) − centre)/scale with t the identity, log, asinh(x/unit), logit((x − low)/(high − low)), or a smooth
    curve through quantiles. ``decimals`` are those of the training values, which written ones have too."""

    transform: Transform
    centre: float
    scale: float
    low: float = 0.0
    high: float = 1.0
    unit: float = 1.0
    curve: Monotone | None = None
    decimals: int | None = None

    kind: ClassVar[str] = "real"

    @staticmethod
    def fit(name: str, values: pa.Array, transform: Transform, low: float | None, high: float | None) -> Real:
        """Raises DataError where a value is outside the transform's domain."""
        x = numbers(values)
        found: dict[str, Any] = {"low": 0.0 if low is None else low, "high": 1.0 if high is None else high}
        if transform == "asinh":
            nonzero = np.abs(x[x != 0])
            found["unit"] = float(np.median(nonzero)) if len(nonzero) else 1.0
        start = Real(name, str(values.type), transform, 0.0, 1.0, **found)
        bad = int((~start._allowed(x)).sum())
        if bad:
            domain = "above 0" if transform == "log" else f"between {start.low:g} and {start.high:g}"
            raise DataError(f"column '{name}': transform {transform} needs values {domain}, and {bad} are not.")
        if transform == "quantile":
            with np.errstate(over="ignore"):
                spread = float(np.ptp(x))
            if not np.isfinite(spread):
                raise DataError(f"column '{name}': spreads too far for a quantile transform; asinh bears it.")
            found["curve"] = Monotone.to_gaussian(x)
            # Gaussian scores are scaled already.
            return Real(name, str(values.type), transform, 0.0, 1.0, **found, decimals=_decimals(x, values.type))
        t, _ = start._transform(torch.from_numpy(x))
        with np.errstate(over="ignore", invalid="ignore"):
            centre, scale = robust_scale(t.numpy())
        if not (np.isfinite(centre) and np.isfinite(scale) and scale > 0):
            raise DataError(f"column '{name}': spreads too far to be scaled; give it transform: asinh.")
        return Real(name, str(values.type), transform, centre, scale, **found, decimals=_decimals(x, values.type))

    def check(self) -> None:
        require(is_number(arrow_type(self.arrow_type)), "a real column holds numbers")
        require(self.scale > 0 and self.unit > 0 and self.low < self.high, "its scale, unit and bounds cannot be")
        require((self.curve is not None) == (self.transform == "quantile"), "a curve goes with transform: quantile")
        require(self.decimals is None or 0 <= self.decimals <= MAX_DECIMALS, "so many decimals cannot be")
        if self.curve:
            self.curve.check()

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
        return self.curve.forward(x) if self.curve else (x, torch.zeros_like(x))

    def usual(self) -> Floats:
        return self.decode(torch.zeros(1, 1, dtype=torch.float64))[0].numpy()

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        x = numbers(values)
        status = np.where(np.isnan(x), MISSING, np.where(self._allowed(x), OK, NONFINITE)).astype(np.int8)
        return np.where(status == OK, x, self.usual())[:, None], status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        t, log_slope = self._transform(raw)
        return (t - self.centre) / self.scale, (log_slope - math.log(self.scale))[:, 0]

    def decode(self, y: Tensor) -> Tensor:
        t = y * self.scale + self.centre
        if self.transform == "log":
            return t.exp()
        if self.transform == "asinh":
            return self.unit * torch.sinh(t)
        if self.transform == "logit":
            return self.low + (self.high - self.low) * torch.sigmoid(t)
        return self.curve.inverse(t) if self.curve else t

    def write(self, raw: Floats) -> pa.Array:
        type_, x = arrow_type(self.arrow_type), raw[:, 0]
        if pa.types.is_integer(type_):
            # Whole numbers again, of the type's range and strictly inside the transform's domain.
            info = np.iinfo(type_.to_pandas_dtype())
            low, high = float(info.min), float(info.max)
            if self.transform in ("log", "logit"):
                low = max(low, np.floor(self.low if self.transform == "logit" else 0.0) + 1)
            if self.transform == "logit":
                high = min(high, np.ceil(self.high) - 1)
            return pa.array(np.clip(np.rint(x), low, high)).cast(type_, safe=False)
        if self.decimals is not None:
            rounded = np.round(x, self.decimals)
            x = np.where(self._allowed(rounded), rounded, x)  # a price of 0.004 is not rounded to 0 under a logarithm
        return pa.array(x).cast(type_, safe=False)


def _decimals(x: Floats, type_: pa.DataType) -> int | None:
    """The fewest decimals that all values have; None when they are not rounded to any."""
    if pa.types.is_integer(type_):
        return None
    single = type_ != pa.float64()
    for decimals in range(MAX_DECIMALS + 1):
        rounded = np.round(x, decimals)
        if np.array_equal(rounded.astype(np.float32), x.astype(np.float32)) if single else np.array_equal(rounded, x):
            return decimals
    return None
