"""Where a target's mass is: many quasi-Newton paths uphill at once, each with a Gaussian wherever it has been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcli.flows.base import HALF_LOG_2PI

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows → log-densities and gradients
REACH = 2.0  # starts are uniform in ±REACH, as Stan's are
STEPS = 200
SHRINKS = 25  # halvings of a step, at most
DRAWS = 16  # a place, for its ELBO
ENOUGH = 1e-4  # Armijo's share of the promised rise
NUDGE = 1e-3  # of a standard deviation, for differences
STILL = 1e-8  # a path ends where the promised rise is smaller


@dataclass
class Gaussians:
    """Several Gaussians, ``mean (k, d)`` and lower factors ``factor (k, d, d)`` of their covariances, and what is
    thought of each: its ELBO ``(k,)``."""

    mean: Tensor
    factor: Tensor
    elbo: Tensor


def paths(slope: Slope, starts: Tensor, generator: torch.Generator) -> Gaussians:
    """For each start ``(k, d)``, the Gaussian of the highest ELBO along its BFGS path (Zhang et al. 2022, Pathfinder).

    At a place x with gradient g and inverse Hessian estimate H, it is N(x + H g, H). The density of a funnel has no
    maximum, and yet its path passes places from which the mass is seen well. All paths are one batch.
    """
    x, (value, gradient) = starts, slope(starts)
    k, d = x.shape
    inverse = _plain(gradient)
    best = Gaussians(x.clone(), inverse.sqrt(), x.new_full((k,), -torch.inf))
    plain = torch.ones(k, dtype=torch.bool)  # whose estimate knows of no curvature yet
    over = torch.zeros_like(plain)
    for _ in range(STEPS):
        direction = (inverse @ gradient[..., None])[..., 0]
        promised = (direction * gradient).sum(1)
        going = (promised > STILL) & value.isfinite() & ~over
        if not going.any():
            break
        new, new_value, new_gradient, moved = _step(slope, x, value, direction, promised, going)
        s, y = new - x, gradient - new_gradient
        curved = moved & ((s * y).sum(1) > 1e-12 * s.norm(dim=1) * y.norm(dim=1))
        # The first estimate's scale is that of the first step's curvature (Nocedal & Wright 2006, equation 6.20).
        scaled = torch.eye(d, dtype=x.dtype) * ((s * y).sum(1) / y.square().sum(1))[:, None, None]
        inverse = torch.where((curved & plain)[:, None, None], scaled, inverse)
        inverse = torch.where(curved[:, None, None], _updated(inverse, s, y), inverse)
        # Where the estimate misleads, once more straight uphill; where even that leads nowhere, the path ends.
        stuck = going & ~moved
        over = over | (stuck & plain)
        inverse = torch.where(stuck[:, None, None], _plain(gradient), inverse)
        plain = (plain & ~curved) | stuck
        x, value = torch.where(moved[:, None], new, x), torch.where(moved, new_value, value)
        gradient = torch.where(moved[:, None], new_gradient, gradient)
        _judge(slope, best, x, gradient, inverse, moved, generator)
    return best


def _plain(gradient: Tensor) -> Tensor:
    """Inverse Hessian estimates ``(k, d, d)`` with which a first step is no longer than 1."""
    k, d = gradient.shape
    size = gradient.norm(dim=1).clamp(min=1.0)[:, None, None]
    estimate: Tensor = torch.eye(d, dtype=gradient.dtype).expand(k, d, d) / size
    return estimate


def polished(slope: Slope, found: Gaussians, generator: torch.Generator, rounds: int = 4) -> Gaussians:
    """Newton steps from each Gaussian's centre, each kept where it raises the ELBO: Laplace's approximation, wherever
    the density has a peak.

    The Hessian is taken by central differences of gradients along the columns of the factor, in which it is near −I
    however badly the parameters are scaled.
    """
    k, d = found.mean.shape
    for _ in range(rounds):
        shifts = NUDGE * found.factor.mT  # one for each direction
        ends = torch.cat([found.mean[:, None] + shifts, found.mean[:, None] - shifts, found.mean[:, None]], 1)
        value, gradient = slope(ends.reshape(-1, d))
        gradient = gradient.view(k, 2 * d + 1, d)
        curvature = (gradient[:, d : 2 * d] - gradient[:, :d]) @ found.factor / (2 * NUDGE)
        lower, failed = torch.linalg.cholesky_ex((curvature + curvature.mT) / 2)
        usable = (failed == 0) & value.view(k, -1).isfinite().all(1)
        lower = torch.where(usable[:, None, None], lower, torch.eye(d, dtype=lower.dtype))
        # With −∇² = F⁻ᵀ (L Lᵀ) F⁻¹, a factor of the covariance is F L⁻ᵀ.
        factor = torch.linalg.solve_triangular(lower.mT, found.factor, upper=True, left=False)
        covariance = factor @ factor.mT
        factor, failed = torch.linalg.cholesky_ex(covariance)
        mean = found.mean + (covariance @ gradient[:, 2 * d, :, None])[..., 0]
        usable = usable & (failed == 0) & mean.isfinite().all(1)
        rows = usable.nonzero()[:, 0]
        if len(rows) == 0:
            break
        elbo = expected(slope, mean[rows], factor[rows], generator)
        better = elbo > found.elbo[rows]
        kept = rows[better]
        found.mean[kept], found.factor[kept], found.elbo[kept] = mean[kept], factor[kept], elbo[better]
        if not better.any():
            break
    return found


def _step(
    slope: Slope, x: Tensor, value: Tensor, direction: Tensor, promised: Tensor, going: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each path the longest of the steps 1, ½, ¼ … that keeps Armijo's promise; where it leads, and if any did."""
    size = torch.ones_like(value)
    best_x, best_value, best_gradient = x.clone(), value.clone(), torch.zeros_like(x)
    waiting = going.clone()
    for _ in range(SHRINKS):
        rows = waiting.nonzero()[:, 0]
        new = x[rows] + size[rows, None] * direction[rows]
        new_value, new_gradient = slope(new)
        good = new_value >= value[rows] + ENOUGH * size[rows] * promised[rows]
        done = rows[good]
        best_x[done], best_value[done], best_gradient[done] = new[good], new_value[good], new_gradient[good]
        waiting[done] = False
        size = size / 2
        if not waiting.any():
            break
    return best_x, best_value, best_gradient, going & ~waiting


