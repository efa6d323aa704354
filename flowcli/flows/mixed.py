"""Rows of discrete and continuous columns: p(x) = p(discrete) · p(continuous | discrete)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flowcli.flows.bijection import Bijection, Chain
from flowcli.flows.levels import Levels


class Mixed(Bijection):
    """:class:`Levels` on the first columns and any other layers on the rest, which see the first in their context.

    Jacobian: the rest's layers see only the discrete columns' codes, which are constant within a cell, so it is block
    diagonal and its log-determinant the sum of both.
    """

    def __init__(self, levels: Levels, layers: Iterable[Bijection]) -> None:
        super().__init__()
        self.levels = levels
        self.rest = Chain(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        discrete, rest = self._split(x)
        y, log_det = self.levels(discrete, context)
        y_rest, log_det_rest = self.rest(rest, self._context(discrete, context))
        return torch.cat([y, y_rest], 1), log_det + log_det_rest

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        discrete, rest = self._split(y)
        x, log_det = self.levels.inverse(discrete, context)
        x_rest, log_det_rest = self.rest.inverse(rest, self._context(x, context))
        return torch.cat([x, x_rest], 1), log_det + log_det_rest

    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        discrete, rest = self._split(x)
        y_rest = self.rest.start(rest, self._context(discrete, context))
        return torch.cat([self.levels.start(discrete, context), y_rest], 1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.levels.features], x[:, self.levels.features :]

    def _context(self, discrete: Tensor, context: Tensor | None) -> Tensor:
        """The context ``(n, context + width)`` of the rest: the discrete columns ``(n, D)`` beside what was given."""
        embedded: Tensor = self.levels.embedding(self.levels.codes(discrete))
        return embedded if context is None else torch.cat([context, embedded], 1)
