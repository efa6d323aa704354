"""Where a flow begins: on the target's mass, with its centre, spread and correlations, and on all of its peaks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowcli.errors import TrainingError
from flowcli.flows.base import HALF_LOG_2PI, Gaussian
from flowcli.flows.flow import Flow
from flowcli.flows.linear import Triangular
from flowcli.variational.ascent import POOL, Ascent, Plan
from flowcli.variational.pathfinder import Gaussians, paths, polished
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import truncated

STARTS = 64  # half of them near, half far
NEAR, FAR = 2.0, 8.0
MAX_NUMBERS = 1 << 24  # in the paths' matrices
APART = 3.0  # standard deviations between peaks that are two
LEVEL = 0.3  # of the gradient, in the peak's own units: it is a peak
FAINT = 12.0  # nats below the highest: not a peak that matters
GAUSSIAN = Plan(draws=64, lr=0.05, clip=5.0, patience=2, epochs=12, forward=0.0)
ROUNDS = 2


@dataclass(frozen=True)
class Start:
    """``mean (d,)`` and lower ``factor (d, d)`` of a covariance; draws ``(m, d)`` of all peaks where there are several,
    and how many there are."""

    mean: Tensor
    factor: Tensor
    pool: Tensor | None
    peaks: int


def find(density: LogDensity, generator: torch.Generator) -> Start:
    """Look for the target's mass. Raises TrainingError when the target is finite at no start."""
    d = density.space.features
    k = max(4, min(STARTS, MAX_NUMBERS // d**2))
    reach = torch.where(torch.arange(k) % 2 == 0, NEAR, FAR)[:, None]
    starts = reach * (2 * torch.rand(k, d, generator=generator, dtype=torch.float64) - 1)
    starts[0] = 0.0
    found = paths(density.slope, starts, generator)
    if not found.elbo.isfinite().any():
        raise TrainingError(
            f"{density.target.file}: {density.target.function} is finite at none of {k} starts; it returns NaN or "
            f"infinity, or its parameters need other bounds."
        )
    found = polished(density.slope, found, generator)
    which = peaks(density, found)
    if len(which) > 1:
        return _together(density, found, which, generator)
    best = int(found.elbo.argmax())
    mean, factor = found.mean[best], found.factor[best]
    for _ in range(ROUNDS):
        mean, factor = _gaussian(density, mean, factor, generator)
    return Start(mean, factor, None, len(which))


def peaks(density: LogDensity, found: Gaussians) -> list[int]:
    """Which of the Gaussians sit on peaks of their own: level, apart from those that are higher, and not faint."""
    _, gradient = density.slope(found.mean)
    level = (found.factor.mT @ gradient[..., None])[..., 0].norm(dim=1) < LEVEL
    kept: list[int] = []
    for i in found.elbo.argsort(descending=True).tolist():
        bright = found.elbo[i] > found.elbo.max() - FAINT
        if level[i] and bright and all(_distance(found, i, j) > APART for j in kept):
            kept.append(i)
    return kept


def _distance(found: Gaussians, i: int, j: int) -> float:
    """Between two centres, in the wider one's standard deviations."""
    way = (found.mean[i] - found.mean[j])[:, None]
    ways = [torch.linalg.solve_triangular(found.factor[k], way, upper=False) for k in (i, j)]
    return min(float(w.norm()) for w in ways)


def _together(density: LogDensity, found: Gaussians, which: list[int], generator: torch.Generator) -> Start:
    """The start on several peaks: importance draws from the mixture of their Gaussians."""
    mean, factor = found.mean[which], found.factor[which]
    k, d = mean.shape
    shares = 0.5 * torch.softmax(found.elbo[which], 0) + 0.5 / k
    picked = torch.multinomial(shares, POOL, replacement=True, generator=generator)
    z = torch.randn(POOL, d, 1, generator=generator, dtype=mean.dtype)
    u = mean[picked] + (factor[picked] @ z)[..., 0]
    each = torch.linalg.solve_triangular(factor, (u - mean[:, None]).mT, upper=False).square().sum(1)
    log_scale = factor.diagonal(dim1=1, dim2=2).log().sum(1) + d * HALF_LOG_2PI
    log_q = torch.logsumexp(shares.log()[:, None] - 0.5 * each - log_scale[:, None], 0)
    weights = truncated(density(u).detach() - log_q)
    centre = weights @ u
    covariance = (u - centre).T @ (weights[:, None] * (u - centre))
    covariance = covariance + torch.diag(1e-6 * covariance.diagonal())  # few draws may hold all the weight
    pool = u[torch.multinomial(weights, POOL, replacement=True, generator=generator)]
    return Start(centre, torch.linalg.cholesky(covariance), pool, k)


def _gaussian(density: LogDensity, mean: Tensor, factor: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The Gaussian of the highest ELBO, from another on: the best start where the target has no peak, as a funnel."""
    change = Triangular(len(mean))
    flow = Flow([whitening(mean, factor), change], Gaussian(len(mean))).double()
    Ascent(flow, density, GAUSSIAN, generator).run()
    with torch.no_grad():
        origin = torch.zeros(1, len(mean), dtype=mean.dtype)
        centre, _ = change.inverse(origin)
        columns, _ = change.inverse(torch.eye(len(mean), dtype=mean.dtype))
        return mean + factor @ centre[0], factor @ (columns - centre).T


def whitening(mean: Tensor, factor: Tensor) -> Triangular:
    """The fixed layer that takes N(mean, F Fᵀ) to the standard Gaussian, for lower-triangular F."""
    layer = Triangular(len(mean)).double()
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(mean), dtype=factor.dtype), upper=False)
    with torch.no_grad():
        layer.mean.copy_(mean)
        layer.log_diagonal.copy_(inverse.diagonal().log())
        layer.lower.copy_(inverse.tril(-1))
    return layer.requires_grad_(False)