def _updated(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """BFGS: H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ with ρ = 1/(sᵀy), which keeps H positive definite for sᵀy > 0."""
    sy = (s * y).sum(1)[:, None, None]
    s, y = s[..., None], y[..., None]
    hy = inverse @ y
    return inverse - (hy @ s.mT + s @ hy.mT) / sy + s @ s.mT * (1 + y.mT @ hy / sy) / sy


def _judge(
    slope: Slope,
    best: Gaussians,
    x: Tensor,
    gradient: Tensor,
    inverse: Tensor,
    moved: Tensor,
    generator: torch.Generator,
) -> None:
    """Keep the Gaussians of this step that have a higher ELBO than those before."""
    factor, failed = torch.linalg.cholesky_ex((inverse + inverse.mT) / 2)
    rows = (moved & (failed == 0)).nonzero()[:, 0]
    if len(rows) == 0:
        return
    mean = x[rows] + (inverse[rows] @ gradient[rows, :, None])[..., 0]
    elbo = expected(slope, mean, factor[rows], generator)
    better = elbo > best.elbo[rows]
    kept = rows[better]
    best.mean[kept], best.factor[kept], best.elbo[kept] = mean[better], factor[kept], elbo[better]


def expected(slope: Slope, mean: Tensor, factor: Tensor, generator: torch.Generator) -> Tensor:
    """The ELBO ``(k,)`` of Gaussians, from a few antithetic draws of each."""
    k, d = mean.shape
    z = torch.randn(k, DRAWS // 2, d, generator=generator, dtype=mean.dtype)
    z = torch.cat([z, -z], 1)
    u = mean[:, None] + z @ factor.mT
    value = slope(u.reshape(-1, d))[0].view(k, DRAWS)
    log_q = -0.5 * z.square().sum(2) - factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None] - d * HALF_LOG_2PI
    return (value - log_q).mean(1)
