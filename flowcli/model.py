"""A fitted model: codec, flow, calibration and baseline; densities and rows in the user's own units."""

from __future__ import annotations

import copy
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli import tensorfile
from flowcli.baseline import MAX_COVARIANCE, MAX_SOLVED, WIDER, Baseline
from flowcli.build import new_flow
from flowcli.data.codec import Codec, Rows
from flowcli.data.image import FILE, ImageCodec
from flowcli.data.noise import lattice
from flowcli.data.status import NAMES, NONFINITE, OK, VIOLATED
from flowcli.data.table import TableCodec
from flowcli.errors import DataError, FlowcliError, ModelFileError, UsageError
from flowcli.flows.flow import Flow
from flowcli.neighbours import FIGURES, MOST_LOG, Neighbours, Reference
from flowcli.ordered import in_order
from flowcli.places import is_object
from flowcli.recipe import Recipe, from_dict

if TYPE_CHECKING:
    import pandas as pd

MODEL_FILE = "model.safetensors"

Encoded = Callable[[Tensor, Tensor | None], Tensor]  # a density of encoded rows
DRAWS = 128  # of a row's missing values


class Density(NamedTuple):
    """Log-densities of rows in the user's units, all ``(n,)``; nats.

    ``log_prob`` is that of what is there of each row, and ``error`` its standard error where it is an estimate, else 0.
    ``complete`` is what a row's log-density would be with its missing values, on average over what they may have been:
    the log-density itself where none is missing. It can be compared between rows that miss different values.
    """

    log_prob: NDArray[np.float64]
    error: NDArray[np.float64]
    complete: NDArray[np.float64]


