"""Radial layers (Rezende & Mohamed 2015, section 4.1), with their closed inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection
from flowcli.flows.nets import MLP


class Radial(Bijection):
    """y = x + β̂·(x − x₀)/(α + r) with r = ‖x − x₀‖, α > 0 and β̂ > −α (the paper's equation 14 and appendix A.2).

    α = softplus(·) + δ, and β̂ = −(1 − δ)·α + softplus(β + c) with c such that β = 0 is the identity. δ keeps both
    factors of the determinant positive even where softplus underflows. A context moves x₀, α and β row by row.
    """

    DELTA = 1e-3

    def __init__(self, features: int, context: int = 0, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.features = features
        start = torch.zeros(features + 2)
        start[:features] = torch.randn(features)
        self.parameters_ = nn.Parameter(start)  # x₀, raw α, raw β
        self.net = MLP(context, hidden, features + 2) if context else None

    def _parts(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x₀ ``(1 or n, features)``, α and β̂ ``(1 or n, 1)``."""
        parameters = self.parameters_[None]
        if self.net is not None and context is not None:
            parameters = parameters + self.net(context)
        centre, raw_alpha, raw_beta = parameters.split([self.features, 1, 1], -1)
        alpha = self.DELTA + F.softplus(raw_alpha)
        floor = (1 - self.DELTA) * alpha
        # softplus⁻¹(v) = v + log(1 − e^−v): stable for every v > 0.
        shift = floor + torch.log(-torch.expm1(-floor))
        return centre, alpha, F.softplus(raw_beta + shift) - floor

    def _log_det(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """(D − 1)·log(1 + β̂h) + log(1 + β̂αh²), h = 1/(α + r), at distance ``r (n, 1)``.

        Both arguments are ≥ δ: β̂h ≥ −(1 − δ)·α/(α + r) ≥ −(1 − δ), and αh ≤ 1 makes the second no smaller.
        """
        h = 1 / (alpha + r)
        return ((self.features - 1) * torch.log1p(beta * h) + torch.log1p(beta * alpha * h.square()))[:, 0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._parts(context)
        offset = x - centre
        r = _norm(offset)
        return x + beta * offset / (alpha + r), self._log_det(r, alpha, beta)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # ρ = ‖y − x₀‖ = r·(1 + β̂/(α + r)) gives r² + p·r − αρ = 0 with p = α + β̂ − ρ. The product of its roots,
        # −αρ, is not positive: one root is ≥ 0, and each form below is used where it does not cancel.
        centre, alpha, beta = self._parts(context)
        offset = y - centre
        rho = _norm(offset)
        p = alpha + beta - rho
        q = torch.hypot(p, 2 * (alpha * rho).sqrt())
        r = torch.where(p > 0, 2 * alpha * rho / (q + p.abs()), 0.5 * (q + p.abs()))
        x = centre + offset * (alpha + r) / (alpha + r + beta)
        return x, -self._log_det(r, alpha, beta)


def _norm(x: Tensor) -> Tensor:
    """‖x‖ ``(n, 1)``, kept off 0, where its gradient does not exist."""
    tiny = torch.finfo(x.dtype).tiny
    return x.square().sum(-1, keepdim=True).clamp(min=tiny).sqrt()
