"""The one table of flows: a name → a constructor. The recipe, the model, the tests and ``recipe list`` read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowcli.flows.autoregressive import Autoregressive
from flowcli.flows.base import BASES, Base, Gaussian, Mixture, Product
from flowcli.flows.bijection import Bijection, Chain, Inverted, Reversal
from flowcli.flows.coupling import Checkerboard, Coupling
from flowcli.flows.flow import Flow
from flowcli.flows.levels import Cells, Embedding, Levels
from flowcli.flows.linear import LU, ActNorm, Triangular
from flowcli.flows.mixed import Mixed
from flowcli.flows.multiscale import MultiScale, Squeeze
from flowcli.flows.nets import ConvNet, RowNet
from flowcli.flows.planar import Planar
from flowcli.flows.radial import Radial
from flowcli.flows.spread import Spread
from flowcli.flows.transforms import Affine, Spline, Transform

Shape = tuple[int, int, int]  # channels, height, width
SHARED = 16  # planar or radial layers that share a network


def planar(features: int, context: int, *, layers: int, hidden: Sequence[int]) -> list[Bijection]:
    """A stack of planar layers; ``hidden`` is the width of the networks that a context needs."""
    return [Planar(features, some, context, hidden) for some in _stacks(layers, context)]


def radial(features: int, context: int, *, layers: int, hidden: Sequence[int]) -> list[Bijection]:
    """A stack of radial layers; ``hidden`` is the width of the networks that a context needs."""
    return [Radial(features, some, context, hidden) for some in _stacks(layers, context)]


def _stacks(layers: int, context: int) -> list[int]:
    """How many layers each stack has: all, or ``SHARED`` where a context gives every row its own parameters.

    A stack holds those of all its layers at once, and memory must not grow with the layers of a recipe.
    """
    return [min(SHARED, layers - i) for i in range(0, layers, SHARED)] if context else [layers]


def realnvp(
    features: int,
    context: int,
    *,
    layers: int,
    hidden: Sequence[int],
    transform: str,
    bins: int,
    mixing: str,
    levels: int | str,
    shape: Shape | None = None,
) -> list[Bijection]:
    """Coupling layers whose masks alternate; ``mixing: lu`` puts a learned linear layer before each but the first.

    On images: at each scale ``layers`` checkerboard couplings and, but at the last, a squeeze, ``layers`` channel
    couplings and a split (Dinh et al. 2017, section 4.1), each coupling after an ActNorm for the paper's batch norm.
    """
    if shape is None:
        stack: list[Bijection] = []
        for i in range(layers):
            if mixing == "lu" and i:
                stack.append(LU(features))
            changed = range(i % 2, features, 2) if features > 1 else range(1)
            stack.append(_coupling(RowNet, features, changed, context, hidden, _transform(transform, bins)))
        return stack
    channels, height, width = shape
    stages, splits, latents = [], [], []
    last = _halvings(shape, levels)
    for level in range(last + 1):
        stage: list[Bijection] = []
        for i in range(layers):
            bend = _transform(transform, bins)
            net_ = ConvNet(channels, context, hidden, channels, bend.count)
            stage += [ActNorm(channels), Checkerboard(height, width, i % 2, bend, net_)]
        if level < last:
            stage.append(Squeeze())
            channels, height, width = 4 * channels, height // 2, width // 2
            for i in range(layers):
                half = range(channels // 2) if i % 2 else range(channels // 2, channels)
                stage.append(ActNorm(channels))
                stage.append(_coupling(ConvNet, channels, half, context, hidden, _transform(transform, bins)))
            splits.append(_split(channels, context, hidden))
            channels //= 2
        stages.append(Chain(stage))
        latents.append((channels, height, width))
    return [MultiScale(shape, stages, splits, latents), *_prior(features, context)]


def glow(
    features: int,
    context: int,
    *,
    layers: int,
    hidden: Sequence[int],
    transform: str,
    bins: int,
    levels: int | str,
    shape: Shape | None = None,
) -> list[Bijection]:
    """``layers`` steps of ActNorm, 1×1 convolution and coupling (Kingma & Dhariwal 2018), at each of ``levels`` scales.

    On rows the same steps mix columns, without squeezes and splits.
    """

    def steps(channels: int, net: type[RowNet | ConvNet]) -> list[Bijection]:
        half = range(channels // 2, channels)
        stack: list[Bijection] = []
        for _ in range(layers):
            coupling = _coupling(net, channels, half, context, hidden, _transform(transform, bins))
            stack += [ActNorm(channels), LU(channels, rotate=True), coupling]
        return stack

    if shape is None:
        return steps(features, RowNet)
    channels, height, width = shape
    stages, splits, latents = [], [], []
    last = _halvings(shape, levels) - 1
    for level in range(last + 1):
        channels, height, width = 4 * channels, height // 2, width // 2
        stages.append(Chain([Squeeze(), *steps(channels, ConvNet)]))
        if level < last:
            splits.append(_split(channels, context, hidden))
            channels //= 2
        latents.append((channels, height, width))
    return [MultiScale(shape, stages, splits, latents), *_prior(features, context)]


def _halvings(shape: Shape, levels: int | str) -> int:
    """How often images of a shape are squeezed: ``auto`` is as often as both sides can be halved, at most 3 times.

    Raises ValueError when they cannot be halved, or not that often.
    """
    _, height, width = shape
    most = 0
    while height % 2 ** (most + 1) == 0 and width % 2 ** (most + 1) == 0 and min(height, width) > 2 ** (most + 1):
        most += 1
    wanted = min(most, 3) if levels == "auto" else int(levels)
    if not 1 <= wanted <= most:
        raise ValueError(
            f"images of {width}×{height} pixels can be halved {most} times, and this flow halves them {max(wanted, 1)} "
            f"times; say {'flow.levels, or ' if most else ''}data.image.resize"
        )
    return wanted


def _coupling(
    net: type[RowNet | ConvNet],
    features: int,
    changed: range,
    context: int,
    hidden: Sequence[int],
    transform: Transform,
) -> Coupling:
    conditioner = net(features - len(changed), context, hidden, len(changed), transform.count)
    return Coupling(features, changed, transform, conditioner)


def _split(channels: int, context: int, hidden: Sequence[int]) -> Coupling:
    """What the channels that leave are given those that stay: a Gaussian with a learned mean and scale."""
    return _coupling(ConvNet, channels, range(channels // 2, channels), context, [], Affine())


def _prior(features: int, context: int) -> list[Bijection]:
    """A mean and a scale of every latent for each context, as Glow's class-conditional prior has."""
    return [_coupling(RowNet, features, range(features), context, [], Affine())] if context else []


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
            stack.append(Reversal())
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
    "glow": glow,
}
IMAGE_FLOWS = ("realnvp", "glow")  # those that know of pixels; the others see an image as a row of numbers


