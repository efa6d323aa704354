"""Networks of rows with their gradient written out: what conditioners, masked or not, spend their time in.

Small networks are bound by how many operations they are, so a whole network is one node for autograd. Large ones are
bound by their products, which go to the faster of the libraries that torch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SEEN = 3.0  # R of :func:`seen`
ONEDNN = (
    torch.ops.mkldnn._linear_pointwise.default
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)
SMALL, THIN = 1 << 21, 8  # products, and numbers along a side, that oneDNN needs to be the faster
NARROW = 64  # columns below which a result is computed transposed


class Layer(NamedTuple):
    """W x + b. With a ``mask``, W is zero where it is, and so is its gradient."""

    weight: Tensor
    bias: Tensor
    mask: Tensor | None = None


def perceptron(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Rows ``(n, inputs)`` to ``(n, outputs)``: layers with SiLU between them, on the inputs as :func:`seen`."""
    if torch.is_grad_enabled():
        parameters = [part for layer in layers for part in (layer.weight, layer.bias)]
        out: Tensor = _Perceptron.apply(x, layers, *parameters)  # type: ignore[no-untyped-call]
        return out
    x, _ = _seen(x)
    for layer in layers[:-1]:
        x = product(x, layer.weight, layer.bias, silu=True)
    return product(x, layers[-1].weight, layers[-1].bias)


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


def _seen(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`seen` and its derivative 1/r, r = √(1 + a²) with a = |x|/R, from functions that have vector instructions,
    as asinh has not.

    asinh a = log(a + r) = log1p(a + a·(a/(1 + r))): a sum of positive terms, none of which overflows before x does.
    """
    a = (x / SEEN).abs_()
    r = torch.hypot(a, a.new_ones(()))
    return torch.copysign((a / (r + 1)).mul_(a).add_(a).log1p_().mul_(SEEN), x), r.reciprocal_()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """a bᵀ + bias of ``(n, k)`` and ``(m, k)``; ``silu``, its SiLU.

    oneDNN, which torch itself does not ask for float32 matrices, takes 0.4 to 1 times as long as MKL on processors that
    are not Intel's, unless a matrix is small or thin. Otherwise, results of few columns are computed transposed: they
    are written in long rows then.
    """
    (n, k), m = a.shape, b.shape[0]
    work = n * m * k
    if (
        ONEDNN is not None
        and work >= (SMALL if a.is_contiguous() else 3 * SMALL)  # a transposed one is copied first
        and min(n, m, k) >= THIN
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        and (a.is_contiguous() or a.T.is_contiguous())
        and (b.is_contiguous() or b.T.is_contiguous())
    ):
        found: Tensor = (_opaque if torch.compiler.is_compiling() else _onednn)(a, b, bias, silu)
        return found
    if m < NARROW:
        found = (b @ a.T if bias is None else torch.addmm(bias[:, None], b, a.T)).T
    else:
        found = a @ b.T if bias is None else torch.addmm(bias, a, b.T)
    return F.silu(found, inplace=True) if silu else found


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    assert ONEDNN is not None
    found: Tensor = ONEDNN(a, b, bias, "swish" if silu else "none", [], "")
    return found


# What torch.compile calls as it is. Of the operator itself it thinks that its weights are frozen.
_opaque = torch.library.custom_op("flowcli::product", _onednn, mutates_args=())
_opaque.register_fake(lambda a, b, bias, silu: a.new_empty(len(a), len(b)))


class _Perceptron(torch.autograd.Function):
    """The gradient of :func:`perceptron`: of each layer, by backpropagation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], *parameters: Tensor) -> Tensor:
        before: list[Tensor] = []  # what each layer but the first activated, and the slopes of what the first saw
        inputs: list[Tensor] = []
        for i, layer in enumerate(layers):
            if i:
                before.append(x)
                x = F.silu(x)
            else:
                x, slope = _seen(x)
                before.append(slope)
            inputs.append(x)
            x = product(x, layer.weight, layer.bias)
        ctx.save_for_backward(*before, *inputs, *parameters)
        ctx.masks = [layer.mask for layer in layers]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.masks)
        before, inputs, parameters = (
            ctx.saved_tensors[a:b] for a, b in ((0, count), (count, 2 * count), (2 * count, None))
        )
        found: list[Tensor | None] = []
        for i in reversed(range(count)):
            slope = product(grad.T, inputs[i].T).contiguous()
            found += [grad.sum(0), slope if ctx.masks[i] is None else slope.mul_(ctx.masks[i])]
            if i == 0 and not ctx.needs_input_grad[0]:
                return (None, None, *reversed(found))
            grad = product(grad, parameters[2 * i].T)
            grad = torch.ops.aten.silu_backward(grad, before[i]) if i else grad.mul_(before[0])
        return (grad, None, *reversed(found))


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
