"""The part of a recipe that names a log-density and its parameters, in place of data."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from flowcli.recipe.section import Positive, Section

ParameterType = Literal["real", "positive", "interval", "simplex", "ordered", "correlation_cholesky"]

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_INTERVAL = re.compile(rf"interval\({_NUMBER},{_NUMBER}\)")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
MAX_NUMBERS = 4096  # that all parameters of a target may hold
OWN_COLUMNS = ("log_weight",)  # of `sample`, beside the parameters


class Target(Section):
    """An unnormalised log-density, in plain torch. Its code runs only with `--allow-code`."""

    file: str
    """The Python file that has the function. Relative to the recipe."""
    function: str = "log_density"
    """`function(parameters, data)`: `parameters` a dict of float64 tensors whose first axis is the batch, `data` what
    the JSON file holds, or None. Returns one natural log of the density for each row, up to a constant."""
    data: str | None = None
    """A JSON file for the function's second argument. Relative to the recipe."""


class Parameter(Section):
    """What values a parameter may have."""

    type: ParameterType = "real"
    """`simplex` and `ordered` (ascending) are along the last axis, `correlation_cholesky` (the lower factor of a
    correlation matrix) along the last two. The density is with respect to the numbers themselves; of a simplex, to all
    but the last; of a Cholesky factor, to those below the diagonal. `interval(low, high)` is short for the type and
    its bounds."""
    shape: list[Positive] = []
    """Of one draw; `[]` is a single number."""
    low: float | None = None
    """The lower bound of `type: interval`."""
    high: float | None = None
    """The upper bound of `type: interval`."""

    @model_validator(mode="after")
    def _bounds(self) -> Parameter:
        both = self.low is not None and self.high is not None
        if both != (self.type == "interval") or (self.low is None) != (self.high is None):
            raise ValueError("low and high go together with type: interval")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    @model_validator(mode="after")
    def _axes(self) -> Parameter:
        if self.type in ("simplex", "ordered") and (not self.shape or self.shape[-1] < 2):
            raise ValueError(f"{self.type} needs a shape whose last axis is 2 or more, as in shape: [3]")
        square = len(self.shape) >= 2 and self.shape[-1] == self.shape[-2] >= 2
        if self.type == "correlation_cholesky" and not square:
            raise ValueError("correlation_cholesky needs a shape that ends in a square, as in shape: [3, 3]")
        return self


def parameter(value: Any) -> Any:
    """``mu: real`` is short for ``mu: {type: real}``, and ``interval(0, 1)`` for the type with its bounds."""
    value = {"type": value} if isinstance(value, str) else value
    match = _INTERVAL.fullmatch(str(value.get("type"))) if isinstance(value, dict) else None
    return value | {"type": "interval", "low": float(match[1]), "high": float(match[2])} if match else value
