"""How wide a conditional flow's densities are, set once more by rows that it has not learned from.

On its training rows a flow may seem surer of what the context tells than it is; with noise on them, less sure. One
number e^s mends that (temperature scaling: Guo et al. 2017): the base is so many times as wide, and what the context
tells of discrete columns counts so much less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowcli.flows.base import Base

CHOICES = torch.linspace(-1, 1, 41, dtype=torch.float64)  # of s


def widest_as_good(log_probs: Tensor) -> Tensor:
    """The s to take by log-densities ``(len(CHOICES), rows)`` of held-out rows.

    The greatest that falls short of the likeliest by no more than the standard error of the rows' differences (Breiman
    et al. 1984, section 3.4.3). The likeliest itself is too small: the epoch, too, was chosen for these few rows.
    """
    best, rows = int(log_probs.mean(1).argmax()), log_probs.shape[1]
    if rows < 2:
        return CHOICES.new_zeros(())
    loss = log_probs[best] - log_probs
    return CHOICES[loss.mean(1) <= loss.std(1) / math.sqrt(rows)].max()


class Spread(Base):
    """Another base, e^s times as wide: z = e^s·z′."""

    log_spread: Tensor

    def __init__(self, narrow: Base) -> None:
        super().__init__(narrow.features)
        self.narrow = narrow
        self.register_buffer("log_spread", torch.zeros(()))

    def log_prob(self, z: Tensor) -> Tensor:
        log_prob: Tensor = self.narrow.log_prob(z * torch.exp(-self.log_spread)) - self.features * self.log_spread
        return log_prob

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.log_spread.exp() * self.narrow.sample(n, generator, temperature)

    def under_choices(self, z: Tensor) -> Tensor:
        """Log-densities ``(len(CHOICES), n)`` with each s; the last stays."""
        found = []
        for choice in CHOICES.tolist():
            self.log_spread.fill_(choice)
            found.append(self.log_prob(z))
        return torch.stack(found)
