"""A fitted model: codec, flow, calibration and baseline; densities and rows in the user's own units."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli import tensorfile
from flowcli.data.codec import Rows, TableCodec
from flowcli.data.status import MISSING, NONFINITE, VIOLATED
from flowcli.errors import DataError, FlowcliError, ModelFileError, UsageError
from flowcli.flows.base import HALF_LOG_2PI
from flowcli.flows.flow import Flow
from flowcli.flows.registry import build
from flowcli.recipe import Recipe, from_dict

if TYPE_CHECKING:
    import pandas as pd

MODEL_FILE = "model.safetensors"
CHUNK = 8192  # rows that go through the flow at once
PART = 16_384  # sampled rows that share a seed

Density = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Baseline:
    """The full-covariance Gaussian of the training rows in the codec's space: what a flow has to beat."""

    mean: Tensor
    covariance: Tensor

    # The share of each variance that is added to it: whatever the columns' scales, a Cholesky factor exists.
    RIDGE = 1e-6

    @staticmethod
    def of(y: Tensor) -> Baseline:
        """Moments of encoded rows ``(n, features)``; kept below 1e100, whose square is finite."""
        y = y.clamp(-1e100, 1e100)
        centred = y - y.mean(0)
        covariance = centred.T @ centred / max(len(y) - 1, 1)
        ridge = Baseline.RIDGE * covariance.diagonal().clamp(min=Baseline.RIDGE)
        return Baseline(y.mean(0), covariance + torch.diag(ridge))

    def log_prob(self, y: Tensor, context: Tensor | None = None, diagonal: bool = False) -> Tensor:
        """Log-density ``(n,)`` of encoded rows; ``diagonal`` leaves the correlations out. The context is not used."""
        covariance = torch.diag(self.covariance.diagonal()) if diagonal else self.covariance
        factor = torch.linalg.cholesky(covariance)
        z = torch.linalg.solve_triangular(factor, (y.double() - self.mean).T, upper=False)
        log_prob: Tensor = -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - len(self.mean) * HALF_LOG_2PI
        return log_prob


