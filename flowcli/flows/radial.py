"""Stacks of radial layers (Rezende & Mohamed 2015, section 4.1), with their closed inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection, together
from flowcli.flows.nets import MLP


class Radial(Bijection):
    """Layers y = x + β̂·(x − x₀)/(α + r) with r = ‖x − x₀‖, α > 0 and β̂ > −α (the paper's equation 14 and appendix A.2).

    α = softplus(·) + δ, and β̂ = −(1 − δ)·α + softplus(β + c) with c such that β = 0 is the identity. δ keeps both
    factors of the determinant positive even where softplus underflows. With a context, one network moves every layer's
    x₀, α and β row by row.

    Only the rows wait for the layer before; all else is computed for all layers at once. The offsets x − x₀ are taken
    from the rows: a sum over the layers before of what each adds to r² would cancel. Each column's values lie together:
    what is done to a row is then done to many at once.
    """

    DELTA = 1e-3

    def __init__(self, features: int, layers: int, context: int = 0, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.features = features
        start = torch.zeros(layers, features + 2)
        start[:, :features] = torch.randn(layers, features)
        self.parameters_ = nn.Parameter(start)  # x₀, raw α, raw β
        self.net = MLP(context, hidden, start.numel()) if context else None

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x₀ ``(layers, 1 or n, features)``, α and β̂ ``(layers, 1 or n, 1)``."""
        parameters = self.parameters_[:, None]
        if self.net is not None and context is not None:
            parameters = self.net.around(self.parameters_, context)
        centre, raw_alpha, raw_beta = parameters.split([self.features, 1, 1], -1)
        alpha = self.DELTA + F.softplus(raw_alpha)
        floor = (1 - self.DELTA) * alpha
        # softplus⁻¹(v) = v + log(1 − e^−v): stable for every v > 0.
        shift = floor + torch.log(-torch.expm1(-floor))
        return centre, alpha, F.softplus(raw_beta + shift) - floor

    def _log_det(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Σ (D − 1)·log(1 + β̂h) + log(1 + β̂αh²), h = 1/(α + r), over the layers, at distances ``r (layers, n, 1)``.

        Both arguments are ≥ δ: β̂h ≥ −(1 − δ)·α/(α + r) ≥ −(1 − δ), and αh ≤ 1 makes the second no smaller.
        """
        h = 1 / (alpha + r)
        bend = beta * h
        return ((self.features - 1) * torch.log1p(bend) + torch.log1p(bend * alpha * h)).sum((0, 2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._parts(context)
        x = x if torch.compiler.is_compiling() else together(x)  # the compiler lays them out as suits it
        y, r = _Stack.apply(x, centre, alpha, beta)  # type: ignore[no-untyped-call]
        return y, self._log_det(r, alpha, beta)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # ρ = ‖y − x₀‖ = r·(1 + β̂/(α + r)) gives r² + 2p·r − αρ = 0 with 2p = α + β̂ − ρ. The product of its roots,
        # −αρ, is not positive: one root is ≥ 0, and each form below is used where it does not cancel. The square
        # root's argument is not 0, as p > 0 where ρ = 0.
        centre, alpha, beta = (part.flip(0) for part in self._parts(context))
        half, y, distances = 0.5 * (alpha + beta), together(y), []
        for centre_, alpha_, beta_, half_ in zip(
            centre.unbind(), alpha.unbind(), beta.unbind(), half.unbind(), strict=True
        ):
            offset = y - centre_
            rho = _length(offset)
            p, product = torch.sub(half_, rho, alpha=0.5), alpha_ * rho
            q = torch.addcmul(product, p, p).sqrt() + p.abs()
            r = torch.where(p > 0, product / q, q)
            outer = alpha_ + r
            y = torch.addcmul(centre_, offset, outer / (outer + beta_))
            distances.append(r)
        return y, -self._log_det(torch.stack(distances), alpha, beta)


class _Stack(torch.autograd.Function):
    """Rows ``(n, features)`` after all layers, and before each its distances r ``(layers, n, 1)`` from the centre.

    The gradient is written by hand, in two thirds of the passes over the rows that automatic differentiation makes.
    With f = β̂/(α + r), offset o, g = ∂/∂y and φ = gᵀo = ∂/∂f, a layer adds f·g + (∂/∂r − φ·f/(α + r))·o/r to ∂/∂x and
    takes it from ∂/∂x₀, where o/r is a unit vector, and 0 at the centre itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        offsets, distances, factors = [], [], []
        for centre_, alpha_, beta_ in zip(centre.unbind(), alpha.unbind(), beta.unbind(), strict=True):
            offset = x - centre_
            r = _length(offset)
            factor = beta_ / (alpha_ + r)
            x = torch.addcmul(x, factor, offset)
            offsets.append(offset)
            distances.append(r)
            factors.append(factor)
        r = torch.stack(distances)
        ctx.save_for_backward(r, alpha, torch.stack(factors), *offsets)
        return x, r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r, alpha, factor, *offsets = ctx.saved_tensors
        h = 1 / (alpha + r)
        inverse_r = 1 / r
        slope = -factor * h  # ∂f/∂r
        direct, through = grad_r * inverse_r, slope * inverse_r
        grad_centre, grad_factor = [], []
        for i in reversed(range(len(offsets))):
            grad_f = (grad * offsets[i]).sum(1, keepdim=True)
            added = (factor[i] * grad).addcmul_(torch.addcmul(direct[i], through[i], grad_f), offsets[i])
            grad = grad + added
            grad_factor.append(grad_f)
            grad_centre.append(-added.sum_to_size(alpha.shape[1], added.shape[1]))
        by_factor = torch.stack(grad_factor[::-1])
        grad_alpha, grad_beta = (by_factor * slope).sum_to_size(alpha.shape), (by_factor * h).sum_to_size(alpha.shape)
        return grad, torch.stack(grad_centre[::-1]), grad_alpha, grad_beta


def _length(offset: Tensor) -> Tensor:
    """‖·‖ ``(n, 1)`` of rows ``(n, features)`` whose columns lie together, for which torch's own takes many times as
    long. The least of normal numbers is added to its square, so that the gradient at 0 is 0."""
    return offset.square().sum(1, keepdim=True).add(torch.finfo(offset.dtype).tiny).sqrt()
