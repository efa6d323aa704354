"""Stacks of planar layers (Rezende & Mohamed 2015, section 4.1), with an inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection, together
from flowcli.flows.nets import MLP


class Planar(Bijection):
    """Layers y = x + û·tanh(s), s = wᵀx + b, with û from u so that wᵀû > −1 (the paper's appendix A.1).

    û = u + (m(wᵀu) − wᵀu)·w / (‖w‖² + ε), with m(a) = −1 + δ + softplus(a + c) and c such that m(0) = 0: u = 0 is the
    identity. δ keeps 1 + wᵀû ≥ δ, so the log-determinant log(1 + wᵀû·sech²) is at least log δ even where softplus
    underflows; ε makes w = 0 safe, where û = u. With a context, one network adds to every layer's u, w and b row by
    row.

    All that does not wait for the layer before is computed for all layers at once. Of one w and û for all rows, even
    the rows do not wait: layer j sees wⱼᵀx + bⱼ + Σ (wⱼᵀûₖ)·tanh(sₖ) over the layers k before it. Where a context gives
    each row its own, rows move from layer to layer, as the matrix of all wⱼᵀûₖ would be one for each row.
    """

    DELTA = 1e-3
    EPSILON = 1e-12

    def __init__(self, features: int, layers: int, context: int = 0, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.features = features
        start = torch.zeros(layers, 2 * features + 1)
        start[:, features:-1] = torch.randn(layers, features) / math.sqrt(features)
        self.parameters_ = nn.Parameter(start)  # u, w, b
        self.net = MLP(context, hidden, start.numel()) if context else None
        self.shift = math.log(math.expm1(1 - self.DELTA))

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û and w ``(layers, features)``, b and wᵀû ``(layers,)``; of rows with a context ``(layers, n, …)``."""
        parameters: Tensor = self.parameters_
        if self.net is not None and context is not None:
            parameters = self.net.around(parameters, context)
        u, w, b = parameters.split([self.features, self.features, 1], -1)
        a = (w * u).sum(-1, keepdim=True)
        norm = w.square().sum(-1, keepdim=True)
        m = -1 + self.DELTA + F.softplus(a + self.shift)
        # wᵀû from its formula and not as a product of û and w, which cancels badly where |u| and |w| are large.
        wu = (m * norm + a * self.EPSILON) / (norm + self.EPSILON)
        return u + (m - a) / (norm + self.EPSILON) * w, w, b[..., 0], wu[..., 0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, wu = self._parts(context)
        if w.dim() == 2:
            s: Tensor = _Places.apply(torch.addmm(b[:, None], w, x.T), w @ u.T)  # type: ignore[no-untyped-call]
            return torch.addmm(x, torch.tanh(s).T, u), _log_det(wu, s)
        x, places = together(x), []
        for u_, w_, b_ in zip(u.unbind(), w.unbind(), b.unbind(), strict=True):
            places.append(_along(w_, x, b_))
            x = _moved(x, torch.tanh(places[-1]), u_)
        return x, _log_det(wu, torch.stack(places))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, wu = (part.flip(0) for part in self._parts(context))
        y, places = together(y), []
        for u_, w_, b_, wu_ in zip(u.unbind(), w.unbind(), b.unbind(), wu.unbind(), strict=True):
            places.append(solve(wu_, _along(w_, y, b_)))
            y = _moved(y, -torch.tanh(places[-1]), u_)
        return y, -_log_det(wu, torch.stack(places))


class _Places(torch.autograd.Function):
    """s ``(layers, n)``, sⱼ = aⱼ + Σ Mⱼₖ·tanh(sₖ) over k < j, of ``a (layers, n)`` and ``M (layers, layers)``.

    The gradient runs the other way: λⱼ = ∂/∂sⱼ + sech²(sⱼ)·Σ Mₖⱼ·λₖ over k > j is ∂/∂aⱼ, and λⱼᵀtanh(sₖ) is ∂/∂Mⱼₖ.
    Written by hand, as both ways fill one matrix in place. Its rows are zero until they are reached: each product can
    take all of it, and finds only what it may.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, m: Tensor) -> Tensor:
        s, t = a.clone(), torch.zeros_like(a)
        for s_, t_, m_ in zip(s.unbind(), t.unbind(), m.unbind(), strict=True):
            t_.copy_(s_.addmv_(t.T, m_)).tanh_()
        ctx.save_for_backward(s, t, m)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        s, t, m = ctx.saved_tensors
        slopes, out = _sech2(s), torch.zeros_like(s)
        for j in reversed(range(len(s))):
            torch.addcmul(grad[j], slopes[j], out.T @ m[:, j], out=out[j])
        return out, torch.tril(out @ t.T, -1)


def _along(w: Tensor, x: Tensor, b: Tensor) -> Tensor:
    """wᵀx + b ``(n,)``, one w for all rows or one for each."""
    return (x @ w if w.dim() == 1 else (w * x).sum(-1)) + b


def _moved(x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """x + t·u ``(n, features)``, one u for all rows or one for each."""
    return torch.addr(x, t, u) if u.dim() == 1 else torch.addcmul(x, t[:, None], u)


def _log_det(wu: Tensor, s: Tensor) -> Tensor:
    """Σ log(1 + wᵀû·sech²(s)) ``(n,)`` over the layers, of ``s (layers, n)``."""
    return torch.log1p(wu.view(len(s), -1) * _sech2(s)).sum(0)


def _sech2(s: Tensor) -> Tensor:
    """1 − tanh²(s) = 4σ(2s)σ(−2s), which does not cancel for large s."""
    return 4 * torch.sigmoid(2 * s) * torch.sigmoid(-2 * s)


def solve(m: Tensor, c: Tensor, max_steps: int = 100) -> Tensor:
    """The root s ``(n,)`` of g(s) = s + m·tanh(s) − c, for m > −1 (one, or one for each row), where g increases.

    g − g(0) is odd, so let c ≥ 0, where s ≥ 0. There g is concave (m > 0) or convex (m < 0), and tanh(s) ≤ min(s, 1)
    makes max(c/(1 + m), c − m) a start below the root (m > 0), min(…) one above it (m < 0): the side from which
    Newton's steps never pass the root, so that nothing need bracket it. They stop when every row's step is so small
    that the next, at most |g″/2g′|·step² < 16·step², would be a rounding error.

    The gradient is the implicit one: ds = (dc − tanh(s)·dm) / g′(s).
    """
    with torch.no_grad():
        epsilon = torch.finfo(c.dtype).eps
        small, noise = 0.25 * math.sqrt(epsilon), 4 * epsilon * c.abs()  # g is no more accurate than to ε·|c|
        s = torch.clamp(c / (1 + m), c - m.abs(), c + m.abs())
        for _ in range(max_steps):
            t = torch.tanh(s)
            slope = 1 + m * (1 - t * t)
            residual = torch.addcmul(s, m, t).sub_(c)
            s.addcdiv_(residual, slope, value=-1)
            if not (residual.abs_() > torch.add(noise, slope, alpha=small)).any():
                break
    if not (m.requires_grad or c.requires_grad):
        return s
    # One Newton step with the slope held fixed: it moves s by a rounding error and carries the gradient.
    return s - (s + m * torch.tanh(s) - c) / (1 + m.detach() * _sech2(s))
