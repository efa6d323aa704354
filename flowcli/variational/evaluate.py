"""Whether a posterior can be trusted, in figures and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flowcli.variational.posterior import Posterior, seeded
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import effective, importance_draws, plain_draws, smoothed

DRAWS = 20_000
GOOD, USABLE = 0.5, 0.7  # of k̂ (Vehtari et al. 2024)
NEAR = 0.01  # nats between the flow and the posterior: draws may go without weights
FEW = 0.1  # of the draws that are effectively left: more of them are needed


@dataclass(frozen=True)
class Verdict:
    """How near a flow is to its target. All in nats but ``k_hat`` and ``effective_sample_size``.

    ``evidence`` is the logarithm of the target's integral, by importance sampling; ``divergence`` = evidence − ELBO is
    KL(q‖p), how far the flow itself is off.
    """

    draws: int
    elbo: float
    elbo_error: float
    evidence: float
    evidence_error: float
    divergence: float
    k_hat: float
    effective_sample_size: float
    finite: float
    trust: str

    @property
    def as_they_are(self) -> bool:
        """Whether draws may go without weights."""
        return _as_they_are(self.k_hat, self.divergence, self.finite)


def evaluate(posterior: Posterior, density: LogDensity, draws: int = DRAWS, seed: int = 0) -> Verdict:
    """Measure a posterior. The ELBO is that of the flow's own draws where the target is finite, ``finite`` the share of
    these. Raises UsageError without arviz-stats, TrainingError when hardly any draw has a finite weight."""
    own = plain_draws(posterior.flow, density, draws, seeded(seed, 0)).log_weights.numpy()
    inside = np.isfinite(own)
    raw = importance_draws(posterior.flow, density, draws, seeded(seed, 1)).log_weights
    log_weights, shape = smoothed(raw)
    weights, left = np.exp(log_weights), effective(log_weights)
    # Smoothed weights have the mean 1. Most are not changed by smoothing but for that constant, the evidence.
    evidence = float(np.median(raw.numpy()[np.isfinite(raw.numpy())] - log_weights[np.isfinite(raw.numpy())]))
    elbo = float(own[inside].mean()) if inside.any() else -math.inf
    return Verdict(
        draws=draws,
        elbo=elbo,
        elbo_error=float(own[inside].std()) / math.sqrt(max(inside.sum(), 1)),
        evidence=evidence,
        evidence_error=float(weights.std()) / math.sqrt(draws),  # of log (1/n) Σ w, by the delta method
        divergence=evidence - elbo,
        k_hat=shape,
        effective_sample_size=left,
        finite=float(inside.mean()),
        trust=_words(shape, evidence - elbo, left / draws, float(inside.mean())),
    )


def _as_they_are(shape: float, divergence: float, finite: float) -> bool:
    return shape < GOOD and divergence < NEAR and finite > 1 - 1e-3


def _words(shape: float, divergence: float, left: float, finite: float) -> str:
    if not shape < USABLE:
        return (
            f"no: k-hat is {shape:.2f}, and from 0.7 on neither weights nor these figures can be relied on; a larger "
            f"flow, more epochs or other parameters may help"
        )
    few = f", though only {left:.0%} of the draws are effectively left" if left < FEW else ""
    if _as_they_are(shape, divergence, finite):
        return f"yes: draws may be used as they are, and with --resample they are closer still{few}"
    how = "yes" if shape < GOOD else "yes, with care"
    return f"{how}: with --resample or --weights{few}; draws without are off by {max(divergence, 0):.2g} nats"
