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

    def _bins(self, at: Tensor, edges: Tensor) -> tuple[Tensor, ...]:
        x, y, d = (torch.tensor(part, dtype=torch.float64) for part in (self.x, self.y, self.slopes))
        i = (torch.searchsorted(edges, at.contiguous(), right=True) - 1).clamp(0, len(x) - 2)
        return x[i], x[i + 1] - x[i], y[i], y[i + 1] - y[i], d[i], d[i + 1]

    def forward(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, both ``(n,)``.

        With θ the share of the bin, s its chord: y = y₀ + h·(sθ² + d₀θ(1−θ)) / (s + (d₀+d₁−2s)·θ(1−θ)), whose
        denominator is at least s/2.
        """
        x0, w, y0, h, d0, d1 = self._bins(at, torch.tensor(self.x, dtype=torch.float64))
        theta, s = ((at - x0) / w).clamp(0, 1), h / w
        product = theta * (1 - theta)
        below = s + (d0 + d1 - 2 * s) * product
        y = y0 + h * (s * theta.square() + d0 * product) / below
        slope = s.square() * (d1 * theta.square() + 2 * s * product + d0 * (1 - theta).square()) / below.square()
        (first, last), (left, right) = (self.x[0], self.x[-1]), (self.slopes[0], self.slopes[-1])
        y = torch.where(at < first, self.y[0] + left * (at - first), y)
        y = torch.where(at > last, self.y[-1] + right * (at - last), y)
        return y, slope.log()  # at an end's θ, 0 or 1, it is the outer slope

    def inverse(self, at: Tensor) -> Tensor:
        """x for y: the root of a quadratic aθ² + bθ + c = 0 in the form that never cancels (Durkan et al. 2019,
        equations 6 to 8)."""
        x0, w, y0, h, d0, d1 = self._bins(at, torch.tensor(self.y, dtype=torch.float64))
        rise, s = (at - y0).clamp(min=0).minimum(h), h / w
        total = d0 + d1 - 2 * s
        a, b, c = h * (s - d0) + rise * total, h * d0 - rise * total, -s * rise
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        theta = torch.where(
            b >= 0, 2 * c / torch.where(b >= 0, -b - root, -1.0), (root - b) / torch.where(b < 0, 2 * a, 1.0)
        )
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
