"""What is measured of a run before anything is said or drawn of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.data.image import COLUMN as IMAGE
from flowcli.data.image import FILE, ImageCodec
from flowcli.data.noise import uniforms
from flowcli.data.status import OK
from flowcli.data.table import TableCodec
from flowcli.data.thin import Thinned
from flowcli.errors import DataError
from flowcli.model import Model
from flowcli.report.columns import Column, Pair, compare, pairs
from flowcli.scoring import Scorer, p_values
from flowcli.scoring import method as methods
from flowcli.training.again import Past

Floats = NDArray[np.float64]

ROWS = 10_000  # of the data, and drawn, at most
PLACES = 100_000  # rows times the places their density is averaged over
IMAGES, SHOWN = 500, 16  # images that are scored, and shown of a kind
ODDEST, REASONS = 10, 3
PAIRS = 6
BASE_DRAWS = 4096  # that latents are ranked among
LATENTS = 1 << 18  # numbers in the latents that are ranked
OWN = "data"  # what a run's own rows are called, training and held-out ones together
ROW = "\0row"  # the column of row numbers, which no file has


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    value: float
    error: float

    @staticmethod
    def of(x: Floats) -> Mean | None:
        """Over the finite values; None, when there are not two."""
        x = x[np.isfinite(x)]
        return Mean(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))) if len(x) > 1 else None


@dataclass(frozen=True)
class Odd:
    """One of the oddest rows: what names it, its score, p-value and status, why it is odd (column, its value and nats),
    and its other values."""

    name: str
    score: float | None
    p_value: float | None
    status: str
    reasons: list[tuple[str, str, float]]
    others: list[tuple[str, str]]


@dataclass
class Evidence:
    """All that a report says of a run comes from here. What could not be measured is None or empty, and ``notes`` say
    why. Log-densities are means in nats a row."""

    past: Past
    notes: list[str] = field(default_factory=list)
    data_name: str = ""  # of the rows that are drawn beside drawn ones
    fresh_name: str = ""  # of the rows that the model has not learned from
    log_prob: Mean | None = None  # of held-out rows
    better_than_gaussian: Mean | None = None  # on the same rows
    gap: Mean | None = None  # between training and held-out rows
    columns: list[Column] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    latents: Floats = field(default_factory=lambda: np.zeros(0))  # probability-integral transforms, in (0, 1)
    p_values: Floats = field(default_factory=lambda: np.zeros(0))
    p_values_of: str = ""
    held_out_scores: Floats = field(default_factory=lambda: np.zeros(0))
    scores: Floats = field(default_factory=lambda: np.zeros(0))  # of data that were named
    oddest: list[Odd] = field(default_factory=list)
    sheets: dict[str, list[bytes]] = field(default_factory=dict)  # PNG files by what they show

    @property
    def model(self) -> Model:
        """The run's."""
        return self.past.model


def gather(past: Past, batches: Iterable[pa.RecordBatch] | None = None, name: str = "", seed: int = 0) -> Evidence:
    """Measure a run, on the rows it was made from and, if there are any, on ``batches`` of others, called ``name``.

    P-values are those of the others, or else of training rows, since held-out rows' are uniform whatever the model;
    and of none, where the rows of the fit are what others are compared with.
    Raises DataError when the batches have no rows, or not the model's columns.
    """
    found = Evidence(past)
    model, most = past.model, _most(past.model)
    calibrated = Scorer(model).held_out
    found.held_out_scores = calibrated[calibrated < np.finfo(np.float64).max]
    data = fresh = None
    try:
        split = past.rows()
        own = {"training": split.table.slice(0, split.sampled), "held-out": split.held_out}
        train, held_out = (
            _Measured.of(model, calibrated, _some(table, most), own=part == "held-out") for part, table in own.items()
        )
        for part, table in own.items():
            _note(found, f"{part} rows", len(table), most)
        _held_out(found, held_out, train)
        data, found.data_name = _some(pa.concat_tables(own.values(), promote_options="permissive"), ROWS), OWN
        fresh, found.fresh_name = held_out, "held-out rows"
        if model.neighbours is None:  # to which each training row is its own nearest
            found.p_values, found.p_values_of = train.p_value, "training rows"
    except DataError as error:
        found.notes += error.args
        found.log_prob = Mean.of(model.calibration[0].numpy())
    if batches is not None:
        data, seen = _thinned(model, batches, most, name)
        found.data_name = found.fresh_name = found.p_values_of = name
        _note(found, f"rows of {name}", seen, most)
        fresh = _Measured.of(model, calibrated, data)
        found.scores, found.p_values = fresh.score[~np.isnan(fresh.score)], fresh.p_value
    found.p_values = found.p_values[~np.isnan(found.p_values)]
    if fresh is not None:
        _oddest(found, fresh)
        _latents(found, fresh.rows, seed)
    if data is not None:
        _drawn(found, data, seed)
    elif not model.codec.given:
        _pictures_drawn(found, None, seed)
    return found


