"""A flow compiled for its training steps, if that leaves the gradient as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.flows.flow import Flow

ROUNDING = 1e-3  # how far the gradient of a compiled flow may be off, as a share

Forward = Callable[[Tensor, Tensor | None], Tensor]


class CannotCompile(Exception):
    """Why not, in a few words."""


def compiled(flow: Flow, y: Tensor, context: Tensor | None) -> Forward:
    """``flow``, compiled for training on batches like ``y`` and ``context``. The flow itself stays as it is.

    On a CPU the calls between its parts are compiled as well, which for small networks is most of what is won. Without
    that, torch 2.13 compiled some flows wrongly and without a word: log-densities right, gradients not (MAFs with
    splines, by two thirds). So the gradient is compared here with the flow's own. Raises CannotCompile.
    """
    flow.train()
    torch.compiler.reset()  # what was compiled of earlier flows counts against a limit of eight
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about itself
            faster: Forward = torch.compile(flow, dynamic=False, options={"cpp_wrapper": y.device.type == "cpu"})
            found = _gradient(flow, faster, y, context)
    except (RuntimeError, OSError) as error:
        raise CannotCompile(str(error).partition("\n")[0].rstrip(".")) from None
    expected = _gradient(flow, flow, y, context)
    off = float((found - expected).norm() / expected.norm())
    if not off < ROUNDING:
        raise CannotCompile(f"the gradient of torch.compile is off by {off:.1%}")
    return faster


def _gradient(flow: Flow, forward: Forward, y: Tensor, context: Tensor | None) -> Tensor:
    """That of all parameters, in one vector."""
    parameters = [p for p in flow.parameters() if p.requires_grad]
    parts = torch.autograd.grad(forward(y, context).mean(), parameters, materialize_grads=True)
    return torch.cat([part.flatten().double() for part in parts])
