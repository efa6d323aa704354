"""Conditioners: the networks that give a layer its parameters. Their last layer starts at zero."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.perceptron import Layer, Stairs, perceptron, seen
from flowcli.flows.walk import Differentiable, InPlace, Walk

STEPS, SHORTEST, LEAST = 4, 40, 1 << 13  # of a masked layer's stairs: how many, their units and their weights


class MLP(nn.Module):
    """A plain network ``(n, inputs) → (n, outputs)`` whose last layer starts at zero.

    ``inputs`` may be 0: the output is then one learned vector for all rows.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        widths = [inputs, *hidden] if inputs else [0]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.weight = nn.Parameter(torch.zeros(outputs, widths[-1]))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = [Layer(layer.weight, layer.bias) for layer in self.hidden if isinstance(layer, nn.Linear)]
        return perceptron(x.T, [*hidden, Layer(self.weight, self.bias)]).T

    def around(self, start: Tensor, x: Tensor) -> Tensor:
        """The outputs, in pieces as long as the rows of ``start (m, size)`` and added to them: ``(m, n, size)``, each
        column's values together."""
        pieces: Tensor = self(x).T.unflatten(0, start.shape) + start[..., None]
        return pieces.transpose(1, 2)


class Conditioner(nn.Module, ABC):
    """What gives a coupling its parameters ``(n, changed, …, count)`` from what it keeps ``(n, kept, …)``."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The parameters."""


class RowNet(Conditioner):
    """A conditioner of rows: an :class:`MLP` of the kept columns and the context."""

    def __init__(self, kept: int, context: int, hidden: Sequence[int], changed: int, count: int) -> None:
        super().__init__()
        self.shape = (changed, count)
        self.net = MLP(kept + context, hidden, changed * count)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        parameters: Tensor = self.net(x if context is None else torch.cat([x, context], 1))
        shaped: Tensor = parameters.unflatten(1, self.shape)
        return shaped


class ConvNet(Conditioner):
    """A conditioner of images: 3×3, 1×1 …, 3×3 convolutions (Glow, section 4), the last of which starts at zero.

    The context is added to the first hidden layer, the same at every pixel. Without hidden layers one convolution is
    left. Pixels are bounded, so it sees them as they are. The 1×1 convolutions are products with the channels of every
    pixel, which lie together. With ``mixed`` set, all of it is computed in bfloat16 while training.
    """

    mixed = False

    def __init__(self, kept: int, context: int, hidden: Sequence[int], changed: int, count: int) -> None:
        super().__init__()
        self.changed, self.count = changed, count
        widths = [kept, *hidden]
        self.first = nn.Conv2d(kept, hidden[0], 3, padding=1) if hidden else None
        self.context = nn.Linear(context, widths[1], bias=False) if context and hidden else None
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.last = nn.Conv2d(widths[-1], changed * count, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed and self.training):
            parameters = self._pixels(x, context)
        n, _, height, width = x.shape
        return parameters.to(x.dtype).view(n, self.changed, self.count, height, width).movedim(2, -1)

    def _pixels(self, x: Tensor, context: Tensor | None) -> Tensor:
        n, _, height, width = x.shape
        if self.first is not None:
            x = self.first(x)
            if self.context is not None and context is not None:
                x = x + self.context(context)[:, :, None, None]
            x = F.relu(x, inplace=True).movedim(1, -1).flatten(0, 2)
            for layer in self.rest:
                x = F.relu(layer(x), inplace=True)
            x = x.view(n, height, width, -1).movedim(-1, 1)
        out: Tensor = self.last(x)
        return out


