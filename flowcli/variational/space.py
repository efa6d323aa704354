"""Between a target's parameters and the whole space that a flow lives in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from flowcli.recipe import Parameter


class Ordered(Constraint):
    """Vectors whose numbers ascend, along the last axis: the one kind that torch has no constraint for."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value[..., 1:] > value[..., :-1]).all(-1)


class OrderedTransform(Transform):
    """y₁ = x₁, y_k = y_{k−1} + exp(x_k): the Jacobian is triangular, log|det| = Σ_{k>1} x_k (as Stan has it)."""

    domain = constraints.real_vector
    codomain = Ordered()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OrderedTransform)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x[..., 1:].exp()], -1).cumsum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1], y.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., 1:].sum(-1)


biject_to.register(Ordered, lambda constraint: OrderedTransform())


def constraint(parameter: Parameter) -> Constraint:
    """What torch calls the values that a parameter may have."""
    if parameter.type == "interval":
        return constraints.interval(parameter.low, parameter.high)
    if parameter.type == "ordered":
        return Ordered()
    found: Constraint = {
        "real": constraints.real,
        "positive": constraints.positive,
        "simplex": constraints.simplex,
        "correlation_cholesky": constraints.corr_cholesky,
    }[parameter.type]
    return found


@dataclass(frozen=True)
class Space:
    """All parameters of a target as one row ``(n, features)`` of unconstrained numbers, by ``torch.distributions``'
    registry of bijections (``biject_to``): exp for positive, a logistic for an interval, stick breaking for a simplex,
    ascending exponentials, partial correlations for a Cholesky factor."""

    parameters: Mapping[str, Parameter]

    @cached_property
    def transforms(self) -> dict[str, Transform]:
        """Unconstrained → constrained, by name."""
        return {name: biject_to(constraint(parameter)) for name, parameter in self.parameters.items()}

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Of one draw's unconstrained numbers, by name."""
        return {
            name: self.transforms[name].inverse_shape(torch.Size(parameter.shape))
            for name, parameter in self.parameters.items()
        }

    @property
    def features(self) -> int:
        """How many unconstrained numbers a draw has."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def columns(self) -> list[str]:
        """A name for each number of a draw, as ArviZ spells them: ``mu``, ``theta[0]``, ``L[1, 0]``."""
        names = []
        for name, parameter in self.parameters.items():
            places = itertools.product(*map(range, parameter.shape))
            names += [f"{name}[{', '.join(map(str, place))}]" if place else name for place in places]
        return names

    def constrain(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The parameters ``(n, *shape)`` of unconstrained rows, and log|det| ``(n,)`` of the way there."""
        parameters, log_det = {}, u.new_zeros(len(u))
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        for (name, shape), part in zip(self.shapes.items(), u.split(sizes, 1), strict=True):
            transform, x = self.transforms[name], part.unflatten(1, shape) if shape else part[:, 0]
            parameters[name] = transform(x)
            log_slope = transform.log_abs_det_jacobian(x, parameters[name])
            log_det = log_det + log_slope.reshape(len(u), -1).sum(1)
        return parameters, log_det

    def within(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Whether each row's parameters ``(n,)`` are finite and strictly inside their bounds, as rounding may deny."""
        inside = []
        for name, value in parameters.items():
            flat = value.reshape(len(value), -1)
            parameter = self.parameters[name]
            inside.append(flat.isfinite().all(1))
            if parameter.type in ("positive", "simplex"):
                inside.append((flat > 0).all(1))
            elif parameter.low is not None and parameter.high is not None:
                inside.append(((flat > parameter.low) & (flat < parameter.high)).all(1))
            elif parameter.type == "ordered":
                inside.append((value.diff(dim=-1) > 0).reshape(len(value), -1).all(1))
        return torch.stack(inside).all(0)

    def unconstrain(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The row ``(n, features)`` that :meth:`constrain` takes to these parameters."""
        rows = [self.transforms[name].inv(parameters[name]) for name in self.parameters]
        return torch.cat([row.reshape(len(row), -1) for row in rows], 1)

    def flat(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The parameters side by side, ``(n, columns)``, as :attr:`columns` names them."""
        return torch.cat([parameters[name].reshape(len(parameters[name]), -1) for name in self.parameters], 1)