def _note(found: Evidence, what: str, there: int, most: int) -> None:
    if there > most:
        found.notes.append(f"Of {there:,} {what} {most:,}, evenly spread, were looked at.")


def _most(model: Model) -> int:
    """How many rows can be scored in a few seconds."""
    return IMAGES if isinstance(model.codec, ImageCodec) else min(ROWS, max(1000, PLACES // model.points))


def _some(table: pa.Table, most: int) -> pa.Table:
    """At most so many rows, evenly spread."""
    if len(table) <= most:
        return table
    return table.take(pa.array(np.linspace(0, len(table) - 1, most).round().astype(np.int64)))


def _thinned(model: Model, batches: Iterable[pa.RecordBatch], most: int, name: str) -> tuple[pa.Table, int]:
    """At most so many rows with their numbers, and how many there were."""
    images = isinstance(model.codec, ImageCodec)
    kept = Thinned(most, [*model.codec.types, *([IMAGE, FILE] if images else []), ROW], name)
    row = 0
    for batch in batches:
        numbers = pa.array(np.arange(row, row + batch.num_rows))
        row += batch.num_rows
        kept.add(batch.drop_columns([n for n in batch.schema.names if n == ROW]).append_column(ROW, numbers))
    return kept.table(), row


@dataclass(frozen=True)
class _Measured:
    """Rows of a table and what the model makes of them, all ``(n,)``; NaN where nothing can be said."""

    table: pa.Table
    rows: Rows
    log_prob: Floats  # of the complete row
    score: Floats
    p_value: Floats

    @staticmethod
    def of(model: Model, held_out: Floats, table: pa.Table, own: bool = False) -> _Measured:
        """``own`` says that they are the model's held-out rows, with which it compares others."""
        rows = model.codec.read(table)
        density = model.density(rows)
        score = methods.score(methods.of_density(model, rows, density, own), model, own=own)
        p_value = np.where(rows.lost, np.nan, p_values(score, held_out))
        return _Measured(table, rows, density.complete, np.where(rows.lost, np.nan, score), p_value)


def _held_out(found: Evidence, held_out: _Measured, train: _Measured) -> None:
    model = found.model
    gaussian = model.density(held_out.rows, model.baseline.log_prob).complete
    found.log_prob, learned = Mean.of(held_out.log_prob), Mean.of(train.log_prob)
    both = np.isfinite(held_out.log_prob) & np.isfinite(gaussian)
    found.better_than_gaussian = Mean.of(held_out.log_prob[both] - gaussian[both])
    if learned and found.log_prob:
        error = math.hypot(learned.error, found.log_prob.error)
        found.gap = Mean(learned.value - found.log_prob.value, error)


def _oddest(found: Evidence, fresh: _Measured) -> None:
    order = np.argsort(-np.nan_to_num(fresh.score, nan=-np.inf), kind="stable")
    if isinstance(found.model.codec, ImageCodec):
        ranked = order[~np.isnan(fresh.score[order])]
        found.sheets["oddest"] = _pngs(found.model, fresh.table, ranked[:SHOWN])
        found.sheets["most typical"] = _pngs(found.model, fresh.table, ranked[::-1][:SHOWN])
    else:
        found.oddest = _explained(found.model, fresh, order[:ODDEST])


def _explained(model: Model, fresh: _Measured, which: NDArray[np.int64]) -> list[Odd]:
    codec = model.codec
    assert isinstance(codec, TableCodec)
    found, rows = [], fresh.table.take(pa.array(which))
    told = Scorer(model, explain=min(REASONS, len(codec.columns)))(rows.drop_columns(_present(rows, ROW)))
    for i, score, row in zip(which, told.to_pylist(), rows.to_pylist(), strict=True):
        reasons = [
            (score[f"reason_{k}"], _shown(row[score[f"reason_{k}"]]), score[f"nats_{k}"])
            for k in range(1, 1 + min(REASONS, len(codec.columns)))
            if score[f"reason_{k}"] is not None
        ]
        named = {ROW, *(name for name, _, _ in reasons)}
        others = [(name, _shown(value)) for name, value in row.items() if name not in named]
        name = f"{row[ROW]:,}" if ROW in row else ""
        value, p_value = (None if np.isnan(v[i]) else float(v[i]) for v in (fresh.score, fresh.p_value))
        found.append(Odd(name, value, p_value, score["status"], reasons, others))
    return found


def _present(table: pa.Table, name: str) -> list[str]:
    return [name] if name in table.column_names else []


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "missing" if value is None else str(value)


@torch.no_grad()
def _latents(found: Evidence, rows: Rows, seed: int) -> None:
    """Where the latents of rows without holes are among draws of the base, column by column: uniform, independent
    numbers in (0, 1) if the flow has learned the distribution (the probability-integral transform, Rosenblatt 1952)."""
    model = found.model
    whole = np.flatnonzero((rows.status == OK) & ~rows.holes & ~rows.lost)
    rows = rows.take(torch.from_numpy(whole[: max(1, LATENTS // model.codec.features)]))
    if not len(rows):
        return
    parts, size, like = [], model.codec.rows_at_once, model.flow.base.anchor
    for start in range(0, len(rows), size):
        some = rows.take(torch.arange(start, min(start + size, len(rows))))
        y, _ = model.codec.encode(some.raw, uniforms(seed, 0, start, *some.raw.shape))
        context = None if some.context is None else some.context.to(like)
        parts.append(model.flow.bijection(y.to(like), context)[0].double().cpu())
    z = torch.cat(parts)
    draws = model.flow.base.sample(BASE_DRAWS, torch.Generator(like.device).manual_seed(seed)).double().cpu()
    below = torch.searchsorted(draws.sort(0).values.T.contiguous(), z.T.contiguous())
    found.latents = ((below.double() + 0.5) / (BASE_DRAWS + 1)).flatten().numpy()


def _drawn(found: Evidence, data: pa.Table, seed: int) -> None:
    """Rows like those of the data: as many, and with their given columns."""
    model, codec = found.model, found.model.codec
    if isinstance(codec, ImageCodec):
        found.sheets = {"data": _pngs(model, data, np.linspace(0, len(data) - 1, SHOWN).astype(int))} | found.sheets
        _pictures_drawn(found, data, seed)
        return
    assert isinstance(codec, TableCodec)
    data = data.drop_columns(_present(data, ROW))
    usable = data.filter(pa.array(codec.read(data).status == OK)) if codec.given else data
    if not len(usable):
        found.notes.append("No row of the data has given values that the model knows, so nothing was drawn.")
        return
    draws = model.sample_batches(1, usable, seed) if codec.given else model.sample_batches(len(data), None, seed)
    drawn = pa.Table.from_batches(draws, model.sample_schema())
    matched = (compare(c, usable.column(c.name), drawn.column(c.name)) for c in codec.columns)
    found.columns = [column for column in matched if column]
    found.pairs = pairs(found.columns, PAIRS)


def _pictures_drawn(found: Evidence, data: pa.Table | None, seed: int) -> None:
    """Drawn pictures, with the given columns of pictures of the data."""
    model = found.model
    if not isinstance(model.codec, ImageCodec):
        return
    n, given = SHOWN, None
    if model.codec.given and data is not None:
        rows = np.flatnonzero(model.codec.read(data).status == OK)
        picked = rows[np.linspace(0, len(rows) - 1, SHOWN).astype(int)] if len(rows) else rows
        n, given = 1, data.take(pa.array(picked))
        if not len(given):
            return
    drawn = pa.Table.from_batches(model.sample_batches(n, given, seed), model.sample_schema())
    found.sheets = {"drawn": drawn.column(IMAGE).to_pylist()} | found.sheets


def _pngs(model: Model, table: pa.Table, places: NDArray[np.int64]) -> list[bytes]:
    """Pictures as the model sees them, those of them that can be read."""
    rows = model.codec.read(table.take(pa.array(places)))
    raw = rows.raw[torch.from_numpy(~rows.lost)]
    y, _ = model.codec.encode(raw, torch.full(raw.shape, 0.5, dtype=torch.float64))
    pngs: list[bytes] = model.codec.decode(y).column(IMAGE).to_pylist() if len(raw) else []
    return pngs
