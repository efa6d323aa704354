"""Networks of rows with their gradient written out: what conditioners, masked or not, spend their time in.

A unit's values for all rows lie together, ``(units, n)``: units that come first are then one block of memory, and a
masked layer, whose units see those that come first, is a staircase of plain products (:class:`Stairs`). Small networks
are bound by how many operations they are, so a whole network is one node for autograd.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SEEN = 3.0  # R of :func:`seen`
FEW = 1 << 10  # numbers up to which torch's asinh, one by one, takes less time than a formula of many operations
LARGE, THIN = 1 << 20, 3  # products, and numbers along a side, from which on the choice of a library matters
HEAVY = 1 << 22  # products worth the 30 µs that torch.compile takes for a call that it does not see


class Stairs(NamedTuple):
    """Where a layer's weight ``(m, k)`` can be other than zero: rows ``rows[i - 1]`` to ``rows[i]`` see the first
    ``columns[i]`` columns. The columns do not decrease, and the last of the rows is m."""

    rows: list[int]
    columns: list[int]


class Layer(NamedTuple):
    """W x + b. With a ``mask``, W is zero where it is, and so is its gradient; ``stairs`` say roughly where."""

    weight: Tensor
    bias: Tensor
    mask: Tensor | None = None
    stairs: Stairs | None = None


def perceptron(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Units ``(inputs, n)`` to ``(outputs, n)``: layers with SiLU between them, on the inputs as :func:`seen`."""
    x = x.contiguous()
    if torch.is_grad_enabled():
        parameters = [part for layer in layers for part in (layer.weight, layer.bias)]
        out: Tensor = _Perceptron.apply(x, layers, *parameters)  # type: ignore[no-untyped-call]
        return out
    x = seen(x)
    many = x.shape[1] > PIECE
    if many and ONEDNN is None and _plain(x) and any(layer.weight.numel() >= WIDER for layer in layers):
        return torch.cat([_outputs(piece, layers) for piece in x.split(PIECE, 1)], 1)
    return _outputs(x, layers)