@dataclass
class Model:
    """What ``score`` and ``sample`` need, and the public Python API.

    ``calibration`` holds the sorted scores of held-out rows, float64. ``about`` is what ``inspect`` prints beside.
    """

    recipe: Recipe
    codec: TableCodec
    flow: Flow
    baseline: Baseline
    calibration: Tensor
    about: dict[str, Any] = field(default_factory=dict)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | pathlib.Path) -> None:
        """Write one self-contained file."""
        tensors = {f"flow.{name}": tensor for name, tensor in self.flow.state_dict().items()}
        tensors |= {
            "baseline.mean": self.baseline.mean,
            "baseline.covariance": self.baseline.covariance,
            "calibration": self.calibration,
        }
        about = {"recipe": self.recipe.model_dump(mode="json"), "codec": self.codec.to_dict(), "about": self.about}
        tensorfile.write(pathlib.Path(path), tensors, about)

    @staticmethod
    def load(path: str | pathlib.Path) -> Model:
        """A model from its file or its run folder, on the CPU.

        Raises ModelFileError: as :func:`flowcli.tensorfile.read` does, and when the tensors are not exactly those that
        the file's own recipe implies.
        """
        path = pathlib.Path(path)
        file = path / MODEL_FILE if path.is_dir() else path
        tensors, stored = tensorfile.read(file)
        try:
            recipe, codec = from_dict(stored["recipe"]), TableCodec.from_dict(stored["codec"])
            with torch.device("meta"):
                expected = new_flow(recipe, codec).state_dict()
        except (FlowcliError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{file}: its recipe or codec is not one this flowcli knows: {error}") from None
        d = codec.features
        shapes = {f"flow.{name}": (tensor.shape, tensor.dtype) for name, tensor in expected.items()} | {
            "baseline.mean": (torch.Size([d]), torch.float64),
            "baseline.covariance": (torch.Size([d, d]), torch.float64),
        }
        calibration = tensors.pop("calibration", None)
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if found != shapes or calibration is None or calibration.dtype != torch.float64 or calibration.ndim != 1:
            differing = sorted(name for name, _ in set(found.items()) ^ set(shapes.items())) or ["calibration"]
            raise ModelFileError(f"{file}: the tensor {differing[0]} is not what the file's own recipe implies.")
        flow = new_flow(recipe, codec)
        flow.load_state_dict({name[len("flow.") :]: t for name, t in tensors.items() if name.startswith("flow.")})
        baseline = Baseline(tensors["baseline.mean"], tensors["baseline.covariance"])
        return Model(recipe, codec, flow.eval(), baseline, calibration, stored["about"])

    # -- density -------------------------------------------------------------------------------------------------

    def rows_log_prob(self, rows: Rows, density: Density | None = None) -> NDArray[np.float64]:
        """Log-densities ``(n,)`` of rows in the user's units; log-mass in the discrete columns.

        ``density`` is another density of encoded rows than the flow's. The density is averaged over K evenly spread
        points of each row's cell (one, where no column is discrete): log 1/K Σ exp(log p(y_k) + log|dy_k/dx|), which
        tends to the cell's true mass as K grows. NaN for a row with a missing value; −∞ where the density is zero,
        underflows, or a constant column differs.
        """
        density = density or self._flow_density
        points = self.codec.points(self.recipe.score.dequantization_samples)
        out = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            raw = rows.raw[start : start + CHUNK]
            context = None if rows.context is None else rows.context[start : start + CHUNK]
            terms = []
            for point in points:
                y, log_det = self.codec.encode(raw, point.expand(raw.shape))
                terms.append(density(y, context) + log_det)
            log_prob = torch.logsumexp(torch.stack(terms), 0) - math.log(len(points))
            out[start : start + CHUNK] = log_prob.numpy()
        out[~np.isfinite(out) | np.isin(rows.status, (NONFINITE, VIOLATED))] = -np.inf
        out[rows.status == MISSING] = np.nan
        return out

    @torch.no_grad()
    def _flow_density(self, y: Tensor, context: Tensor | None) -> Tensor:
        like = self.flow.base.anchor
        y = y.to(like.device, like.dtype)
        return self.flow.log_prob(y, None if context is None else context.to(y)).double().cpu()

    def log_prob(self, frame: pd.DataFrame | pa.Table) -> NDArray[np.float64]:
        """Natural log of the density ``(n,)`` of each row, in the frame's own units.

        Raises DataError when columns are missing or of another type.
        """
        return self.rows_log_prob(self.codec.read(_table(frame)))

    def score(self, frame: pd.DataFrame | pa.Table, alpha: float | None = None) -> pd.DataFrame:
        """One row for each row of ``frame``: log_prob, score, p_value, status, and is_anomaly when ``alpha`` is given.

        Raises DataError when columns are missing or of another type.
        """
        from flowcli.scoring import Level, score_batch  # scoring is built on this module

        scores: pd.DataFrame = score_batch(self, _table(frame), Level(alpha=alpha)).to_pandas()
        return scores

    # -- sampling ------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        given: Mapping[str, Any] | pd.DataFrame | pa.Table | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> pd.DataFrame:
        """``n`` new rows with the training table's columns and types; with ``given``, ``n`` for each of its rows.

        Raises UsageError when given columns are needed and not there, or the other way round; DataError when their
        values cannot be used.
        """
        parts = list(self.sample_batches(n, given, seed, temperature))
        rows: pd.DataFrame = pa.Table.from_batches(parts, self.sample_schema()).to_pandas()
        return rows

    def sample_schema(self) -> pa.Schema:
        """The columns that :meth:`sample` gives: those it was given, then those it draws."""
        types = self.codec.types
        return pa.schema([(c.name, types[c.name]) for c in (*self.codec.given, *self.codec.columns)])

    def sample_batches(
        self,
        n: int,
        given: Mapping[str, Any] | pd.DataFrame | pa.Table | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> Iterator[pa.RecordBatch]:
        """:meth:`sample` in batches. The rows are functions of (seed, place), so fewer rows are a prefix of more.

        Raises before the first batch is drawn, as :meth:`sample` does.
        """
        table = self._given_table(given)
        context = None if table is None else self.codec.read_given(table)
        return self._draw(n, table, context, seed, temperature)

    def _draw(
        self, n: int, table: pa.Table | None, context: Tensor | None, seed: int, temperature: float
    ) -> Iterator[pa.RecordBatch]:
        total = n if table is None else n * table.num_rows
        like = self.flow.base.anchor
        for part in range(-(-total // PART)):
            start, stop = part * PART, min((part + 1) * PART, total)
            state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)[0]
            with torch.no_grad():
                generator = torch.Generator().manual_seed(int(state) >> 1)
                z = self.flow.base.cpu().sample(PART, generator, temperature)[: stop - start]
                self.flow.base.to(like.device)
                rows = torch.arange(start, stop) // n
                c = None if context is None else context[rows].to(like)
                y, _ = self.flow.bijection.inverse(z.to(like.device), c)
            drawn = self.codec.decode(y.cpu())
            arrays = (
                {}
                if table is None
                else {c.name: table.column(c.name).take(pa.array(rows.numpy())) for c in self.codec.given}
            )
            arrays |= dict(zip(drawn.schema.names, drawn.columns, strict=True))
            yield pa.Table.from_pydict(arrays).cast(self.sample_schema()).combine_chunks().to_batches()[0]

    def _given_table(self, given: Mapping[str, Any] | pd.DataFrame | pa.Table | None) -> pa.Table | None:
        names = [column.name for column in self.codec.given]
        if not names:
            if given is not None:
                raise UsageError("this model was fitted without given columns, so nothing can be given.")
            return None
        if given is None:
            raise UsageError(f"this model needs its given columns: {', '.join(names)}.")
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise UsageError(f"'{unknown[0]}' is not a given column of this model, which has {', '.join(names)}.")
            types = self.codec.types
            try:
                given = pa.table({k: pa.array([v]).cast(types[k]) for k, v in given.items()})
            except pa.ArrowException as error:
                raise DataError(f"given: {error}.") from None
        return _table(given)


def new_flow(recipe: Recipe, codec: TableCodec) -> Flow:
    """The recipe's flow, at the identity, for the codec's columns."""
    options = recipe.flow.model_dump()
    flow = build(options.pop("type"), codec.features, codec.context, **options)
    return flow.to(getattr(torch, recipe.train.precision))


def _table(frame: pd.DataFrame | pa.Table) -> pa.Table:
    return frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
