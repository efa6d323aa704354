"""Coupling layers: RealNVP (Dinh et al. 2017), Glow (Kingma & Dhariwal 2018), neural splines (Durkan et al. 2019)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.flows.bijection import Bijection, together
from flowcli.flows.nets import Conditioner
from flowcli.flows.transforms import Transform

Direction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Changed(Bijection):
    """Part of each row changes by a transform whose parameters a network gives from the rest: the same way round and
    back."""

    def __init__(self, transform: Transform, net: Conditioner) -> None:
        super().__init__()
        self.transform = transform
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._change(x, context, self.transform.forward)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._change(y, context, self.transform.inverse)

    @abstractmethod
    def _change(self, x: Tensor, context: Tensor | None, transform: Direction) -> tuple[Tensor, Tensor]:
        """Rows with their part changed by ``transform``, and the log-determinant."""


class Coupling(_Changed):
    """Some of the columns (or channels) pass unchanged and, with the context, condition the transform of the others.

    ``changed`` says which change: one half, or every second; ``net`` reads the others and gives
    ``(n, changed, …, count)`` parameters. When all change, they do so given the context alone. Both directions cost one
    pass of the network.
    """

    def __init__(self, features: int, changed: range, transform: Transform, net: Conditioner) -> None:
        super().__init__(transform, net)
        kept = [i for i in range(features) if i not in changed]
        self.changed = changed
        self.kept = slice(kept[0], kept[-1] + 1, changed.step) if kept else slice(0, 0)

    def _change(self, x: Tensor, context: Tensor | None, transform: Direction) -> tuple[Tensor, Tensor]:
        start, stop, step = self.changed.start, self.changed.stop, self.changed.step
        x = together(x)
        changed, log_slope = transform(x[:, start:stop:step], self.net(x[:, self.kept], context))
        return x.slice_scatter(changed, 1, start, stop, step), log_slope.flatten(1).sum(1)


class Checkerboard(_Changed):
    """A coupling of neighbouring pixels: those of one colour of a checkerboard change, given those of the other
    (Dinh et al. 2017, section 3.4). ``parity`` says which."""

    keeps: Tensor

    def __init__(self, height: int, width: int, parity: int, transform: Transform, net: Conditioner) -> None:
        super().__init__(transform, net)
        colour = torch.arange(height)[:, None] + torch.arange(width)[None, :]
        self.register_buffer("keeps", colour % 2 == parity, persistent=False)

    def _change(self, x: Tensor, context: Tensor | None, transform: Direction) -> tuple[Tensor, Tensor]:
        zero = x.new_zeros(())
        changed, log_slope = transform(x, self.net(torch.where(self.keeps, x, zero), context))
        return torch.where(self.keeps, x, changed), torch.where(self.keeps, zero, log_slope).flatten(1).sum(1)
