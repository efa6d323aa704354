"""A smooth, strictly monotone curve through points, with its derivative and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flowcli.data.columns.column import STRICT, Floats, require

KNOTS = 33


@dataclass(frozen=True)
class Monotone:
    """A rational-quadratic spline (Gregory & Delbourgo 1982) through ``(x_i, y_i)`` with slopes ``d_i``, all strictly
    increasing and positive; straight lines with the outer slopes beyond, so that it grows for ever."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    slopes: tuple[float, ...]

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    @staticmethod
    def to_gaussian(values: Floats) -> Monotone:
        """The curve from values to Gaussian scores: through quantiles of the values and those of the standard Gaussian.

        Knots where the values repeat fall together and are one. The slopes are harmonic means of the chords on either
        side, which keeps them between the two, and the outer chords at the ends.
        """
        n = len(values)
        shares = np.linspace(0.5 / n, 1 - 0.5 / n, KNOTS)
        x, shares = _distinct(np.quantile(values, shares), shares)
        y = torch.special.ndtri(torch.from_numpy(shares)).numpy()
        chords = np.diff(y) / np.diff(x)
        inner = 2 / (1 / chords[1:] + 1 / chords[:-1])
        slopes = np.concatenate([chords[:1], inner, chords[-1:]])
        return Monotone(tuple(x.tolist()), tuple(y.tolist()), tuple(slopes.tolist()))

    def check(self) -> None:
        """Raises ValueError when this is no such curve."""
        rises = all(np.all(np.diff(part) > 0) for part in (self.x, self.y))
        require(len(self.x) == len(self.y) == len(self.slopes) > 1, "a curve has as many slopes as points")
        require(rises and min(self.slopes) > 0, "a curve rises")

    def _bins(self, at: Tensor, edges: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Of the bin that each point is in: x₀, width, y₀, height, and the slopes at its ends over its chord's."""
        x, y, d = (torch.tensor(part, dtype=torch.float64) for part in (self.x, self.y, self.slopes))
        inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        i = torch.searchsorted(inner, at.contiguous(), right=True)
        width, height = x[i + 1] - x[i], y[i + 1] - y[i]
        return x[i], width, y[i], height, d[i] / (height / width), d[i + 1] / (height / width)

    def forward(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, of the shape of ``at``.

        With θ the share of the bin, r its ends' slopes over the chord's: y = y₀ + h·(θ² + r₀θ(1−θ)) / (1 + (r₀+r₁−2)·
        θ(1−θ)), whose denominator is at least 1/2.
        """
        x0, w, y0, h, r0, r1 = self._bins(at, self.x)
        theta = ((at - x0) / w).clamp(0, 1)
        product = theta * (1 - theta)
        below = 1 + (r0 + r1 - 2) * product
        y = y0 + h * (theta.square() + r0 * product) / below
        relative = (r1 * theta.square() + 2 * product + r0 * (1 - theta).square()) / below.square()
        (first, last), (left, right) = (self.x[0], self.x[-1]), (self.slopes[0], self.slopes[-1])
        y = torch.where(at < first, self.y[0] + left * (at - first), y)
        y = torch.where(at > last, self.y[-1] + right * (at - last), y)
        return y, relative.log() + (h / w).log()  # at an end's θ, 0 or 1, it is the outer slope

    def inverse(self, at: Tensor) -> Tensor:
        """x for y: the root of a quadratic aθ² + bθ + c = 0 in the form that never cancels (Durkan et al. 2019,
        equations 6 to 8)."""
        x0, w, y0, h, r0, r1 = self._bins(at, self.y)
        rise = ((at - y0) / h).clamp(0, 1)
        total = r0 + r1 - 2
        a, b, c = 1 - r0 + rise * total, r0 - rise * total, -rise
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        up = b >= 0  # each branch's unused divisor is replaced by 1
        theta = torch.where(up, 2 * c / torch.where(up, -b - root, -1.0), (root - b) / torch.where(up, 1.0, 2 * a))
        x = x0 + theta.clamp(0, 1) * w
        (first, last), (left, right) = (self.y[0], self.y[-1]), (self.slopes[0], self.slopes[-1])
        x = torch.where(at < first, self.x[0] + (at - first) / left, x)
        return torch.where(at > last, self.x[-1] + (at - last) / right, x)


def _distinct(x: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Points whose x differ by more than rounding, of those that do not the one in the middle; at least two."""
    tiny = max(float(np.ptp(x)) * 1e-9, float(np.abs(x).max()) * 1e-12, 1e-290)
    groups = np.cumsum(np.concatenate([[0], np.diff(x) > tiny]))
    sizes = np.bincount(groups)
    x, shares = np.bincount(groups, x) / sizes, np.bincount(groups, shares) / sizes
    if len(x) < 2:
        return np.array([x[0] - 1, x[0] + 1]), np.array([0.25, 0.75])
    return x, shares
