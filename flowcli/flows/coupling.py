"""Coupling layers: RealNVP (Dinh et al. 2017) and neural spline coupling (Durkan et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowcli.flows.bijection import Bijection
from flowcli.flows.nets import MLP
from flowcli.flows.transforms import Transform

Direction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Coupling(Bijection):
    """One part of the columns passes unchanged and, with the context, conditions the transform of the other part.

    ``parity`` says which columns change: the even ones (0) or the odd ones (1). A single column always changes, given
    the context alone. Both directions cost one pass of the network.
    """

    changed: Tensor
    kept: Tensor
    back: Tensor

    def __init__(
        self, features: int, context: int, hidden: Sequence[int], transform: Transform, parity: int = 0
    ) -> None:
        super().__init__()
        changed = [i for i in range(features) if i % 2 == parity or features == 1]
        kept = [i for i in range(features) if i not in changed]
        back = sorted(range(features), key=(changed + kept).__getitem__)
        self.register_buffer("changed", torch.tensor(changed), persistent=False)
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.long), persistent=False)
        self.register_buffer("back", torch.tensor(back), persistent=False)
        self.transform = transform
        self.net = MLP(len(kept) + context, hidden, len(changed) * transform.count)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._change(x, context, self.transform.forward)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._change(y, context, self.transform.inverse)

    def _change(self, x: Tensor, context: Tensor | None, transform: Direction) -> tuple[Tensor, Tensor]:
        changed, kept = x[:, self.changed], x[:, self.kept]
        given = kept if context is None else torch.cat([kept, context], 1)
        parameters = self.net(given).view(-1, len(self.changed), self.transform.count)
        changed, log_slope = transform(changed, parameters)
        return torch.cat([changed, kept], 1)[:, self.back], log_slope.sum(-1)
