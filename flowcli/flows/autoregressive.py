"""Masked autoregressive layers (Papamakarios et al. 2017, MAF; Kingma et al. 2016, IAF)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcli.flows.bijection import Bijection, together
from flowcli.flows.nets import MADE
from flowcli.flows.transforms import Transform


class Autoregressive(Bijection):
    """y_i = τ(x_i; parameters(x_1 … x_{i−1}, context)): the Jacobian is triangular, its log-determinant a sum.

    ``forward`` is one pass of the MADE. ``inverse`` walks the columns in order and costs one pass's arithmetic too.
    """

    def __init__(self, features: int, context: int, hidden: Sequence[int], transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.net = MADE(features, context, hidden, transform.count)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = together(x)
        y, log_slope = self.transform.forward(x, self.net(x, context))
        return y, log_slope.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        walk = self.net.walk(y, context)
        columns, log_slopes = [], []
        for column in y.T.contiguous():
            x, log_slope = self.transform.inverse(column, walk.parameters().T)
            walk.append(x[None])
            columns.append(x)
            log_slopes.append(log_slope)
        return torch.stack(columns).T, torch.stack(log_slopes).sum(0)
