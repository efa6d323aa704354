"""A fitted posterior: its parameters, its flow, and one file that holds both."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flowcli import tensorfile
from flowcli.errors import FlowcliError, ModelFileError, UsageError
from flowcli.flows.bijection import Chain
from flowcli.flows.flow import Flow
from flowcli.flows.linear import Triangular
from flowcli.flows.registry import build
from flowcli.model import MODEL_FILE
from flowcli.recipe import Recipe, from_dict
from flowcli.variational.space import Space
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import Draws, evenly, importance_draws, smoothed

ROWS = 4096  # that share a seed
SPARE = 4  # candidates for each row that is resampled
FEWEST = 8192  # candidates, or rows that weights are smoothed over
LOG_WEIGHT = "log_weight"


@dataclass
class Posterior:
    """What ``sample`` and ``evaluate`` need. ``digest`` is that of the target's code and data at the fit."""

    recipe: Recipe
    flow: Flow
    digest: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        """The parameters."""
        return Space(self.recipe.parameters)

    @property
    def schema(self) -> pa.Schema:
        """The columns of draws: one for each number, as ArviZ names them."""
        return pa.schema([(name, pa.float64()) for name in self.space.columns])

    def save(self, path: str | pathlib.Path) -> None:
        """Write one self-contained file, without the target's code."""
        tensors = {f"flow.{name}": tensor for name, tensor in self.flow.state_dict().items()}
        recipe = self.recipe.model_dump(mode="json")
        order = list(self.recipe.parameters)  # which the file's sorted keys do not keep
        about = {"recipe": recipe, "order": order, "digest": self.digest, "about": self.about}
        tensorfile.write(pathlib.Path(path), tensors, about)

    @staticmethod
    def load(path: str | pathlib.Path) -> Posterior:
        """From a file or a run folder. Runs no code. Raises ModelFileError, also when the model is of data."""
        file = pathlib.Path(path) / MODEL_FILE if pathlib.Path(path).is_dir() else pathlib.Path(path)
        tensors, stored = tensorfile.read(file)
        try:
            recipe, about, digest = from_dict(stored["recipe"]), dict(stored["about"]), str(stored["digest"])
            if recipe.target is None:
                raise ValueError("it is of data")
            if sorted(stored["order"]) != sorted(recipe.parameters):
                raise ValueError("the order of its parameters is not that of its recipe's")
            ordered = {name: recipe.parameters[name] for name in stored["order"]}
            recipe = recipe.model_copy(update={"parameters": ordered})
            if not all(isinstance(figure, int | float | None) for figure in about.values()):
                raise ValueError("what is known of the fit is not in figures")
            with torch.device("meta"):
                expected = new_flow(recipe).state_dict()
        except (FlowcliError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelFileError(f"{file}: is not a posterior that this flowcli knows: {error}") from None
        shapes = {f"flow.{name}": (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if found != shapes:
            name = min(name for name, _ in set(found.items()) ^ set(shapes.items()))
            raise ModelFileError(f"{file}: the tensor {name} is not what the file's own recipe implies.")
        flow = new_flow(recipe)
        flow.load_state_dict({name[len("flow.") :]: tensor for name, tensor in tensors.items()})
        return Posterior(recipe, flow.eval(), digest, about)

    def table(self, u: Tensor) -> pa.Table:
        """Unconstrained rows as columns on the parameters' own scales."""
        parameters, _ = self.space.constrain(u)
        return pa.Table.from_arrays(
            [pa.array(column) for column in self.space.flat(parameters).T.numpy()], schema=self.schema
        )

    @torch.no_grad()
    def sample_batches(self, n: int, seed: int = 0, temperature: float = 1.0) -> Iterator[pa.RecordBatch]:
        """``n`` draws of the flow. They are functions of (seed, place), so fewer rows are a prefix of more."""
        for part in range(-(-n // ROWS)):
            z = self.flow.base.sample(ROWS, seeded(seed, part), temperature)
            u = self.flow.bijection.inverse(z)[0].double()  # of all, since sums round by how many rows there are
            yield self.table(u)[: n - part * ROWS].combine_chunks().to_batches()[0]

    def weighted(self, density: LogDensity, n: int, seed: int = 0) -> tuple[pa.Table, float]:
        """``n`` importance draws with the column ``log_weight``, the Pareto-smoothed weights' logarithm (their mean is
        1), and k̂. Raises as :func:`flowcli.variational.weights.smoothed` does."""
        draws = importance_draws(self.flow, density, max(n, FEWEST), seeded(seed, 0))
        log_weights, shape = smoothed(draws.log_weights)
        table = self.table(draws.u[:n]).append_column(LOG_WEIGHT, pa.array(log_weights[:n]))
        return table, shape

    def resampled(self, density: LogDensity, n: int, seed: int = 0) -> tuple[pa.Table, float]:
        """``n`` draws resampled by Pareto-smoothed weights from four times as many, and k̂. Raises as
        :meth:`weighted`."""
        draws: Draws = importance_draws(self.flow, density, max(SPARE * n, FEWEST), seeded(seed, 0))
        log_weights, shape = smoothed(draws.log_weights)
        picked = evenly(log_weights, n, np.random.default_rng(seed))
        return self.table(draws.u[torch.from_numpy(picked)]), shape


def seeded(seed: int, part: int) -> torch.Generator:
    """A generator for one part of what a seed gives."""
    state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def new_flow(recipe: Recipe, first: Triangular | None = None) -> Flow:
    """The recipe's flow, at its start, behind a fixed layer that whitens. Raises UsageError."""
    space, options = Space(recipe.parameters), recipe.flow.model_dump()
    try:
        flow = build(options.pop("type"), space.features, **options)
    except ValueError as error:
        raise UsageError(f"flow: {error}.") from None
    first = first or Triangular(space.features).requires_grad_(False)
    assert isinstance(flow.bijection, Chain)
    dtype = torch.float64 if recipe.train.precision == "float64" else torch.float32
    return Flow([first, *flow.bijection], flow.base).to(dtype)


def is_posterior(path: str) -> bool:
    """Whether a model file, or a run folder's, is of a target: by its header alone, which need not be whole."""
    file = pathlib.Path(path) / MODEL_FILE if pathlib.Path(path).is_dir() else pathlib.Path(path)
    try:
        return tensorfile.peek(file).get("recipe", {}).get("target") is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False  # whoever reads it says what is wrong
