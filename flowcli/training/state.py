"""The state of a fit at the end of an epoch: all that continuing needs, as tensors and plain JSON."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flowcli.training.vector import as_vector

Tensors = dict[str, Tensor]


@dataclass
class Counters:
    """Where a fit stands, beside its tensors."""

    epoch: int = 0
    window: int = 0  # windows of this epoch that are over, and of them
    taken: int = 0  # the steps taken,
    loss: float = 0.0  # the sum of their losses
    log_det: float = 0.0  # and of the codec's log-determinants
    step: int = 0
    best_epoch: int = 0
    best: float = -sys.float_info.max
    rate: float = 1.0  # what the learning rate is multiplied with after stepping back
    averaged: int = 0
    skipped: int = 0
    bad: int = 0  # skipped steps in a row, up to now
    retreats: int = 0
    seconds: float = 0.0
    finished: bool = False
    processes: int = 1  # that took part


@dataclass
class State:
    """``weights`` are being trained, ``average`` is their moving average, ``best`` the best average so far."""

    weights: Tensors
    average: Tensors
    best: Tensors
    optimizer: Tensors
    counters: Counters = field(default_factory=Counters)

    def tensors(self) -> Tensors:
        """All tensors under one roof."""
        parts = {"weights": self.weights, "average": self.average, "best": self.best, "optimizer": self.optimizer}
        # Copied, because the best average so far and the latest are often the same, and a file holds each by itself.
        return {f"{part}.{name}": tensor.clone() for part, tensors in parts.items() for name, tensor in tensors.items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> State:
        """The state that :meth:`tensors` and the counters' dict describe."""
        parts: dict[str, Tensors] = {"weights": {}, "average": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        return State(**parts, counters=Counters(**counters))


def copy_of(module: nn.Module) -> Tensors:
    """A module's state, copied."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def optimizer_tensors(optimizer: Optimizer) -> Tensors:
    """The optimizer's state as named tensors, copied."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value.detach().clone() for i, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """A copy of a module whose parameters are a moving average of the module's, which are ``current`` as a vector:
    θ̄ ← d·θ̄ + (1 − d)·θ, with d = min(decay, (1 + n)/(10 + n)) at the n-th update; the first one copies.

    The ramp keeps a short fit's average from being mostly its first weights (Tan & Le 2019's TensorFlow rule).
    """

    def __init__(self, module: nn.Module, current: Tensor, decay: float) -> None:
        self.module, self.decay, self.count = copy.deepcopy(module).requires_grad_(False), decay, 0
        self.averaged, self.current = as_vector(self.module), current

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's parameters as they are now into the average."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        self.averaged.lerp_(self.current, 1 - decay)
        self.count += 1
