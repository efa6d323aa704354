"""A flow as a tree: its layers, their networks, shapes and numbers of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from flowcli.flows.bijection import Bijection, Chain
from flowcli.flows.flow import Flow
from flowcli.flows.multiscale import MultiScale
from flowcli.flows.spread import Spread
from flowcli.flows.transforms import Spline, Transform

LONGEST = 4  # nodes that may repeat together


@dataclass(frozen=True)
class Node:
    """A part of a flow: what it is, the shapes of its own weights, and all its parameters, those of its parts
    included. One that is there ``times`` over counts them all."""

    name: str
    shapes: str
    parameters: int
    parts: tuple[Node, ...] = ()
    times: int = 1


def outline(flow: Flow) -> Node:
    """The whole flow, data side first, the base last. Parts that repeat are there once."""
    parts = (*_folded(list(_layers(flow.bijection))), _node("base", flow.base))
    return Node("Flow", f"{flow.base.features} numbers", _count(flow), parts)


def _layers(module: nn.Module) -> Iterator[Node]:
    """The node of a layer; of a chain, those of its layers."""
    if isinstance(module, Chain):
        for layer in module:
            yield from _layers(layer)
        return
    if isinstance(module, MultiScale):
        yield Node("MultiScale", _shape(module.shape), _count(module), tuple(_scales(module)))
        return
    parts: list[Node] = []
    for name, child in module.named_children():
        if isinstance(child, Bijection):
            parts += _layers(child)
        elif _count(child):
            parts.append(_node(name, child))
    transform = getattr(module, "transform", None)
    bend = f", {_bend(transform)}" if isinstance(transform, Transform) else ""
    own = [_shape(p.shape) for p in module.parameters(recurse=False) if p.ndim > 1]
    yield Node(f"{type(module).__name__}{bend}", ", ".join(own), _count(module), tuple(_folded(parts)))


def _scales(module: MultiScale) -> Iterator[Node]:
    for i, (level, latent) in enumerate(zip(module.levels, module.latents, strict=True)):
        parts = _folded(list(_layers(level)))
        count = _count(level)
        if i < len(module.splits):
            parts = [*parts, *_layers(module.splits[i])]
            count += _count(module.splits[i])
        yield Node(f"scale {i + 1}", f"latents {_shape(latent)}", count, tuple(parts))


def _node(name: str, module: nn.Module) -> Node:
    """A network or a base: one line, with the shapes of its weights in order."""
    kind, wide = module, ""
    if isinstance(module, Spread):
        kind, wide = module.narrow, f", {math.exp(float(module.log_spread)):.2f} times as wide"
    weights = ", ".join(_shape(p.shape) for p in module.parameters() if p.ndim > 1)
    return Node(f"{name} {type(kind).__name__}{wide}", weights, _count(module))


def _bend(transform: Transform) -> str:
    return f"spline of {transform.bins} bins" if isinstance(transform, Spline) else "affine"


def _folded(nodes: Sequence[Node]) -> list[Node]:
    """Nodes with runs of the same ones, alone or several together, as one."""
    out: list[Node] = []
    while nodes:
        times = {period: _times(nodes, period) for period in range(1, LONGEST + 1)}
        period = max(times, key=lambda p: p * times[p] if times[p] > 1 else p == 1)
        n, group = times[period], nodes[:period]
        if n == 1:
            out.append(group[0])
        elif period == 1:
            out.append(Node(group[0].name, group[0].shapes, n * group[0].parameters, group[0].parts, n))
        else:
            out.append(Node("together", "", n * sum(node.parameters for node in group), tuple(group), n))
        nodes = nodes[n * period :]
    return out


def _times(nodes: Sequence[Node], period: int) -> int:
    """How often the first ``period`` nodes are there one after the other."""
    n = 1
    while len(nodes) >= (n + 1) * period and nodes[n * period : (n + 1) * period] == nodes[:period]:
        n += 1
    return n


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