def _outputs(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The network's outputs from what it sees, of which no gradient is asked."""
    return _affine(layers[-1], _hidden(x, layers[:-1]))


def _hidden(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The hidden units ``(units, n)``, of which no gradient is asked."""
    if ONEDNN is not None and any(len(_stairs(layer, x).rows) > 1 for layer in layers):
        for layer in layers:
            x = F.silu(_affine(layer, x), inplace=True)
        return x
    # Where rows come first, MKL's stairs are faster and oneDNN takes the SiLU of what it has just computed.
    x = x.T
    for layer in layers:
        if ONEDNN is None or not _plain(x):
            x = F.silu(_linear(layer, x), inplace=True)
        else:
            x = ONEDNN(x.contiguous(), layer.weight, layer.bias, "swish", [], "")
    return x.T


def _linear(layer: Layer, x: Tensor) -> Tensor:
    """W x + b, from rows ``(n, k)`` to ``(n, m)``."""
    rows, columns = _stairs(layer, x.T)
    if len(rows) == 1:
        return F.linear(x, layer.weight, layer.bias)
    found = x.new_empty(len(x), len(layer.weight))
    for row, column in _steps(rows, columns):
        live = slice(column.stop)
        torch.addmm(layer.bias[row], x[:, live], layer.weight[row, live].T, out=found[:, row])
    return found


def seen(x: Tensor) -> Tensor:
    """What a conditioner sees of a value: R·asinh(x/R), R = 3.

    A network grows linearly with its inputs. Through a stack of layers a row far out would grow geometrically, and its
    loss with it. Near the data this is the identity; far out, a logarithm. It is one-to-one: nothing is lost.
    """
    return SEEN * torch.asinh(x / SEEN) if torch.is_grad_enabled() or x.numel() <= FEW else _seen(x)[0]


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight, through which gradients come back masked."""
    out: Tensor = _MaskGradient.apply(weight, mask)  # type: ignore[no-untyped-call]
    return out


def _seen(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`seen` and r = √(1 + a²) with a = |x|/R, of which 1/r is its derivative, from functions that have vector
    instructions, as asinh has not.

    asinh a = log(a + r) = log1p(a + a·(a/(1 + r))): a sum of positive terms, none of which overflows before x does.
    """
    a = (x / SEEN).abs_()
    r = torch.hypot(a, a.new_ones(()))
    return torch.copysign(torch.addcmul(a, a, a / (r + 1)).log1p_().mul_(SEEN), x), r


def _onednn() -> Callable[..., Tensor] | None:
    """oneDNN's product, on processors with AVX-512 that are not Intel's. torch itself asks MKL for products of float32
    matrices, which takes up to 2.4 times as long there as oneDNN, that torch has as well. Elsewhere MKL is as fast."""
    cpus, processor = Path("/proc/cpuinfo"), platform.processor()
    if cpus.exists():
        with cpus.open() as lines:
            processor = lines.read(200)
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    better = "AVX512" in torch.backends.cpu.get_cpu_capability() and "GenuineIntel" not in processor
    return found.default if found is not None and better else None


ONEDNN = _onednn()
# Weights from which on stairs pay: of MKL in one thread, and else. Threads that share a step get too little each, and
# oneDNN cannot write into a part of a result.
WIDE, WIDER = 1 << 15, 1 << 17
PIECE = 1024  # rows that go through wide layers together: what they give stays in the caches
SHARED, APART = 256, 16  # numbers: such multiples share places of the caches, and what keeps them from it


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a b of ``(m, k)`` and ``(k, n)``, b or its transpose contiguous, plus a ``bias (m,)`` for all columns; into
    ``out``, if given. By the library that is the faster for such matrices."""
    (m, k), n = a.shape, b.shape[1]
    faster = _faster(m, k, n)
    if faster is not None and _plain(a):
        found = faster(a.contiguous(), b.T, None, "none", [], "")
        if bias is not None:
            found.add_(bias[:, None])
        return found if out is None else out.copy_(found)
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias[:, None], a, b, out=out)


def add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a b to ``to``, by the library that :func:`product` asks."""
    (m, k), n = a.shape, b.shape[1]
    if _faster(m, k, n) is not None and _plain(a):
        to.add_(product(a, b))
    else:
        to.addmm_(a, b)


def room(units: int, like: Tensor) -> Tensor:
    """For so many units ``(units, n)`` of rows like these n, to be written. Many units whose numbers begin a power of
    two bytes after one another's share few places of the caches; but oneDNN takes only what lies together."""
    n = len(like)
    apart = APART if ONEDNN is None and n % SHARED == 0 else 0
    return like.new_empty(units, n + apart)[:, :n]


def _faster(m: int, k: int, n: int) -> Callable[..., Tensor] | None:
    """What is faster than torch's own product of ``(m, k)`` and ``(k, n)``."""
    if ONEDNN is None or min(m, k, n) < THIN:
        return None
    return ONEDNN if m * k * n >= (HEAVY if torch.compiler.is_compiling() else LARGE) else None


def _plain(a: Tensor) -> bool:
    return a.dtype == torch.float32 and a.device.type == "cpu"


def _steps(rows: list[int], columns: list[int]) -> Iterator[tuple[slice, slice]]:
    """The rows of each step, and the columns that these are the first to see."""
    return zip((slice(*p) for p in pairwise([0, *rows])), (slice(*p) for p in pairwise([0, *columns])), strict=True)


def _up(weight: Tensor, x: Tensor, bias: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """W x + b."""
    if len(rows) == 1:
        return product(weight, x, bias)
    x, found = x.contiguous(), x.new_empty(len(weight), x.shape[1])
    for row, column in _steps(rows, columns):
        product(weight[row, : column.stop], x[: column.stop], bias[row], found[row])
    return found


def _down(weight: Tensor, grad: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Wᵀ g: a column is seen by the rows of its step and of all that follow."""
    if len(rows) == 1:
        return product(weight.T, grad)
    found = grad.new_zeros(weight.shape[1], grad.shape[1])
    for row, column in _steps(rows, columns):
        add_product(found[column], weight[row.start :, column].T, grad[row.start :])
    return found


def _outer(grad: Tensor, x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """g xᵀ, where W can be other than zero."""
    if len(rows) == 1:
        return product(grad, x.T)
    found = grad.new_zeros(len(grad), len(x))
    for row, column in _steps(rows, columns):
        add_product(found[row, : column.stop], grad[row], x[: column.stop].T)
    return found


def _opaque(plain: Callable[..., Tensor], shape: Callable[[Tensor, Tensor], tuple[int, int]]) -> Callable[..., Tensor]:
    """``plain`` as an operator that torch.compile calls as it is."""
    custom = torch.library.custom_op(f"flowcli::{plain.__name__[1:]}", plain, mutates_args=())
    custom.register_fake(lambda a, b, *_: a.new_empty(shape(a, b)))
    return custom


OPAQUE = {
    _up: _opaque(_up, lambda weight, x: (len(weight), x.shape[1])),
    _down: _opaque(_down, lambda weight, grad: (weight.shape[1], grad.shape[1])),
    _outer: _opaque(_outer, lambda grad, x: (len(grad), len(x))),
}


def _stairs(layer: Layer, x: Tensor) -> Stairs:
    """Those along which the layer's products with ``x`` ``(units, n)`` go: its own, where these are large."""
    m, k = layer.weight.shape
    if layer.stairs is None:
        return Stairs([m], [k])
    shared = torch.compiler.is_compiling() or torch.get_num_threads() > 1  # for what is compiled cannot ask
    wide = WIDER if shared or ONEDNN is not None else WIDE
    pays = x.device.type == "cpu" and m * k >= wide and m * k * x.shape[1] >= LARGE
    return layer.stairs if pays else Stairs([m], [k])


def _along(plain: Callable[..., Tensor], stairs: Stairs, a: Tensor, b: Tensor, *more: Tensor) -> Tensor:
    """One of the three products of a layer, with b ``(units, n)``, along these stairs."""
    rows, columns = stairs
    if torch.compiler.is_compiling() and (len(rows) > 1 or _faster(rows[0], columns[0], b.shape[1]) is not None):
        return OPAQUE[plain](a, b, *more, rows, columns)
    # One product of torch's own the compiler sees, and takes it together with what is around it.
    return plain(a, b, *more, rows, columns)


def _affine(layer: Layer, x: Tensor) -> Tensor:
    return _along(_up, _stairs(layer, x), layer.weight, x, layer.bias)


class _Perceptron(torch.autograd.Function):
    """The gradient of :func:`perceptron`: of each layer, by backpropagation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], *parameters: Tensor) -> Tensor:
        before: list[Tensor] = []  # what each layer but the first activated, and the r of what the first saw
        inputs: list[Tensor] = []
        stairs = [_stairs(layer, x) for layer in layers]
        for i, layer in enumerate(layers):
            if i:
                before.append(x)
                x = F.silu(x)
            else:
                x, r = _seen(x)
                before.append(r)
            inputs.append(x)
            x = _along(_up, stairs[i], layer.weight, x, layer.bias)
        ctx.save_for_backward(*before, *inputs, *parameters[::2])
        ctx.layers = [(layer.mask, own) for layer, own in zip(layers, stairs, strict=True)]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.layers)
        saved = ctx.saved_tensors
        before, inputs, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        found: list[Tensor | None] = []
        grad = grad.contiguous()
        for i in reversed(range(count)):
            mask, stairs = ctx.layers[i]
            slope = _along(_outer, stairs, grad, inputs[i])
            found += [grad.sum(1), slope if mask is None else slope.mul_(mask)]
            if i == 0 and not ctx.needs_input_grad[0]:
                return (None, None, *reversed(found))
            grad = _along(_down, stairs, weights[i], grad)
            grad = torch.ops.aten.silu_backward(grad, before[i]) if i else grad.div_(before[0])
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
