"""A flow's loss and gradient, compiled for its training steps, if that leaves them as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowcli.flows.flow import Flow
from flowcli.training.vector import parts

ROUNDING = 1e-3  # how far the gradient of a compiled flow may be off, as a share

LossAndGradient = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Of a batch and its context: the loss, and its gradient in all parameters as one vector."""


class CannotCompile(Exception):
    """Why not, in a few words."""


def compiled(flow: Flow, vector: nn.Parameter, y: Tensor, context: Tensor | None) -> LossAndGradient:
    """The loss of ``flow``, whose parameters are parts of ``vector``, compiled for training on batches like ``y`` and
    ``context``. The flow itself stays as it is.

    Loss and gradient are one graph: nothing is left of autograd between them, which took a sixth of a small network's
    step. On a CPU the calls between the compiled parts are compiled as well. Without that, torch 2.13
    compiled some flows wrongly and without a word: log-densities right, gradients not (MAFs with splines, by two
    thirds). So the gradient is compared here with the flow's own. Raises CannotCompile.
    """
    parameters = dict(flow.named_parameters())

    def loss_and_gradient(vector: Tensor, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        weights = dict(zip(parameters, parts(parameters.values(), vector), strict=True))
        loss = -torch.func.functional_call(flow, weights, (y, context)).mean()
        (gradient,) = torch.autograd.grad(loss, vector)
        return loss.detach(), gradient

    flow.train()
    torch.compiler.reset()  # what was compiled of earlier flows counts against a limit of eight
    try:
        with warnings.catch_warnings(), torch._dynamo.config.patch(trace_autograd_ops=True):
            warnings.simplefilter("ignore")  # torch's own, about itself
            on_cpu = y.device.type == "cpu"
            faster = torch.compile(loss_and_gradient, fullgraph=True, dynamic=False, options={"cpp_wrapper": on_cpu})
            found = parts(parameters.values(), faster(vector, y, context)[1])
    except (RuntimeError, OSError) as error:
        raise CannotCompile(str(error).partition("\n")[0].rstrip(".")) from None
    expected = torch.autograd.grad(-flow(y, context).mean(), [*parameters.values()], materialize_grads=True)
    a, b = (torch.cat([part.flatten().double() for part in gradient]) for gradient in (found, expected))
    off = float((a - b).norm() / b.norm())
    if not off < ROUNDING:
        raise CannotCompile(f"the gradient of torch.compile is off by {off:.1%}")
    return lambda y, context: faster(vector, y, context)
