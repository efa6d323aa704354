"""Planar layers (Rezende & Mohamed 2015, section 4.1), with an inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection
from flowcli.flows.nets import MLP


class Planar(Bijection):
    """y = x + û·tanh(wᵀx + b), with û from u so that wᵀû > −1 (the paper's appendix A.1).

    û = u + (m(wᵀu) − wᵀu)·w / (‖w‖² + ε), with m(a) = −1 + δ + softplus(a + c) and c such that m(0) = 0: u = 0 is the
    identity. δ keeps 1 + wᵀû ≥ δ, so the log-determinant log(1 + wᵀû·sech²) is at least log δ even where softplus
    underflows; ε makes w = 0 safe, where û = u. With a context, a small network adds to u, w and b row by row.
    """

    DELTA = 1e-3
    EPSILON = 1e-12
    MAX_STEPS = 200

    def __init__(self, features: int, context: int = 0, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.features = features
        start = torch.zeros(2 * features + 1)
        start[features : 2 * features] = torch.randn(features) / math.sqrt(features)
        self.parameters_ = nn.Parameter(start)  # u, w, b
        self.net = MLP(context, hidden, 2 * features + 1) if context else None
        self.shift = math.log(math.expm1(1 - self.DELTA))

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û and w ``(1 or n, features)``, b and wᵀû ``(1 or n, 1)``."""
        parameters = self.parameters_[None]
        if self.net is not None and context is not None:
            parameters = parameters + self.net(context)
        u, w, b = parameters.split([self.features, self.features, 1], -1)
        a = (w * u).sum(-1, keepdim=True)
        norm = w.square().sum(-1, keepdim=True)
        share = norm / (norm + self.EPSILON)
        correction = -1 + self.DELTA + F.softplus(a + self.shift) - a
        # wᵀû from its formula and not as a product of û and w, which cancels badly where |u| and |w| are large.
        return u + correction * w / (norm + self.EPSILON), w, b, a + correction * share

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, wu = self._parts(context)
        s = (x * w).sum(-1, keepdim=True) + b
        return x + u * torch.tanh(s), torch.log1p(wu * _sech2(s))[:, 0]

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, wu = self._parts(context)
        s = solve(wu, (y * w).sum(-1, keepdim=True) + b, self.MAX_STEPS)
        return y - u * torch.tanh(s), -torch.log1p(wu * _sech2(s))[:, 0]


def _sech2(s: Tensor) -> Tensor:
    """1 − tanh²(s) = 4σ(2s)σ(−2s), which does not cancel for large s."""
    return 4 * torch.sigmoid(2 * s) * torch.sigmoid(-2 * s)


def solve(m: Tensor, c: Tensor, max_steps: int) -> Tensor:
    """The root s of g(s) = s + m·tanh(s) − c, for m > −1, where g is strictly increasing.

    |tanh| < 1 brackets the root in [c − |m|, c + |m|]; Newton's step is taken where it stays inside the bracket, else
    the bracket is halved. The gradient is the implicit one: ds = (dc − tanh(s)·dm) / g′(s).
    """
    with torch.no_grad():
        m_, c_ = torch.broadcast_tensors(m, c)
        low, high = c_ - m_.abs(), c_ + m_.abs()
        s = (c_ / (1 + m_.clamp(min=0))).clamp(low, high)  # the root of the linear part
        for _ in range(max_steps):
            residual = s + m_ * torch.tanh(s) - c_
            low, high = torch.where(residual < 0, s, low), torch.where(residual > 0, s, high)
            newton = s - residual / (1 + m_ * _sech2(s))
            new = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
            if torch.equal(new, s):
                break
            s = new
        slope = 1 + m_ * _sech2(s)
        root: Tensor = s
    if not (m.requires_grad or c.requires_grad):
        return root
    # One Newton step with the slope held fixed: it moves s by a rounding error and carries the gradient.
    attached: Tensor = root - (root + m * torch.tanh(root) - c) / slope
    return attached
