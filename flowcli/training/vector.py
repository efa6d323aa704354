"""All parameters of a module as one vector, so that what is done to all of them is one operation."""

from __future__ import annotations

import torch
from torch import nn

ALIGNED = 16  # numbers: the parts begin where vector instructions like it


def as_vector(module: nn.Module) -> nn.Parameter:
    """The vector of which each of the module's parameters, all of one type, is a part from now on, and its gradient
    likewise.

    Parts stay as they are laid out. Between them may be numbers that are no parameter; those and their gradients stay
    zero. Clear the gradient in place: a parameter whose ``grad`` is replaced has left the vector.
    """
    parameters = list(module.parameters())
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
    like = parameters[0].detach()
    vector = nn.Parameter(like.new_zeros(sum(sizes)))
    vector.grad = torch.zeros_like(vector)
    parts = zip(parameters, vector.detach().split(sizes), vector.grad.split(sizes), strict=True)
    for parameter, value, gradient in parts:
        laid = [part.as_strided(parameter.shape, parameter.stride()) for part in (value, gradient)]
        laid[0].copy_(parameter.detach())
        parameter.data, parameter.grad = laid
    return vector
