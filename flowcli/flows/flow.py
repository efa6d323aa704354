"""A flow: bijections in order, and a base distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowcli.flows.base import Base
from flowcli.flows.bijection import Bijection, Chain
from flowcli.flows.mixed import Mixed
from flowcli.flows.multiscale import MultiScale
from flowcli.flows.spread import Spread


class Flow(nn.Module):
    """log p(x | c) = log p_base(f(x, c)) + log|det ∂f/∂x|, with f the layers from data to latent.

    Works on rows ``(n, features)`` and contexts ``(n, context)`` in float32 or float64.
    """

    def __init__(self, layers: Iterable[Bijection], base: Base) -> None:
        super().__init__()
        self.bijection = Chain(layers)
        self.base = base

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as :meth:`log_prob`: what a wrapper that calls modules (DDP, compile) sees."""
        z, log_det = self.bijection(x, context)
        log_prob: Tensor = self.base.log_prob(z) + log_det
        return log_prob

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(n,)`` in nats of rows in the flow's own units."""
        log_prob: Tensor = self(x, context)
        return log_prob

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor | None = None) -> None:
        """Let every layer set what it begins from data; ``x`` are training rows in the flow's own precision."""
        self.bijection.start(x, context)

    @torch.no_grad()
    def under_choices(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What hangs on each of :attr:`spreads` of log-densities of rows, with every choice for it: ``(spreads ·
        choices, n)``. See :mod:`flowcli.flows.spread`."""
        found = []
        for layer in self.bijection:
            if isinstance(layer, Mixed) and layer.levels.log_spread is not None:
                found.append(layer.levels.under_choices(x[:, : layer.levels.features], context))
        for base in self.base.modules():
            if isinstance(base, Spread):
                found.append(base.under_choices(self.bijection(x, context)[0][:, -base.features :]))
        return torch.cat(found)

    @property
    def spreads(self) -> list[Tensor]:
        """The s of each part that has one: zero until they are set."""
        return [tensor for name, tensor in self.named_buffers() if name.endswith("log_spread")]

    @property
    def latent_sizes(self) -> list[int]:
        """How many numbers of a latent row each scale has, finest first; all, where there is but one."""
        for layer in self.bijection:
            if isinstance(layer, MultiScale):
                return [math.prod(shape) for shape in layer.latents]
        return [self.base.features]

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """``n`` rows; with a context ``(n, context)``, one for each of its rows."""
        x, _ = self.bijection.inverse(self.base.sample(n, generator, temperature), context)
        return x
