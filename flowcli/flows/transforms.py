"""Monotone maps of one number, with parameters from a conditioner: what coupling and autoregressive layers apply.

Each takes ``x (n, d)`` and ``parameters (n, d, count)`` and returns ``(y, log|dy/dx|)``, both ``(n, d)``. All-zero
parameters are the identity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class Transform(ABC):
    """A strictly increasing map of the real line with ``count`` parameters."""

    count: int

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""

    @abstractmethod
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""


class Affine(Transform):
    """y = x·exp(s) + t, with s = B·tanh(s̃/B) bounded smoothly by B = ``bound``.

    The shift is added after scaling, so that a column far out cannot make the shift overflow.
    """

    count = 2

    def __init__(self, bound: float = 3.0) -> None:
        self.bound = bound

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.unbind(-1)
        return self.bound * torch.tanh(raw / self.bound), shift

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._split(parameters)
        return (y - shift) * torch.exp(-log_scale), -log_scale


class Spline(Transform):
    """A rational-quadratic spline inside [−B, B] after an affine map (Durkan et al. 2019, equations 4 to 8).

    The paper's spline is the identity outside the box, so a conditional shift or scale must be spelled out by moving
    every knot, and rows in the tails cannot move at all. Here the conditioner's affine map comes first: the spline
    only has to add shape, and the tails stay linear with a slope and a shift of their own.

    Bin widths and heights are softmaxes kept above ``MIN_BIN`` of the box, knot derivatives are kept above
    ``MIN_SLOPE`` and are 1 at the box's ends, where the spline meets the tails.
    """

    MIN_BIN = 1e-3
    MIN_SLOPE = 1e-3

    def __init__(self, bins: int = 8, box: float = 4.0) -> None:
        self.bins, self.box = bins, box
        self.affine = Affine()
        self.count = self.affine.count + 3 * bins - 1
        # softplus(SHIFT) = 1 − MIN_SLOPE: zero parameters give slope 1 at every knot.
        self.slope_shift = math.log(math.expm1(1 - self.MIN_SLOPE))

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.affine.forward(x, parameters[..., :2])
        z, log_bend = self._bend(y, parameters[..., 2:], inverse=False)
        return z, log_slope + log_bend

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_bend = self._bend(y, parameters[..., 2:], inverse=True)
        x, log_slope = self.affine.inverse(z, parameters[..., :2])
        return x, log_slope + log_bend

    def _knots(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Left edges ``(…, bins)`` and sizes of the bins that the softmax of ``raw`` cuts the box into."""
        share = self.MIN_BIN + (1 - self.MIN_BIN * self.bins) * F.softmax(raw, -1)
        size = 2 * self.box * share
        left = F.pad(size.cumsum(-1)[..., :-1], (1, 0)) - self.box
        return left, size

    def _bend(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = parameters.split([self.bins, self.bins, self.bins - 1], -1)
        x_left, width = self._knots(widths)
        y_left, height = self._knots(heights)
        inner = self.MIN_SLOPE + F.softplus(slopes + self.slope_shift)
        slope_left, slope_right = F.pad(inner, (1, 0), value=1.0), F.pad(inner, (0, 1), value=1.0)

        # The bin is where the last left edge at or below the point is. Points in the tails are computed at the
        # middle of the box and replaced at the end, so no branch sees a value or a gradient it cannot bear.
        inside = x.abs() < self.box
        point = torch.where(inside, x, torch.zeros_like(x))[..., None]
        edges = y_left if inverse else x_left
        chosen = (point >= edges[..., 1:]).sum(-1, keepdim=True)
        x0, w, y0, h, d0, d1 = (
            part.gather(-1, chosen) for part in (x_left, width, y_left, height, slope_left, slope_right)
        )
        s = h / w  # the bin's mean slope
        total = d0 + d1 - 2 * s
        if inverse:
            # Equations 6 to 8: a θ² + b θ + c = 0, with c ≤ 0 ≤ b² − 4ac. Of the two forms of the root, the one that
            # adds what b's sign lets add never cancels.
            rise = point - y0
            a = h * (s - d0) + rise * total
            b = h * d0 - rise * total
            c = -s * rise
            root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
            up = b >= 0  # b < 0 only where a > 0; each branch's unused divisor is replaced by 1
            theta = torch.where(
                up, 2 * c / torch.where(up, -b - root, -1.0), (root - b) / torch.where(up, 1.0, 2 * a)
            ).clamp(0, 1)
            out = x0 + theta * w
        else:
            theta = ((point - x0) / w).clamp(0, 1)
            out = y0 + h * (s * theta.square() + d0 * theta * (1 - theta)) / (s + total * theta * (1 - theta))
        # Equation 5. Numerator and denominator are sums of positive terms: s, d0, d1 > 0 and 0 ≤ θ ≤ 1, and
        # s + (d0 + d1 − 2s)·θ(1−θ) ≥ s·(1 − 2θ(1−θ)) ≥ s/2.
        product = theta * (1 - theta)
        numerator = d1 * theta.square() + 2 * s * product + d0 * (1 - theta).square()
        log_slope = 2 * s.log() + numerator.log() - 2 * (s + total * product).log()
        if inverse:
            log_slope = -log_slope
        out = torch.where(inside, out[..., 0], x)
        return out, torch.where(inside, log_slope[..., 0], torch.zeros_like(x))