@dataclass
class Model:
    """What ``score`` and ``sample`` need, and the public Python API.

    ``calibration (k, held-out rows)`` holds what scores are made of, float64 (:mod:`flowcli.scoring.method`).
    ``reference`` are the rows that ``score.method: neighbours`` compares with. ``about`` is what ``inspect`` prints
    beside; ``digest`` the SHA-256 of the file it was read from, if it was.
    """

    recipe: Recipe
    codec: Codec
    flow: Flow
    baseline: Baseline
    calibration: Tensor
    about: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    digest: str = ""

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | pathlib.Path) -> None:
        """Write one self-contained file, or object of a store."""
        tensors = {f"flow.{name}": tensor for name, tensor in self.flow.state_dict().items()}
        tensors |= {
            "baseline.mean": self.baseline.mean,
            "baseline.covariance": self.baseline.covariance,
            "calibration": self.calibration,
        }
        if self.reference is not None:
            tensors |= {f"reference.{part}": rows for part, rows in self.reference._asdict().items()}
        about = {"recipe": self.recipe.model_dump(mode="json"), "codec": self.codec.to_dict(), "about": self.about}
        tensorfile.write(path if is_object(path) else pathlib.Path(path), tensors, about)

    @staticmethod
    def load(path: str | pathlib.Path) -> Model:
        """A model from its file or its run folder, on a disk or in a store, on the CPU.

        Raises ModelFileError: as :func:`flowcli.tensorfile.read` does, when the tensors are not exactly those that the
        file's own recipe implies, and when it is a :class:`flowcli.variational.Posterior`.
        """
        file = model_file(path)
        return Model.parse(tensorfile.contents(file), file)

    @staticmethod
    def parse(content: bytes, file: str | pathlib.Path) -> Model:
        """:meth:`load`, of the bytes that were in ``file``."""
        tensors, stored = tensorfile.parse(content, file)
        if isinstance(stored.get("recipe"), dict) and stored["recipe"].get("target") is not None:
            raise ModelFileError(
                f"{file}: is of a target, not of data: `sample`, `evaluate`, `report` and `inspect` take it."
            )
        try:
            recipe, codec, about = from_dict(stored["recipe"]), codec_from_dict(stored["codec"]), dict(stored["about"])
            images = isinstance(codec, ImageCodec)
            if images != (recipe.data.image is not None):
                raise ValueError("one is of images and the other of a table")
            if codec.context and recipe.score.method == "neighbours":
                raise ValueError("rows with given columns have no neighbours")
            if not all(isinstance(figure, int | float | None) for figure in about.values()):
                raise ValueError("what is known of the fit is not in figures")
            with torch.device("meta"):
                expected = new_flow(recipe, codec).state_dict()
        except (FlowcliError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelFileError(f"{file}: its recipe or codec is not one this flowcli knows: {error}") from None
        d, diagonal = codec.features, tensors.get("baseline.covariance", torch.empty(0)).ndim == 1
        shapes = {f"flow.{name}": (tensor.shape, tensor.dtype) for name, tensor in expected.items()} | {
            "baseline.mean": (torch.Size([d]), torch.float64),
            "baseline.covariance": (torch.Size([d] * (1 + (d <= MAX_COVARIANCE and not diagonal))), torch.float64),
        }
        compares = recipe.score.method == "neighbours"
        calibration = tensors.pop("calibration", torch.empty(0))
        reference: Reference | None = None
        if compares:
            reference = Reference(*(tensors.pop(f"reference.{part}", torch.empty(0)) for part in Reference._fields))
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        figures = 1 + images + sum(FIGURES) * compares
        calibrated = calibration.dtype == torch.float64 and calibration.ndim == 2 and len(calibration) == figures
        referred = reference is None or reference.fits(d)
        if compares and calibrated:
            calibrated = bool((calibration[1:].abs() < MOST_LOG).all())
        if found != shapes or not calibrated or not referred:
            differing = sorted(name for name, _ in set(found.items()) ^ set(shapes.items()))
            differing += ["reference" if calibrated else "calibration"]
            raise ModelFileError(f"{file}: the tensor {differing[0]} is not what the file's own recipe implies.")
        flow = new_flow(recipe, codec)
        flow.load_state_dict({name[len("flow.") :]: t for name, t in tensors.items() if name.startswith("flow.")})
        baseline = Baseline(tensors["baseline.mean"], tensors["baseline.covariance"], codec.cells)
        digest = hashlib.sha256(content).hexdigest()
        return Model(recipe, codec, flow.eval(), baseline, calibration, about, reference, digest)

    @property
    def points(self) -> int:
        """Places in each cell that densities are averaged over, by the recipe."""
        asked = self.recipe.score.dequantization_samples
        return self.codec.points if asked == "auto" else asked

    @property
    def threads(self) -> int:
        """How many batches are worth computing at once: as many as torch has threads; one, where a device does it."""
        return torch.get_num_threads() if self.flow.base.anchor.device.type == "cpu" else 1

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """What rows are compared with, if the recipe's score asks for it."""
        return None if self.reference is None else Neighbours(self.reference, self.baseline, self.flow)

    def log_distances(self, rows: Rows, own: bool = False) -> NDArray[np.float64]:
        """:meth:`~flowcli.neighbours.Neighbours.log_distances` ``(k, n)`` of rows that were read; of none, without."""
        if self.neighbours is None:
            return np.empty((0, len(rows)))
        y, _ = self.codec.encode(rows.raw, torch.full_like(rows.raw, 0.5))
        return np.asarray(self.neighbours.log_distances(y, rows.missing, own).numpy())

    # -- density -------------------------------------------------------------------------------------------------

    def rows_log_prob(
        self, rows: Rows, density: Encoded | None = None, samples: int | None = None
    ) -> NDArray[np.float64]:
        """The ``log_prob`` of :meth:`density`."""
        return self.density(rows, density, samples).log_prob

    def density(self, rows: Rows, density: Encoded | None = None, samples: int | None = None) -> Density:
        """Log-densities ``(n,)`` of rows in the user's units; log-mass in the discrete columns.

        ``density`` is another density of encoded rows than the flow's. The density is averaged over K places in each
        row's cell (one, where it does not matter): log 1/K Σ exp(log p(y_k) + log|dy_k/dx|), which tends to the cell's
        true mass as K grows. ``samples`` is another K than the recipe's. Missing values are integrated out
        (:meth:`completed`). NaN for a row of which nothing can be said; −∞ where the density is zero, underflows, or a
        constant column differs.
        """
        density, samples = density or self._flow_density, samples or self.points
        chunk = self.codec.rows_at_once
        out = np.zeros((3, len(rows)))
        placeless = self.codec.placeless(rows.raw).numpy()
        for which in (placeless, ~placeless):
            for index in _chunks(which & ~rows.holes, chunk):
                out[0, index] = out[2, index] = self._averaged(rows.take(torch.from_numpy(index)), density, samples)
        for index in _chunks(rows.holes, chunk):
            out[:, index] = self.completed(rows.take(torch.from_numpy(index)), density)
        impossible = ~np.isfinite(out[0]) | np.isin(rows.status, (NONFINITE, VIOLATED))
        out[:, impossible] = np.array([-np.inf, 0.0, -np.inf])[:, None]
        out[:, rows.lost] = np.nan
        return Density(*out)

    def _averaged(self, rows: Rows, density: Encoded, samples: int) -> NDArray[np.float64]:
        """Log-densities ``(n,)`` of rows without holes, whatever their status."""
        terms = []
        for place in self.codec.places(rows.raw, samples):
            y, log_det = self.codec.encode(rows.raw, place.expand(rows.raw.shape))
            terms.append(density(y, rows.context) + log_det)
        return (torch.logsumexp(torch.stack(terms), 0) - math.log(len(terms))).numpy()

    def completed(self, rows: Rows, density: Encoded | None = None, draws: int = DRAWS) -> Density:
        """The :class:`Density` of rows that all have missing values, whatever their status.

        By importance sampling with draws m of the missing part from the baseline's conditional q, half of them wider:
        p(x_O) = E_q[p(x_O, m)/q(m)]. The same evenly spread draws (a scrambled Sobol sequence) serve all rows.
        """
        assert rows.missing is not None
        density, most = density or self._flow_density, int(rows.missing.sum(1).max())
        chunk = max(1, min(self.codec.rows_at_once // draws, MAX_SOLVED // most**2))
        parts = [
            self._completed(rows.take(torch.arange(start, min(start + chunk, len(rows)))), density, draws)
            for start in range(0, len(rows), chunk)
        ]
        return Density(*np.concatenate(parts, 1))

    def _completed(self, rows: Rows, density: Encoded, draws: int) -> NDArray[np.float64]:
        """:meth:`completed` for so few rows that all draws of all of them are one batch, ``(3, n)``."""
        codec, (n, d) = self.codec, rows.raw.shape
        assert isinstance(codec, TableCodec)
        assert rows.missing is not None
        noise = torch.special.ndtri(lattice(2 * draws, d)[draws:].clamp(1e-9, 1 - 1e-9))
        noise[1::2] *= WIDER
        middle, _ = codec.encode(rows.raw, torch.full_like(rows.raw, 0.5))
        drawn, log_q = self.baseline.draws(middle, rows.missing, noise[None])
        raw, hole = (part.repeat_interleave(draws, 0) for part in (rows.raw, rows.missing))
        places = lattice(draws, d).repeat(n, 1)
        y, log_slopes = codec.encode_columns(raw, places)
        y = torch.where(hole, drawn.reshape(-1, d), y)
        log_p = density(y, None if rows.context is None else rows.context.repeat_interleave(draws, 0))
        gone = torch.stack([hole[:, slots].any(1) for slots in codec.slots], 1)
        _, drawn_slopes = codec.encode_columns(torch.where(hole, codec.decode_raw(y), raw), places)
        log_p = (log_p + torch.where(gone, 0.0, log_slopes).sum(1)).view(n, draws)
        complete = log_p + torch.where(gone, drawn_slopes, 0.0).sum(1).view(n, draws)
        weights = log_p - log_q
        share = torch.softmax(weights, 1)
        error = (share * draws - 1).square().mean(1).sqrt() / math.sqrt(draws)
        log_prob = torch.logsumexp(weights, 1) - math.log(draws)
        return torch.stack([log_prob, error, (share * complete).sum(1)]).numpy()

    @torch.no_grad()
    def _flow_density(self, y: Tensor, context: Tensor | None) -> Tensor:
        like = self.flow.base.anchor
        y = y.to(like.device, like.dtype)
        return self.flow.log_prob(y, None if context is None else context.to(y)).double().cpu()

    @torch.no_grad()
    def round_trip_error(self, rows: Rows) -> float | None:
        """The largest |f⁻¹(f(y)) − y| / max(1, |y|) over encoded rows y, in the flow's units; None when not finite.

        It says how far the rows that :meth:`sample` draws can be from the density that :meth:`log_prob` states. Of a
        discrete number only its code counts, and where there are such the rows are drawn ones: no precision tells apart
        the places in a cell that is all but impossible.
        """
        like, discrete = self.flow.base.anchor, len(self.codec.cells)
        y, _ = self.codec.encode(rows.raw, torch.full(rows.raw.shape, 0.5, dtype=torch.float64))
        y, context = y.to(like), None if rows.context is None else rows.context.to(like)
        if discrete:
            y = self.flow.sample(len(y), context, torch.Generator(like.device).manual_seed(0))
        z, _ = self.flow.bijection(y, context)
        back, _ = self.flow.bijection.inverse(z, context)
        error = (back - y).abs() / y.abs().clamp(min=1)
        error[:, :discrete] = (back[:, :discrete].floor() != y[:, :discrete].floor()).to(error.dtype)
        largest = float(error.max())
        return largest if math.isfinite(largest) else None

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
        latents: bool = False,
    ) -> pd.DataFrame:
        """``n`` new rows with the training table's columns and types; with ``given``, ``n`` for each of its rows.

        ``latents`` adds what each was drawn from: a column of lists for every scale of an image flow, the finest first
        (``latent_1`` …), or one for a table.

        Raises UsageError when given columns are needed and not there, or the other way round; DataError when their
        values cannot be used.
        """
        parts = list(self.sample_batches(n, given, seed, temperature, latents))
        rows: pd.DataFrame = pa.Table.from_batches(parts, self.sample_schema(latents)).to_pandas()
        return rows

    @torch.no_grad()
    def between(self, frame: pd.DataFrame | pa.Table, steps: int, given: Mapping[str, Any] | None = None) -> pa.Table:
        """``steps`` rows on the straight line between the latents of the two rows of ``frame``, both ends included
        (Glow, section 6). Given columns are those of ``frame``, or ``given`` for all.

        Raises DataError when ``frame`` does not hold two rows that can be read, UsageError for fewer than two steps.
        """
        if steps < 2:
            raise UsageError(f"{steps} steps are too few; the two ends are two.")
        table, place = _table(frame), self.given_table(given) if given else None
        if place is not None:
            self.codec.read_given(place)  # refuses what it does not know
            for name in place.column_names:
                table = table.drop_columns(name) if name in table.column_names else table
                table = table.append_column(name, place.column(name).take(pa.array([0] * table.num_rows)))
        rows = self.codec.read(table)
        if len(rows) != 2:
            raise DataError(f"going between needs two rows, and these are {len(rows)}.")
        for i, status in enumerate(rows.status):
            if status != OK:
                name = table.column(FILE)[i].as_py() if FILE in table.column_names else f"row {i}"
                raise DataError(f"{name}: cannot be an end to go between: {NAMES[status]}.")
        like = self.flow.base.anchor
        y, _ = self.codec.encode(rows.raw, torch.full(rows.raw.shape, 0.5, dtype=torch.float64))
        context = None if rows.context is None else rows.context.to(like)
        z, _ = self.flow.bijection(y.to(like), context)
        share = torch.linspace(0, 1, steps).to(like)[:, None]
        line = [None if ends is None else torch.lerp(ends[:1], ends[1:], share) for ends in (z, context)]
        assert line[0] is not None
        return self.decoded(line[0], line[1])

    def sample_schema(self, latents: bool = False) -> pa.Schema:
        """The columns that :meth:`sample` gives: those it was given, then those it draws, then the latents."""
        types = self.codec.types
        sizes = self.flow.latent_sizes if latents else []
        lists = [(f"latent_{i}", pa.list_(pa.float64(), size)) for i, size in enumerate(sizes, 1)]
        return pa.schema([*((c.name, types[c.name]) for c in self.codec.given), *self.codec.schema, *lists])

    def sample_batches(
        self,
        n: int,
        given: Mapping[str, Any] | pd.DataFrame | pa.Table | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        latents: bool = False,
        parts: Iterable[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """:meth:`sample` in batches. The rows are functions of (seed, place), so fewer rows are a prefix of more.

        ``parts`` are the numbers of the batches wanted, of ``codec.rows_at_once`` rows each but for the last; all of
        them, unless given. Raises before the first batch is drawn, as :meth:`sample` does.
        """
        table = self.given_table(given)
        context = None if table is None else self.codec.read_given(table)
        return self._draw(n, table, context, seed, temperature, self.sample_schema(latents), parts)

    def _draw(
        self,
        n: int,
        table: pa.Table | None,
        context: Tensor | None,
        seed: int,
        temperature: float,
        schema: pa.Schema,
        parts: Iterable[int] | None,
    ) -> Iterator[pa.RecordBatch]:
        total = n if table is None else n * table.num_rows
        like, base = self.flow.base.anchor, copy.deepcopy(self.flow.base).cpu()
        size = self.codec.rows_at_once  # rows that share a seed
        wanted = range(-(-total // size)) if parts is None else parts

        @torch.no_grad()
        def drawn(part: int) -> pa.RecordBatch:
            start, stop = part * size, min((part + 1) * size, total)
            state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state) >> 1)
            z = base.sample(size, generator, temperature)[: stop - start]
            rows = torch.arange(start, stop) // n
            new = self.decoded(z.to(like.device), None if context is None else context[rows].to(like))
            arrays = (
                {}
                if table is None
                else {c.name: table.column(c.name).take(pa.array(rows.numpy())) for c in self.codec.given}
            )
            arrays |= dict(zip(new.schema.names, new.columns, strict=True))
            lists = schema.names[len(arrays) :]
            for name, scale in zip(lists, z.double().split(self.flow.latent_sizes, 1) if lists else [], strict=True):
                arrays[name] = pa.FixedSizeListArray.from_arrays(scale.reshape(-1).numpy(), scale.shape[1])
            return pa.Table.from_pydict(arrays).cast(schema).combine_chunks().to_batches()[0]

        return in_order(drawn, wanted, self.threads, alike=parts is not None)

    @torch.no_grad()
    def decoded(self, z: Tensor, context: Tensor | None = None) -> pa.Table:
        """The rows whose latents are ``z (n, features)``."""
        chunk = self.codec.rows_at_once
        batches = []
        for start in range(0, len(z), chunk):
            c = None if context is None else context[start : start + chunk]
            y, _ = self.flow.bijection.inverse(z[start : start + chunk], c)
            batches.append(self.codec.decode(y.cpu()))
        return pa.Table.from_batches(batches)

    def given_table(self, given: Mapping[str, Any] | pd.DataFrame | pa.Table | None) -> pa.Table | None:
        """What is given as a table, None for a model that needs nothing. Raises as :meth:`sample` does."""
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


def model_file(path: str | pathlib.Path) -> str | pathlib.Path:
    """The model file that a run folder, or the file itself, stands for."""
    if isinstance(path, str) and is_object(path):
        return path if path.endswith(".safetensors") else f"{path.rstrip('/')}/{MODEL_FILE}"
    path = pathlib.Path(path)
    return path / MODEL_FILE if path.is_dir() else path


def codec_from_dict(codec: Mapping[str, Any]) -> Codec:
    """The codec that its ``to_dict`` described."""
    return ImageCodec.from_dict(codec) if "image" in codec else TableCodec.from_dict(codec)


def _chunks(which: NDArray[np.bool_], size: int) -> Iterator[NDArray[np.int64]]:
    """The places of the rows that are meant, so many at a time."""
    places = np.flatnonzero(which)
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _table(frame: pd.DataFrame | pa.Table) -> pa.Table:
    return frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
