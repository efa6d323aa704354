"""Monotone maps of one number, with parameters from a conditioner: what coupling and autoregressive layers apply.

Each takes ``x`` of any shape, ``(n, d)`` or one column ``(n,)``, and ``parameters (…, count)``, and returns ``(y,
log|dy/dx|)``, both shaped as x is. All-zero parameters are the identity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_scale = _Affine.apply(x, parameters, self.bound)  # type: ignore[no-untyped-call]
        return y, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.unbind(-1)
        log_slope, _ = _bounded(raw, self.bound, -1)
        return (y - shift) * log_slope.exp(), log_slope


def _bounded(raw: Tensor, bound: float, sign: int = 1) -> tuple[Tensor, Tensor]:
    """±s = B·tanh(±s̃/B) and σ = 1/(1 + exp(±2s̃/B)), of which it is B·(1 − 2σ): 0 at σ = 1/2 exactly, and elsewhere to
    an ulp of B. torch's sigmoid takes a seventh of its tanh's time."""
    bent = torch.sigmoid(raw * (-2 * sign / bound))
    return torch.rsub(bent, bound, alpha=2 * bound), bent


class _Affine(torch.autograd.Function):
    """:class:`Affine`'s forward as one node for autograd.

    With e = exp(s): dy = e·dx + x·e·ds + dt and ds = 4σ(1 − σ)·ds̃.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.unbind(-1)
        log_scale, bent = _bounded(raw, bound)
        scale = log_scale.exp()
        ctx.save_for_backward(x, parameters, bent, scale)
        return torch.addcmul(shift, x, scale), log_scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_scale: Tensor) -> tuple[Tensor, Tensor, None]:
        x, parameters, bent, scale = ctx.saved_tensors
        grad_x, grad = grad_y * scale, torch.empty_like(parameters)  # laid out as they are
        grad[..., 0] = torch.ops.aten.sigmoid_backward(torch.addcmul(grad_log_scale, grad_x, x), bent).mul_(4)
        grad[..., 1] = grad_y
        return grad_x, grad, None


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
        y, log_slope, *chosen = self._chosen(x, parameters, inverse=False)
        z, log_bend = self._bend(y, chosen, inverse=False)
        return z, log_slope + log_bend

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        chosen = self._chosen(y, parameters, inverse=True)
        z, log_bend = self._bend(y, chosen, inverse=True)
        x, log_slope = self.affine.inverse(z, parameters[..., :2])
        return x, log_slope + log_bend

    def _chosen(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        if x.ndim == 2 and x.stride(0) == 1:  # columns that lie together: computed in the order they lie in
            found = _Bin.apply(x.T, parameters.transpose(0, 1), self, inverse)  # type: ignore[no-untyped-call]
            return tuple(part.T for part in found)
        found = _Bin.apply(x, parameters, self, inverse)  # type: ignore[no-untyped-call]
        return tuple(found)

    def _bend(self, x: Tensor, chosen_bin: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        x0, w, y0, h, left, right = chosen_bin
        # Points in the tails are computed at the end of the box and replaced at last, so no branch sees a value or a
        # gradient it cannot bear.
        point = x.clamp(-self.box, self.box)
        inside = point == x
        d0, d1 = (self.MIN_SLOPE + F.softplus(raw + self.slope_shift) for raw in (left, right))
        s = h / w  # the bin's mean slope
        total = torch.sub(d0 + d1, s, alpha=2)
        if inverse:
            # Equations 6 to 8: a θ² + b θ + c = 0, with c = −s·rise ≤ 0 ≤ b² − 4ac. Of the two forms of the root, the
            # one that adds what b's sign lets add never cancels; b < 0 only where a > 0.
            rise = point - y0
            bent, straight = rise * total, s * rise
            a, b = torch.addcmul(bent, h, s - d0), h * d0 - bent
            root = torch.addcmul(b.square(), a, straight, value=4).clamp(min=0).sqrt()
            up = b >= 0
            theta = torch.where(up, 2 * straight, root - b) / torch.where(up, b + root, 2 * a)
        else:
            theta = (point - x0) / w
        theta = theta.clamp(0, 1)
        rest, square = 1 - theta, theta.square()
        product = theta * rest
        # Numerator and denominator are sums of positive terms: s, d0, d1 > 0 and 0 ≤ θ ≤ 1, and
        # s + (d0 + d1 − 2s)·θ(1−θ) ≥ s·(1 − 2θ(1−θ)) ≥ s/2.
        denominator = torch.addcmul(s, total, product)
        if inverse:
            out = torch.addcmul(x0, theta, w)
        else:
            out = torch.addcdiv(y0, torch.addcmul(d0 * product, s, square) * h, denominator)
        # Equation 5, in an order in which no factor leaves the range of numbers: the first is 2s at most.
        numerator = torch.addcmul(torch.addcmul(d0 * rest.square(), d1, square), s, product, value=2)
        log_slope = (s * (s / denominator) * (numerator / denominator)).log()
        return torch.where(inside, out, x), torch.where(inside, -log_slope if inverse else log_slope, 0.0)


class _Bin(torch.autograd.Function):
    """The bin of a spline that a point lies in, the last whose left edge is at or below it: its left edges and sizes
    x₀, w, y₀, h, and the raw slopes at both ends, which are 0 at the box's, where the slope is 1. But for ``inverse``,
    which has the point, before them the point that the affine map takes x to, and its log-slope.

    Sizes are shares of the box from a softmax, edges their cumulative sums. Only a bin's own numbers are computed
    further, and their gradients go back in one step: a size takes the gradient of x₀ where it is before the bin, and
    that of w where it is the bin's own. The parameters' gradient is laid out as they are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, spline: Spline, inverse: bool) -> tuple[Tensor, ...]:
        rows = parameters.movedim(-1, 0)
        bins, bound = spline.bins, spline.affine.bound
        raw, shift, widths_and_heights, slopes = rows.split([1, 1, 2 * bins, bins - 1])
        y, affine, saved = x, [], []
        if not inverse:
            log_scale, bent = _bounded(raw[0], bound)
            scale = log_scale.exp()
            y = torch.addcmul(shift[0], x, scale)
            affine, saved = [y, log_scale], [x, bent, scale]
        point = y.clamp(-spline.box, spline.box)
        floor, free = 2 * spline.box * spline.MIN_BIN, 2 * spline.box * (1 - spline.MIN_BIN * bins)
        logits = widths_and_heights.unflatten(0, (2, bins))
        # Of a softmax p: f·p + floor, in one step.
        exponentials = (logits - logits.amax(1, keepdim=True)).exp_()
        total = exponentials.sum(1, keepdim=True)
        sizes = torch.addcmul(exponentials.new_full((), floor), exponentials, free / total)
        # By additions, which take a third of the time that cumsum takes along this dimension.
        first = rows.new_full((2, *x.shape), -spline.box)
        edges = torch.stack([*accumulate(sizes[:, :-1].unbind(1), initial=first)], 1)
        inner = edges[int(inverse), 1:]
        # Comparisons as numbers, which are added up in a third of the time that truth values take.
        chosen = torch.ge(point, inner, out=torch.empty_like(inner)).sum(0, keepdim=True).long()
        end = rows.new_zeros(1, *x.shape)
        left, right = torch.cat([end, slopes, end]).gather(0, torch.cat([chosen, chosen + 1]))
        x0, y0, w, h = (
            part for parts in (edges, sizes) for part in parts.gather(1, chosen.expand(2, *chosen.shape))[:, 0]
        )
        ctx.save_for_backward(chosen, sizes, *saved)
        ctx.free, ctx.floor = free, floor
        ctx.layout = parameters.shape, torch.empty_like(parameters, device="meta").stride()  # also if rows share them
        return *affine, x0, w, y0, h, left, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        chosen, sizes, *saved = ctx.saved_tensors
        *affine, x0, w, y0, h, left, right = grads
        bins = sizes.shape[1]
        parameters = w.new_empty_strided(*ctx.layout)
        rows = parameters.movedim(-1, 0)
        grad_x = None
        if affine:
            (grad_y, grad_log_scale), (x, bent, scale) = affine, saved
            grad_x = grad_y * scale
            rows[0] = torch.ops.aten.sigmoid_backward(torch.addcmul(grad_log_scale, grad_x, x), bent).mul_(4)
            rows[1] = grad_y
        else:
            rows[:2] = 0
        number = torch.arange(bins, device=w.device).view(-1, *[1] * w.ndim)
        own = torch.where(number == chosen, torch.stack([w, h])[:, None], w.new_zeros(()))
        # Of a softmax p: p·(g − Σ p g); here of f·p.
        shares = sizes - ctx.floor
        weighted = torch.where(number < chosen, torch.stack([x0, y0])[:, None], own).mul_(shares)
        raw = torch.addcmul(weighted, shares, weighted.sum(1, keepdim=True), value=-1 / ctx.free)
        rows[2 : 2 + 2 * bins] = raw.flatten(0, 1)
        slopes = w.new_zeros(bins + 1, *w.shape)
        slopes.scatter_(0, torch.cat([chosen, chosen + 1]), torch.stack([left, right]))
        rows[2 + 2 * bins :] = slopes[1:-1]
        return grad_x, parameters, None, None
