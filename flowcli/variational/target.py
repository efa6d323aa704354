"""The log-density that a recipe names: other people's code, run only when the user allows it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from flowcli.errors import DataError, UsageError
from flowcli.recipe import Target
from flowcli.variational.space import Space

MODULE = "flowcli_target"


class Raised(UsageError):
    """The target's code raised."""


class LogDensity:
    """log p(u) + constant, ``(n,)``, of unconstrained rows ``u (n, features)``: the target's, with the Jacobian.

    While the target runs, torch's default dtype is float64, so that ``torch.tensor`` of its data keeps all digits.
    A row where it is NaN or +∞ has −∞, and no gradient: it is a place where the target cannot be computed.
    """

    def __init__(self, target: Target, space: Space, function: Callable[..., Any], data: Any) -> None:
        self.target, self.space, self.function, self.data = target, space, function, data
        self.worked = False
        self.failure: Raised | None = None

    @staticmethod
    def load(target: Target, space: Space, allow_code: bool) -> LogDensity:
        """Read the data and run the target's file. Raises UsageError when code is not allowed or the file is not what
        the recipe says, DataError when the data cannot be read."""
        if not allow_code:
            raise UsageError(f"{target.file}: is code, which runs only with --allow-code; read it first.")
        data = _data(target.data) if target.data is not None else None
        module = types.ModuleType(MODULE)
        module.__file__ = target.file
        try:
            source = pathlib.Path(target.file).read_bytes()
        except OSError as error:
            raise UsageError(f"{target.file}: cannot be read: {error.strerror}.") from None
        sys.modules[MODULE] = module  # as dataclasses and pickles in it expect
        with running(target):
            exec(compile(source, target.file, "exec"), module.__dict__)
        function = module.__dict__.get(target.function)
        if not callable(function):
            raise UsageError(f"{target.file}: has no function '{target.function}', which target.function names.")
        return LogDensity(target, space, function, data)

    def __call__(self, u: Tensor) -> Tensor:
        parameters, log_det = self.space.constrain(u)
        # Where exp underflows or a bound is met, a distribution would refuse its argument for all rows.
        within = self.space.within(parameters) & log_det.isfinite()
        if not within.all():
            parameters, log_det = self.space.constrain(torch.where(within[:, None], u, 0.0))
        total = self._value(parameters, len(u)) + log_det
        if self.failure and not self.worked:
            raise self.failure
        return torch.where(within & (total < torch.inf), total, -torch.inf)  # False for NaN

    def _value(self, parameters: Mapping[str, Tensor], n: int) -> Tensor:
        """What the function returns, checked. A row at which it raises has −∞."""
        try:
            value = self._called(parameters, n)
        except Raised as error:
            self.failure = error
            if n == 1:
                return torch.full((1,), -torch.inf, dtype=torch.float64)
            halves = {name: value.tensor_split([n // 2]) for name, value in parameters.items()}
            parts = [{name: half[i] for name, half in halves.items()} for i in range(2)]
            return torch.cat([self._value(part, size) for part, size in zip(parts, (n // 2, n - n // 2), strict=True)])
        self.worked = True
        return value

    def _called(self, parameters: Mapping[str, Tensor], n: int) -> Tensor:
        with running(self.target):
            value = self.function(dict(parameters), self.data)
        where = f"{self.target.file}: {self.target.function}"
        if not isinstance(value, Tensor):
            raise UsageError(f"{where} returned {type(value).__name__}, not a tensor with one value for each row.")
        if value.shape != (n,):
            raise UsageError(f"{where} returned the shape {tuple(value.shape)} for {n} rows; it must be ({n},).")
        if not value.is_floating_point():
            raise UsageError(f"{where} returned {str(value.dtype).removeprefix('torch.')} numbers; it must be floats.")
        if any(part.requires_grad for part in parameters.values()) and not value.requires_grad:
            raise UsageError(f"{where} returned what autograd cannot follow back to the parameters.")
        return value.double()

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density ``(n,)`` and its gradient ``(n, features)``, which is 0 where either is not finite.

        Raises UsageError when the target's value does not depend on the parameters in a way autograd can follow.
        """
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self(u)
            kept = torch.where(value > -torch.inf, value, 0.0) + 0.0 * u.sum(1)  # no row may have been computed
            with running(self.target):
                (gradient,) = torch.autograd.grad(kept.sum(), u)
        value = value.detach()
        bad = ~(gradient.isfinite().all(1) & value.isfinite())
        return value.masked_fill(bad, -torch.inf), gradient.masked_fill(bad[:, None], 0.0)


@contextlib.contextmanager
def running(target: Target) -> Iterator[None]:
    """While open, the target's code runs. What it raises becomes a UsageError that says where."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no result
            yield
    except (Exception, SystemExit) as error:
        raise Raised(f"{_place(error, target.file)}: {_told(error)}.") from error
    finally:
        torch.set_default_dtype(before)


def _place(error: BaseException, file: str) -> str:
    """``file:line`` where the target's own code was when it raised."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1]}" if lines else file


def _told(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    said = error.msg if isinstance(error, SyntaxError) else str(error) if error.args != (None,) else ""
    said = said.strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {said}".rstrip(": .")


def _data(file: str) -> Any:
    try:
        return json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}.") from None


def digest(target: Target) -> str:
    """SHA-256 over the target's code and data as they are now. Raises DataError when they cannot be read."""
    found = hashlib.sha256()
    for file in filter(None, (target.file, target.data)):
        try:
            found.update(hashlib.sha256(pathlib.Path(file).read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}.") from None
    return found.hexdigest()
