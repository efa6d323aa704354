"""Networks of rows with their gradient written out: what conditioners, masked or not, spend their time in.

Small networks are bound by how many operations they are, large ones by products with weights that are zero. So a whole
network is one node for autograd, and large masked weights are multiplied in stairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SEEN = 3.0  # R of :func:`seen`


class Stair(NamedTuple):
    """Units ``rows`` of a layer, which see the first ``inputs`` of what comes in and no others."""

    rows: slice
    inputs: int


class Layer(NamedTuple):
    """W x + b. With a ``mask``, W is zero where it is, and so is its gradient; with ``stairs``, in parts that do not
    overlap and leave out most of these zeros."""

    weight: Tensor
    bias: Tensor
    mask: Tensor | None = None
    stairs: Sequence[Stair] = ()


def perceptron(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Rows ``(n, inputs)`` to ``(n, outputs)``: layers with SiLU between them, on the inputs as :func:`seen`."""
    if torch.compiler.is_compiling():  # which writes the gradient out itself
        return _plain(x, layers)
    if torch.is_grad_enabled():
        parameters = [part for layer in layers for part in (layer.weight, layer.bias)]
        out: Tensor = _Perceptron.apply(x, layers, *parameters)  # type: ignore[no-untyped-call]
        return out
    for i, layer in enumerate(layers):
        x = _product(F.silu(x, inplace=True) if i else _seen(x)[0], layer)
    return x


def seen(x: Tensor) -> Tensor:
    """What a conditioner sees of a value: R·asinh(x/R), R = 3.

    A network grows linearly with its inputs. Through a stack of layers a row far out would grow geometrically, and its
    loss with it. Near the data this is the identity; far out, a logarithm. It is one-to-one: nothing is lost.
    """
    return SEEN * torch.asinh(x / SEEN) if torch.is_grad_enabled() else _seen(x)[0]


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight, through which gradients come back masked."""
    out: Tensor = _MaskGradient.apply(weight, mask)  # type: ignore[no-untyped-call]
    return out


def _plain(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The same, as autograd sees it: slower, and the meaning of the rest."""
    for i, (weight, bias, mask, _) in enumerate(layers):
        x = F.linear(F.silu(x) if i else seen(x), weight if mask is None else masked(weight, mask), bias)
    return x


def _seen(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`seen` and its derivative 1/r, r = √(1 + a²) with a = |x|/R, from functions that have vector instructions,
    as asinh has not.

    asinh a = log(a + r) = log1p(a + a·(a/(1 + r))): a sum of positive terms, none of which overflows before x does.
    """
    a = (x / SEEN).abs_()
    r = torch.hypot(a, a.new_ones(()))
    return torch.copysign((a / (r + 1)).mul_(a).add_(a).log1p_().mul_(SEEN), x), r.reciprocal_()


NARROW = 64  # columns below which a matrix is computed transposed: products are written in long rows then


def _product(x: Tensor, layer: Layer) -> Tensor:
    if len(layer.stairs) < 2:
        if len(layer.weight) < NARROW:
            return torch.addmm(layer.bias[:, None], layer.weight, x.T).T
        return torch.addmm(layer.bias, x, layer.weight.T)
    y = x.new_empty(len(x), len(layer.weight))
    for rows, inputs in layer.stairs:
        torch.addmm(layer.bias[rows], x[:, :inputs], layer.weight[rows, :inputs].T, out=y[:, rows])
    return y


def _weight_gradient(x: Tensor, grad: Tensor, layer: Layer) -> Tensor:
    if len(layer.stairs) < 2:
        found = (x.T @ grad).T.contiguous() if x.shape[1] < NARROW else grad.T @ x
    else:
        found = torch.zeros_like(layer.weight)
        for rows, inputs in layer.stairs:
            torch.mm(grad[:, rows].T, x[:, :inputs], out=found[rows, :inputs])
    return found if layer.mask is None else found.mul_(layer.mask)


def _input_gradient(grad: Tensor, layer: Layer) -> Tensor:
    if len(layer.stairs) < 2:
        return (layer.weight.T @ grad.T).T if layer.weight.shape[1] < NARROW else grad @ layer.weight
    found, before = grad.new_zeros(len(grad), layer.weight.shape[1]), 0
    for rows, inputs in layer.stairs:
        if inputs > before:  # those that this stair is the first to see
            torch.mm(grad[:, rows.start :], layer.weight[rows.start :, before:inputs], out=found[:, before:inputs])
        before = inputs
    return found


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], *parameters: Tensor) -> Tensor:
        before: list[Tensor] = []  # what each layer but the first had to bend, and the slopes of what the first saw
        inputs: list[Tensor] = []
        for i, layer in enumerate(layers):
            if i:
                before.append(x)
                x = F.silu(x)
            else:
                x, slope = _seen(x)
                before.append(slope)
            inputs.append(x)
            x = _product(x, layer)
        ctx.save_for_backward(*before, *inputs, *parameters)
        ctx.layers = [(layer.mask, layer.stairs) for layer in layers]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.layers)
        before, inputs, parameters = (
            ctx.saved_tensors[a:b] for a, b in ((0, count), (count, 2 * count), (2 * count, None))
        )
        found: list[Tensor | None] = []
        for i in reversed(range(count)):
            layer = Layer(parameters[2 * i], parameters[2 * i + 1], *ctx.layers[i])
            found += [grad.sum(0), _weight_gradient(inputs[i], grad, layer)]
            if i:
                grad = torch.ops.aten.silu_backward(_input_gradient(grad, layer), before[i])
            elif ctx.needs_input_grad[0]:
                return (_input_gradient(grad, layer).mul_(before[0]), None, *reversed(found))
        return (None, None, *reversed(found))


class _MaskGradient(torch.autograd.Function):
    """The weight itself on the way forward, its gradient masked on the way back."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None