def build(
    type: str,
    features: int,
    context: int = 0,
    shape: Shape | None = None,
    cells: Sequence[Cells] = (),
    parents: Sequence[int | None] = (),
    *,
    base: str,
    components: int,
    whiten: bool,
    **options: Any,
) -> Flow:
    """The flow that a recipe's ``flow:`` section describes, at its start, for rows of ``features`` columns.

    ``shape`` says that the rows are images. ``cells`` says that the first columns are discrete: the flow of the type
    is then of the others, given these, and need not be where there are no others; ``parents`` names for each one before
    it, or none, that it begins from. ``whiten`` puts a :class:`Triangular` layer first, for other rows than images; of
    those the base has a :class:`Spread` where there is a context. Raises ValueError when a flow cannot take images of
    that shape.
    """
    if type in IMAGE_FLOWS:
        options["shape"] = shape
    continuous = features - len(cells)
    levels = _levels(cells, parents, context, options["hidden"], continuous) if cells else None
    stack: list[Bijection] = []
    if continuous:
        stack += [Triangular(continuous)] if whiten and shape is None else []
        stack += FLOWS[type](continuous, context + (levels.embedding.width if levels else 0), **options)
    latent = _base(base, continuous, components)
    if context and continuous and shape is None:
        latent = Spread(latent)
    return Flow([Mixed(levels, stack)], Product(len(cells), latent)) if levels else Flow(stack, latent)


def _levels(
    cells: Sequence[Cells], parents: Sequence[int | None], context: int, hidden: Sequence[int], continuous: int
) -> Levels:
    # Nothing is conditioned on the last discrete column where no column comes after it.
    return Levels(cells, context, hidden, Embedding(cells if continuous else cells[:-1]), parents)


def _base(name: str, features: int, components: int) -> Base:
    """The base of that name; of no columns, the one without parameters."""
    if not features:
        return Gaussian(0)
    return Mixture(features, components) if name == "mixture" else BASES[name](features)
