"""Scores of a batch: the one function that the command, the Python API and every engine call."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.data.image import ImageCodec
from flowcli.data.status import NAMES, NONFINITE
from flowcli.errors import UsageError
from flowcli.model import Model
from flowcli.recipe import MethodName
from flowcli.scoring import method as methods
from flowcli.scoring.explain import reason_fields, reasons

SCORE_FIELDS = (
    pa.field("log_prob", pa.float64()),
    pa.field("bits_per_dim", pa.float64()),
    pa.field("score", pa.float64()),
    pa.field("p_value", pa.float64()),
    pa.field("is_anomaly", pa.bool_()),
    pa.field("status", pa.string()),
    pa.field("log_prob_error", pa.float64()),
)


@dataclass(frozen=True)
class Level:
    """When a row is an anomaly: p-value at most ``alpha``, or score at least ``threshold``; never, if neither."""

    alpha: float | None = None
    threshold: float | None = None

    def __bool__(self) -> bool:
        return self.alpha is not None or self.threshold is not None

    def flags(self, score: NDArray[np.float64], p_value: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which rows are anomalies ``(n,)``."""
        if self.alpha is not None:
            return p_value <= self.alpha
        return score >= (math.inf if self.threshold is None else self.threshold)


def p_values(score: NDArray[np.float64], held_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Conformal p-values ``(n,)``: (1 + #{held-out scores ≥ score}) / (1 + #held-out); ``held_out`` ascends.

    Uniform on rows like the training rows, whatever the flow (Vovk et al. 2005; Bates et al. 2023, equation 2).
    """
    # A score of +∞ ties with the held-out rows that have none either, which a file keeps as the largest number.
    finite = np.minimum(score, np.finfo(np.float64).max)
    order = np.argsort(finite)  # scores near one another are looked up together, in what the cache has of the others
    less = np.empty(len(finite), np.int64)
    less[order] = np.searchsorted(held_out, finite[order], side="left")
    return np.asarray((1 + len(held_out) - less) / (1 + len(held_out)), np.float64)


def threshold(held_out: NDArray[np.float64], alpha: float) -> float:
    """The score from which on a row's p-value is at most ``alpha``; infinite, where there are too few held-out scores
    for that (fewer than 1/alpha − 1). ``held_out`` ascends.

    A score strictly above the k-th greatest one has a p-value of at most k/(1 + n) for k = ⌊alpha·(1 + n)⌋.
    """
    k = math.floor(alpha * (1 + len(held_out)) + 1e-9)
    return math.inf if k < 1 else float(np.nextafter(held_out[-k], math.inf))


def final_status(rows: Rows, log_prob: NDArray[np.float64]) -> NDArray[np.int8]:
    """Each row's status once its density is known: one that underflows is ``nonfinite``."""
    return np.where(np.isneginf(log_prob) & (rows.status <= NONFINITE), np.int8(NONFINITE), rows.status)


@dataclass(frozen=True)
class Scorer:
    """Gives a batch its score columns; see :func:`score_batch`. It may be called in several threads at once."""

    model: Model
    level: Level = Level()
    method: MethodName | None = None
    samples: int | None = None
    explain: int = 0

    @cached_property
    def held_out(self) -> NDArray[np.float64]:
        """The held-out rows' scores, ascending."""
        return np.sort(methods.score(self.model.calibration.numpy(), self.model, self.method, own=True))

    @property
    def least_p_value(self) -> float:
        """What no p-value is below: that of a row odder than all held-out rows."""
        return 1 / (1 + len(self.held_out))

    @property
    def schema(self) -> pa.Schema:
        """The columns that a batch gets."""
        absent = {"log_prob_error" if isinstance(self.model.codec, ImageCodec) else "bits_per_dim"}
        absent |= set() if self.level else {"is_anomaly"}
        return pa.schema([*(f for f in SCORE_FIELDS if f.name not in absent), *reason_fields(self.explain)])

    def __call__(self, batch: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
        """One row for each of the batch's rows, in order."""
        model, level = self.model, self.level
        comparable = self.samples in (None, model.points) or not model.codec.dequantised
        if level.alpha is not None and not comparable:
            raise UsageError(
                f"p-values compare with held-out rows that were scored with {model.points} samples in each cell, not "
                f"{self.samples}; for others, fit with score.dequantization_samples={self.samples}."
            )
        rows = model.codec.read(batch)
        density = model.density(rows, samples=self.samples)
        log_prob, score = density.log_prob, methods.score(methods.of_density(model, rows, density), model, self.method)
        missing = rows.lost
        status = final_status(rows, log_prob)
        p_value = p_values(score, self.held_out)
        columns = {
            "log_prob": pa.array(log_prob, mask=missing),
            "score": pa.array(score, mask=missing),
            "p_value": pa.array(p_value, mask=missing | (not comparable)),
            "status": pa.array(NAMES).take(pa.array(status)),
            "log_prob_error": pa.array(density.error, mask=missing | ~rows.holes),
        }
        if isinstance(model.codec, ImageCodec):
            columns["bits_per_dim"] = pa.array(-log_prob / (math.log(2) * model.codec.features), mask=missing)
        if level:
            columns["is_anomaly"] = pa.array(level.flags(score, p_value), mask=missing)
        if self.explain:
            odd = np.flatnonzero(level.flags(score, p_value) & ~missing) if level else np.arange(len(rows))
            why = reasons(
                model, batch.take(pa.array(odd)), rows.take(torch.from_numpy(odd)), density.complete[odd], self.explain
            )
            place = np.zeros(len(rows), np.int64)
            place[odd] = np.arange(len(odd))
            unexplained = np.isin(np.arange(len(rows)), odd, invert=True)
            columns |= {
                name: why.column(name).combine_chunks().take(pa.array(place, mask=unexplained))
                for name in why.column_names
            }
        schema = self.schema
        return pa.RecordBatch.from_arrays([columns[f.name] for f in schema], schema=schema)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises UsageError when a column is called as one of the scores is."""
        clash = set(names) & set(self.schema.names)
        if clash:
            raise UsageError(f"'{min(clash)}' is also the name of a score column; rename it.")

    def beside(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its scores beside its own columns. Raises as a call and :meth:`check_names` do."""
        self.check_names(batch.schema.names)
        scores = self(batch)
        schema = pa.schema([*batch.schema, *scores.schema])
        return pa.RecordBatch.from_arrays([*batch.columns, *scores.columns], schema=schema)


def score_batch(
    model: Model,
    batch: pa.RecordBatch | pa.Table,
    level: Level | None = None,
    method: MethodName | None = None,
    samples: int | None = None,
    explain: int = 0,
) -> pa.RecordBatch:
    """The score columns of a batch, one row for each of its rows, in order; ``is_anomaly`` only with a level,
    ``bits_per_dim`` only for images.

    ``method`` and ``samples`` are other than the recipe's. A row that lacks values has the log_prob of what is there,
    with its standard error; its score is the whole row's on average (:class:`~flowcli.model.Density`). One that lacks a
    given value and an unreadable image have null figures. A row of zero density has score +∞. With other ``samples``
    scores are another statistic than the held-out rows', and there are no p-values.

    ``explain`` adds so many :func:`~flowcli.scoring.explain.reasons` to each row; with a level, to those it flags.

    Raises DataError when columns are missing or of another type, UsageError for ``alpha`` where there are no p-values.
    """
    return Scorer(model, level or Level(), method, samples, explain)(batch)