class MaskedLinear(nn.Module):
    """W x + b where W keeps only the connections from a lower to a higher (or equal) degree.

    The weight starts masked and only its gradient is masked afterwards, so it stays masked under any elementwise
    optimizer.
    """

    mask: Tensor

    def __init__(self, in_degrees: Sequence[int], out_degrees: Sequence[int], zero: bool = False) -> None:
        super().__init__()
        shape = len(out_degrees), len(in_degrees)
        weight, mask, bias = torch.zeros(shape), torch.ones(shape), torch.zeros(len(out_degrees))
        # There, where a model file is checked, only shapes matter, and arithmetic would import torch's compiler.
        if not weight.is_meta:
            mask = (torch.tensor(out_degrees)[:, None] >= torch.tensor(in_degrees)[None, :]).to(weight.dtype)
            if not zero:
                # Kaiming's bound with each unit's own number of live inputs.
                fan_in = mask.sum(1, keepdim=True).clamp(min=1)
                weight = (torch.rand(mask.shape) * 2 - 1) * (3.0 / fan_in).sqrt() * mask
            # Each unit bends at a point drawn like its inputs, not all of them at zero: W x + b = 0 there.
            bias = -(weight * torch.randn(weight.shape)).sum(1)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("mask", mask, persistent=False)
        self.stairs = _stairs(in_degrees, out_degrees)
        self.register_load_state_dict_post_hook(lambda module, _: module.remask())  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def remask(self) -> None:
        """Set the connections that must not be to zero, after the weight was written from outside."""
        self.weight.mul_(self.mask)

    def layer(self) -> Layer:
        """What a network computes with."""
        return Layer(self.weight, self.bias, self.mask, self.stairs)


def _stairs(in_degrees: Sequence[int], out_degrees: Sequence[int]) -> Stairs | None:
    """Of a layer whose units are sorted by degree: few enough steps that each is worth a product of its own."""
    m, k = len(out_degrees), len(in_degrees)
    steps = min(STEPS, min(m, k) // SHORTEST, m * k // LEAST)
    if steps < 2:
        return None
    rows = [m * (i + 1) // steps for i in range(steps)]
    return Stairs(rows, [bisect.bisect_right(in_degrees, out_degrees[row - 1]) for row in rows])


class MaskedMLP(nn.Module):
    """A masked network whose outputs for column i see only columns before i (Germain et al. 2015), and the context.

    Column i is ``inputs[i]`` numbers on the way in and ``outputs[i]`` on the way out; rows in are ``(n, Σ inputs)``,
    rows out ``(n, Σ outputs)``.

    Hidden units are sorted by degree, so every mask is block lower-triangular. A unit of degree d sees the context and
    the first d columns. That makes ``walk`` possible: once column d is known, only the units of degree d are new, in
    every layer, and the walk over all columns costs one pass's arithmetic instead of one pass for each.
    """

    def __init__(self, inputs: Sequence[int], context: int, hidden: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        features = len(inputs)
        # Degrees 0 … features−1; degree 0 is worth units only where there is a context for them to see.
        lowest = 0 if context or features == 1 else 1
        spread = features - lowest
        degrees = [
            [0] * context + [column + 1 for column, width in enumerate(inputs) for _ in range(width)],
            *([lowest + unit * spread // width for unit in range(width)] for width in hidden),
            [column for column, width in enumerate(outputs) for _ in range(width)],
        ]
        pairs = list(pairwise(degrees))
        self.layers = nn.ModuleList(MaskedLinear(a, b, zero=i == len(hidden)) for i, (a, b) in enumerate(pairs))
        # ends[layer][d]: how many units of that layer have degree ≤ d. They come first.
        self.ends = [[bisect.bisect_right(sorted_, d) for d in range(features)] for sorted_ in degrees]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters ``(n, Σ outputs)`` from rows ``(n, Σ inputs)``."""
        if context is not None:
            x = torch.cat([context.T, x.T]).T
        return perceptron(x.T, self._layers()).T

    def walk(self, like: Tensor, context: Tensor | None = None) -> Walk:
        """Begin a walk over the columns, for as many rows as ``like`` has and in its precision."""
        kind = Differentiable if torch.is_grad_enabled() else InPlace
        return kind(self._layers(), self.ends, like, None if context is None else seen(context).T)

    def _layers(self) -> list[Layer]:
        return [layer.layer() for layer in self.layers if isinstance(layer, MaskedLinear)]


class MADE(MaskedMLP):
    """The masked network with one number in and ``outputs`` numbers out for each of ``features`` columns."""

    def __init__(self, features: int, context: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__([1] * features, context, hidden, [outputs] * features)
        self.shape = (features, outputs)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters ``(n, features, outputs)`` from rows ``(n, features)``."""
        parameters: Tensor = super().forward(x, context).unflatten(1, self.shape)
        return parameters
