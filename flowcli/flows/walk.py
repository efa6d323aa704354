"""A masked network's pass taken a column at a time: it inverts an autoregressive layer in one pass's arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcli.flows.perceptron import Layer, add_product, masked, room, seen


class Walk(ABC):
    """``parameters`` for the next column, then ``append`` its numbers. Rows lie along the last dimension.

    Of inputs, hidden units and outputs ``ends[i][d]``, which come first, have a degree up to d. There are as many rows
    as ``like`` has, with a ``context (numbers, n)`` that the first layer sees as it is.

    Every ``STRIDE`` columns, what the units of the next ones get from all that is known by then is computed in one
    product for each layer; a column then adds what became known since.
    """

    STRIDE = 12

    def __init__(self, layers: Sequence[Layer], ends: Sequence[Sequence[int]]) -> None:
        self.layers, self.ends, self.features = layers, ends, len(ends[0])
        self.degree = 0

    def parameters(self) -> Tensor:
        """Parameters ``(outputs[i], n)`` of the next column i, given those appended so far."""
        if self.degree % self.STRIDE == 0:
            self._look_ahead(min(self.degree + self.STRIDE, self.features) - 1)
        return self._column()

    def append(self, column: Tensor) -> None:
        """The numbers ``(inputs[i], n)`` of the column just computed."""
        self._know(seen(column))
        self.degree += 1

    def _until(self, layer: int, degree: int) -> int:
        """How many units of a layer have a degree up to this one."""
        return self.ends[layer][degree] if degree >= 0 else 0

    def _settled(self, layer: int) -> int:
        """How many units of a layer are known before the next column's own."""
        return self._until(layer, self.degree - (layer > 0))

    @abstractmethod
    def _look_ahead(self, last: int) -> None:
        """What units up to the degree ``last`` get from all that is known."""

    @abstractmethod
    def _column(self) -> Tensor:
        """The next column's parameters, on the way of which its units become known."""

    @abstractmethod
    def _know(self, column: Tensor) -> None:
        """What the first layer sees of a column."""


class _Ahead(NamedTuple):
    """The next columns' units of a layer, and the weights by which these get more from what it will know besides the
    first ``settled``: a block for each column."""

    settled: int
    new: Tensor
    blocks: Sequence[Tensor]
    weights: Sequence[Tensor]


class InPlace(Walk):
    """Without a gradient. Units that are not known yet hold what they get from those that are."""

    def __init__(
        self, layers: Sequence[Layer], ends: Sequence[Sequence[int]], like: Tensor, context: Tensor | None
    ) -> None:
        super().__init__(layers, ends)
        self.units = [room(layer.weight.shape[1], like) for layer in layers]  # what each layer sees
        if context is not None:
            self.units[0][: len(context)] = context
        self.ahead: list[_Ahead] = []

    def _look_ahead(self, last: int) -> None:
        self.ahead = []
        for i, layer in enumerate(self.layers):
            settled, rows = self._settled(i), slice(self._until(i + 1, self.degree - 1), self._until(i + 1, last))
            known, weight = self.units[i], layer.weight[rows]
            units = self.units[i + 1][rows] if i + 1 < len(self.layers) else room(len(weight), known.T)
            units.copy_(layer.bias[rows, None])
            if settled:
                add_product(units, weight[:, :settled], known[:settled])
            counts = [b - a for a, b in pairwise(self._until(i + 1, d) for d in range(self.degree - 1, last + 1))]
            self.ahead.append(_Ahead(settled, known[settled:], units.split(counts), weight[:, settled:].split(counts)))

    def _column(self) -> Tensor:
        place = self.degree % self.STRIDE
        for i, ahead in enumerate(self.ahead):
            block, count = ahead.blocks[place], self.ends[i][self.degree] - ahead.settled
            if count:
                add_product(block, ahead.weights[place][:, :count], ahead.new[:count])
            if i + 1 < len(self.layers):
                F.silu(block, inplace=True)
        return block

    def _know(self, column: Tensor) -> None:
        begin = self._settled(0)
        self.units[0][begin : begin + len(column)] = column


class Differentiable(Walk):
    """With a gradient: what autograd needs is not written over."""

    def __init__(
        self, layers: Sequence[Layer], ends: Sequence[Sequence[int]], like: Tensor, context: Tensor | None
    ) -> None:
        super().__init__(layers, ends)
        self.weights = [layer.weight if layer.mask is None else masked(layer.weight, layer.mask) for layer in layers]
        nothing = like.new_empty(0, len(like))
        self.known = [nothing if context is None else context, *[nothing] * (len(self.layers) - 1)]
        self.new: list[list[Tensor]] = []
        self.ahead: list[tuple[int, Tensor]] = []

    def _look_ahead(self, last: int) -> None:
        if self.new:
            self.known = [torch.cat([known, *new]) for known, new in zip(self.known, self.new, strict=True)]
        self.new, self.ahead = [[] for _ in self.layers], []
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            rows = slice(self._until(i + 1, self.degree - 1), self._until(i + 1, last))
            ahead = torch.addmm(layer.bias[rows, None], weight[rows, : len(self.known[i])], self.known[i])
            self.ahead.append((rows.start, ahead))

    def _column(self) -> Tensor:
        for i, ((start, ahead), weight) in enumerate(zip(self.ahead, self.weights, strict=True)):
            rows = slice(self._until(i + 1, self.degree - 1), self._until(i + 1, self.degree))
            new, settled = torch.cat([self.known[i][:0], *self.new[i]]), len(self.known[i])
            own = weight[rows, settled : settled + len(new)]
            block = torch.addmm(ahead[rows.start - start : rows.stop - start], own, new)
            if i + 1 < len(self.layers):
                self.new[i + 1].append(F.silu(block))
        return block

    def _know(self, column: Tensor) -> None:
        self.new[0].append(column)
