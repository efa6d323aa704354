"""How the values of a column lie: its spikes, and the transform that brings the rest nearest to a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARE = 0.05  # of the rows that a spike makes up
LEAST = 20  # rows of a spike
STEEP = 5.0  # how many times as frequent as the values beside it a spike is
MARGIN = 0.03  # a transform must be nearer to a Gaussian by so much
FAR = 0.15  # from a Gaussian, beside what chance does, with every simple transform: then it is a spline's task
BOUNDS = ((0.0, 1.0), (0.0, 100.0))
_POINTS = (np.arange(1000) + 0.5) / 1000


@dataclass(frozen=True)
class Shape:
    """A transform as the recipe has it, and why."""

    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def spikes(x: Floats) -> tuple[list[float], bool]:
    """The values that make up 5 % and 20 rows or more and stand out among the values beside them; and whether there are
    others of such a share, which do not."""
    values, counts = np.unique(x, return_counts=True)
    common, found = counts >= SHARE * len(x), np.zeros(len(values), bool)
    while True:
        # Beside the others: what is a spike already says nothing of its neighbours.
        rest = np.flatnonzero(~found)
        if len(rest) < 2:
            break
        beside = np.pad(counts[rest].astype(np.float64), 2, constant_values=np.nan)
        near = np.nanmedian(np.stack([beside[:-4], beside[1:-3], beside[3:-1], beside[4:]]), 0)
        more = rest[common[rest] & (counts[rest] >= np.maximum(LEAST, STEEP * near))]
        if not len(more):
            break
        found[more] = True
    return values[found].tolist(), bool((common & ~found).any())


def shape(x: Floats, least: float, greatest: float) -> Shape:
    """The simplest transform that serves a real column with values ``x``; ``least`` and ``greatest`` are all rows'."""
    unit = float(np.abs(x).max()) or 1.0  # so that no square of what follows overflows
    y = x / unit
    low, high = (np.quantile(y, [0.005, 0.995]) * unit).tolist()
    shapes, mapped = {"none": Shape()}, {"none": y}
    for left, right in BOUNDS:
        edge = 0.05 * (right - left)
        if left < least and greatest < right and low < left + edge and high > right - edge:
            options = {"transform": "logit", "low": left, "high": right}
            shapes["logit"] = Shape(options, f"between {left:g} and {right:g}, near both")
            mapped["logit"] = np.log((x - left) / (right - x))
    if least > 0:
        logs = np.log(x)
        before, after = skewness(y), skewness(logs)
        decades = float(np.ptp(np.quantile(logs, [0.005, 0.995]))) / math.log(10)
        if decades > 2 or (before > 1 and abs(after) < before / 2):
            over = f"over {decades:.1f} decades, " if decades > 1 else ""
            shapes["log"] = Shape({"transform": "log"}, f"{over}skew {before:.1f}, of the logs {after:.1f}")
            mapped["log"] = logs
    elif _heavy(y):
        both = low < 0 < high and 0.05 < -low / high < 20
        why = "long tails on both sides" if both else "a long tail, and not all above 0"
        shapes["asinh"] = Shape({"transform": "asinh"}, why)
        mapped["asinh"] = np.arcsinh(y / np.median(np.abs(y[y != 0])))
    distances = {name: distance(t) for name, t in mapped.items()}
    best = min(distances, key=lambda name: distances[name])
    if best != "logit" and distances[best] > distances["none"] - MARGIN:
        best = "none"
    if distances[best] > FAR + len(x) ** -0.5:
        why = f"no simple transform makes it a Gaussian (Kolmogorov distance {distances[best]:.2f})"
        return Shape({"transform": "quantile"}, why)
    return shapes[best]


def _heavy(x: Floats) -> bool:
    """Whether the outer quantiles are further out than a Laplace distribution has them."""
    outer, inner = np.ptp(np.quantile(x, [0.005, 0.995])), np.ptp(np.quantile(x, [0.25, 0.75]))
    return bool(outer > 8 * inner)


def skewness(x: Floats) -> float:
    """The third standardised moment of the values between the 0.1 % and the 99.9 % quantile."""
    inner = np.clip(x, *np.quantile(x, [0.001, 0.999]))
    spread = inner.std()
    return float(np.mean(((inner - inner.mean()) / spread) ** 3)) if spread > 0 else 0.0


def distance(t: Floats) -> float:
    """Kolmogorov's, to a Gaussian, after the scaling that the codec does."""
    inner = np.clip(t, *np.quantile(t, [0.005, 0.995]))
    spread = inner.std()
    if not spread > 0:
        return 0.0
    z = np.clip((np.quantile(t, _POINTS) - inner.mean()) / spread, -9, 9) / math.sqrt(2)
    return float(np.max(np.abs(np.array([0.5 + 0.5 * math.erf(v) for v in z]) - _POINTS)))
