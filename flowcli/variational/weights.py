"""Importance weights: what a flow's draws are worth under its target, and whether they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.errors import TrainingError, UsageError
from flowcli.flows.flow import Flow
from flowcli.variational.target import LogDensity

WIDE_SHARE = 0.1  # of the importance draws are spread
WIDE = 1.25  # times as far
CHUNK = 4096  # rows at once


@dataclass(frozen=True)
class Draws:
    """Unconstrained rows ``u (n, d)`` and log p(u) − log of the density they were drawn from, ``(n,)``."""

    u: Tensor
    log_weights: Tensor


def truncated(log_weights: Tensor) -> Tensor:
    """Normalised weights ``(n,)``, each at most 1/√n before the last normalisation (Ionides 2008), for steps that one
    draw must not decide. Zero everywhere where no draw has a finite weight."""
    if not (log_weights > -torch.inf).any():
        return torch.zeros_like(log_weights)
    share = torch.softmax(log_weights, 0).clamp(max=len(log_weights) ** -0.5)
    return share / share.sum()


@torch.no_grad()
def plain_draws(flow: Flow, density: LogDensity, n: int, generator: torch.Generator) -> Draws:
    """Draws of the flow itself: the mean of their log-weights is the ELBO."""
    return _drawn(flow, density, n, generator, share=0.0)


@torch.no_grad()
def importance_draws(flow: Flow, density: LogDensity, n: int, generator: torch.Generator) -> Draws:
    """Draws of which a share comes from the flow with its latent spread wider, and weights under the mixture of both:
    no weight is then greater than 1/(1 − share) times the flow's own, and those in the tails are smaller (Hesterberg
    1995, defensive importance sampling)."""
    return _drawn(flow, density, n, generator, WIDE_SHARE)


def _drawn(flow: Flow, density: LogDensity, n: int, generator: torch.Generator, share: float) -> Draws:
    parts = []
    for start in range(0, n, CHUNK):
        z = flow.base.sample(min(CHUNK, n - start), generator)
        if share:
            wide = torch.rand(len(z), generator=generator) < share
            z = torch.where(wide[:, None], WIDE * z, z)
        x, log_det = flow.bijection.inverse(z)
        log_q = flow.base.log_prob(z)
        if share:
            log_wide = flow.base.log_prob(z / WIDE) - z.shape[1] * math.log(WIDE)
            log_q = torch.logaddexp(log_q + math.log1p(-share), log_wide + math.log(share))
        u = x.double()
        parts.append((u, density(u) - (log_q - log_det).double()))
    rows, log_weights = zip(*parts, strict=True)
    return Draws(torch.cat(rows), torch.cat(log_weights))


def smoothed(log_weights: Tensor) -> tuple[NDArray[np.float64], float]:
    """Pareto-smoothed log-weights ``(n,)`` whose weights have the mean 1, and the tail's shape k̂ (Vehtari et al.
    2024).

    Raises UsageError without arviz-stats, TrainingError when no draw has a finite weight.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        raise UsageError(
            "Pareto-smoothed weights are computed by arviz-stats, which is not installed: pip install 'flowcli[vi]'."
        ) from None
    values = log_weights.numpy().astype(np.float64)
    finite = np.isfinite(values)
    if finite.sum() < 100:
        raise TrainingError(f"only {finite.sum()} of {len(values)} draws have a finite weight; the fit has failed.")
    values = values - values[finite].max()
    spread = float(np.ptp(values[finite]))
    if spread < 1e-8 and finite.all():  # q = p up to rounding: there is no tail to fit
        return np.zeros_like(values), 0.0
    values = np.where(finite, values, -spread - 700)  # exp(−700) is as good as 0
    with np.errstate(divide="ignore", invalid="ignore"):  # k̂ is NaN then, which nobody takes for a good one
        result, shape = array_stats.psislw(-values)  # as of log-likelihoods, whose weights are their inverses
    result = result - result.max()
    return result - math.log(np.exp(result).mean()), float(shape)


def effective(log_weights: NDArray[np.float64]) -> float:
    """The effective sample size (Σ w)²/Σ w²."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / np.square(weights).sum())


def evenly(log_weights: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` places drawn in proportion to the weights, by systematic resampling: place i is drawn ⌊n wᵢ⌋ or ⌈n wᵢ⌉
    times. In random order."""
    weights = np.exp(log_weights - log_weights.max())
    edges = np.cumsum(weights / weights.sum())
    places = np.searchsorted(edges, (rng.random() + np.arange(n)) / n, side="right").clip(max=len(weights) - 1)
    found: NDArray[np.int64] = rng.permutation(places)
    return found
