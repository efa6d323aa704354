"""The flows of zuko, nflows and normflows that stand beside ours: of the same type, depth, width and bins.

Conditioners have two hidden layers of ``hidden`` units, with SiLU as ours or with the ReLU that those libraries take by
themselves; but in normflows' splines, whose networks are residual: there one block, of two layers. Its masked networks
have no activation after their first layer and get one here. Where a library has no such layer it is left out;
``Reverse`` turns the layers round whose density normflows would compute column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms as nt
import normflows as nf
import torch
import zuko
from torch import Tensor, nn

BINS = 8
BOX = 4.0
Activation = Literal["silu", "relu"]
LAYERS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


class Shape(NamedTuple):
    """A row of the table. ``flow`` is maf, maf spline, realnvp, realnvp spline, planar or radial."""

    flow: str
    features: int
    hidden: int
    layers: int
    batch: int


class Contender(NamedTuple):
    """A flow on a standard Gaussian; ``latent`` is its map from data ``(n, features)`` to latent rows, ``sample`` None
    where it has no inverse."""

    library: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    latent: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor] | None


def peers(shape: Shape, activation: Activation = "silu") -> Iterator[Contender]:
    """Those libraries' flows of that shape that there are."""
    for make in (_zuko, _nflows, _normflows):
        peer = make(shape, activation)
        if peer is not None:
            yield peer


def _zuko(shape: Shape, activation: Activation) -> Contender | None:
    make: dict[str, Callable[..., nn.Module]] = {
        "maf": zuko.flows.MAF,
        "maf spline": lambda d, **options: zuko.flows.NSF(d, bins=BINS, **options),
        "realnvp": zuko.flows.RealNVP,
        "realnvp spline": lambda d, **options: zuko.flows.NSF(d, bins=BINS, passes=2, **options),
    }
    if shape.flow not in make:
        return None
    net = {"hidden_features": [shape.hidden] * 2, "activation": LAYERS[activation]}
    flow = make[shape.flow](shape.features, transforms=shape.layers, **net)
    return Contender(
        "zuko", flow, lambda x: flow().log_prob(x), lambda x: flow().transform(x), lambda n: flow().sample((n,))
    )


class _WithoutContext(nflows.nn.nets.MLP):
    """nflows' couplings hand a context to their networks, which its own MLP does not take."""

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        return super().forward(inputs)


def _nflows(shape: Shape, activation: Activation) -> Contender | None:
    d, h = shape.features, shape.hidden
    made: dict[str, Any] = {"num_blocks": 1, "use_residual_blocks": False, "activation": LAYERS[activation]()}
    box = {"num_bins": BINS, "tails": "linear", "tail_bound": BOX}

    def mlp(inputs: int, outputs: int) -> nn.Module:
        return _WithoutContext((inputs,), (outputs,), [h, h], activation=LAYERS[activation]())

    layers: list[nn.Module] = []
    for i in range(shape.layers):
        mask = (torch.arange(d) + i) % 2
        if shape.flow == "maf":
            layers += [nt.ReversePermutation(d)] if i else []
            layers.append(nt.MaskedAffineAutoregressiveTransform(d, h, **made))
        elif shape.flow == "maf spline":
            layers += [nt.ReversePermutation(d)] if i else []
            layers.append(nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(d, h, **made, **box))
        elif shape.flow == "realnvp":
            layers.append(nt.AffineCouplingTransform(mask, mlp))
        elif shape.flow == "realnvp spline":
            layers.append(nt.PiecewiseRationalQuadraticCouplingTransform(mask, mlp, **box))
        else:
            return None
    flow = nflows.flows.Flow(nt.CompositeTransform(layers), nflows.distributions.StandardNormal([d]))
    return Contender("nflows", flow, flow.log_prob, lambda x: flow._transform(x)[0], flow.sample)


def _normflows(shape: Shape, activation: Activation) -> Contender | None:
    d, h = shape.features, shape.hidden
    half = (d + 1) // 2
    spline: dict[str, Any] = {"num_bins": BINS, "tail_bound": BOX, "activation": LAYERS[activation]}
    layers: list[nn.Module] = []
    for i in range(shape.layers):
        if shape.flow == "maf":
            made = nf.flows.MaskedAffineAutoregressive(
                d, h, num_blocks=1, use_residual_blocks=False, activation=LAYERS[activation]()
            )
            net = made.autoregressive_net
            net.initial_layer = nn.Sequential(net.initial_layer, LAYERS[activation]())
            layers += [nf.flows.Reverse(made), nf.flows.Permute(d, mode="swap")]
        elif shape.flow == "maf spline":
            layers += [
                nf.flows.AutoregressiveRationalQuadraticSpline(d, 1, h, **spline),
                nf.flows.Permute(d, mode="swap"),
            ]
        elif shape.flow == "realnvp":
            net = nf.nets.MLP([half, h, h, 2 * (d - half)], init_zeros=True)
            for at in (1, 3):  # its own are leaky ReLUs with no leak
                net.net[at] = LAYERS[activation]()
            layers += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(d, mode="swap")]
        elif shape.flow == "realnvp spline":
            layers.append(nf.flows.CoupledRationalQuadraticSpline(d, 1, h, **spline, reverse_mask=bool(i % 2)))
        else:
            layer = nf.flows.Planar((d,)) if shape.flow == "planar" else nf.flows.Radial((d,))
            layers.append(nf.flows.Reverse(layer))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(d, trainable=False), layers)
    inverse = shape.flow not in ("planar", "radial")
    return Contender("normflows", flow, flow.log_prob, flow.inverse, (lambda n: flow.sample(n)[0]) if inverse else None)
