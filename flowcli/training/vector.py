"""All parameters of a module as one vector, so that what is done to all of them is one operation."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

ALIGNED = 16  # numbers: the parts begin where vector instructions like it


def as_vector(module: nn.Module) -> nn.Parameter:
    """The vector of which each of the module's parameters, all of one type and without gaps, is a part from now on,
    laid out as it was. Between the parts may be numbers that are no parameter; they stay zero."""
    parameters = list(module.parameters())
    vector = nn.Parameter(parameters[0].new_zeros(sum(map(_room, parameters))))
    for parameter, part in zip(parameters, parts(parameters, vector.detach()), strict=True):
        part.copy_(parameter.detach())
        parameter.data = part
    return vector


def with_gradient(module: nn.Module, vector: nn.Parameter) -> Tensor:
    """The gradient of the module's ``vector``, of which each of its parameters' gradients is a part from now on. Clear
    it in place: a parameter whose ``grad`` is replaced has left it."""
    vector.grad = torch.zeros_like(vector)
    parameters = list(module.parameters())
    for parameter, part in zip(parameters, parts(parameters, vector.grad), strict=True):
        parameter.grad = part
    return vector.grad


def parts(parameters: Collection[Tensor], vector: Tensor) -> list[Tensor]:
    """Of such a ``vector`` what lies where each of the parameters does, laid out as it is."""
    found = []
    for parameter, part in zip(parameters, vector.split([*map(_room, parameters)]), strict=True):
        outer_first = sorted(range(parameter.ndim), key=parameter.stride, reverse=True)
        as_stored = part[: parameter.numel()].view([parameter.shape[i] for i in outer_first])
        found.append(as_stored.permute([outer_first.index(i) for i in range(parameter.ndim)]))
    return found


def _room(parameter: Tensor) -> int:
    return -(-parameter.numel() // ALIGNED) * ALIGNED
