"""The one table of flows: a name → a constructor. The recipe, the model, the tests and ``recipe list`` read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flowcli.flows.autoregressive import Autoregressive
from flowcli.flows.base import BASES, Mixture
from flowcli.flows.bijection import Bijection, Inverted, Permutation
from flowcli.flows.coupling import Coupling
from flowcli.flows.flow import Flow
from flowcli.flows.linear import LU, Triangular
from flowcli.flows.planar import Planar
from flowcli.flows.radial import Radial
from flowcli.flows.transforms import Affine, Spline, Transform


def planar(features: int, context: int, *, layers: int, hidden: Sequence[int]) -> list[Bijection]:
    """A stack of planar layers; ``hidden`` is the width of the network that a context needs."""
    return [Planar(features, context, hidden) for _ in range(layers)]


def radial(features: int, context: int, *, layers: int, hidden: Sequence[int]) -> list[Bijection]:
    """A stack of radial layers; ``hidden`` is the width of the network that a context needs."""
    return [Radial(features, context, hidden) for _ in range(layers)]


def realnvp(
    features: int, context: int, *, layers: int, hidden: Sequence[int], transform: str, bins: int, mixing: str
) -> list[Bijection]:
    """Coupling layers whose masks alternate; ``mixing: lu`` puts a learned linear layer before each but the first."""
    stack: list[Bijection] = []
    for i in range(layers):
        if mixing == "lu" and i:
            stack.append(LU(features))
        stack.append(Coupling(features, context, hidden, _transform(transform, bins), parity=i % 2))
    return stack


def maf(
    features: int,
    context: int,
    *,
    layers: int,
    hidden: Sequence[int],
    transform: str,
    bins: int,
    order: str,
    direction: str,
) -> list[Bijection]:
    """Autoregressive layers. ``order: reverse`` turns the columns round between layers, ``same`` keeps one order."""
    stack: list[Bijection] = []
    for i in range(layers):
        if order == "reverse" and i:
            stack.append(Permutation(torch.arange(features - 1, -1, -1)))
        layer = Autoregressive(features, context, hidden, _transform(transform, bins))
        stack.append(Inverted(layer) if direction == "iaf" else layer)
    return stack


def _transform(name: str, bins: int) -> Transform:
    return Spline(bins) if name == "spline" else Affine()


FLOWS: dict[str, Callable[..., list[Bijection]]] = {
    "planar": planar,
    "radial": radial,
    "realnvp": realnvp,
    "maf": maf,
}


def build(
    type: str, features: int, context: int = 0, *, base: str, components: int, whiten: bool, **options: object
) -> Flow:
    """The flow that a recipe's ``flow:`` section describes, at the identity, for rows of ``features`` columns.

    ``whiten`` puts a :class:`Triangular` layer first.
    """
    stack: list[Bijection] = [Triangular(features)] if whiten else []
    stack += FLOWS[type](features, context, **options)
    return Flow(stack, Mixture(features, components) if base == "mixture" else BASES[base](features))
