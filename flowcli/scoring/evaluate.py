"""How good a model is on a table: log-likelihood, bits per dimension, the Gaussian beside it, and AUROC with labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.status import NAMES, OK
from flowcli.errors import DataError
from flowcli.model import Model
from flowcli.scoring import method as methods
from flowcli.scoring.predict import Skill, predicted
from flowcli.scoring.score import final_status


@dataclass(frozen=True)
class Evaluation:
    """Means over the rows that have a finite log-density; errors are standard errors of the mean. nats.

    Of a model that tells one column of numbers from given ones also ``crps``, in that column's units, and the
    ``coverage`` of its central intervals (percentage → share), of at most so many rows
    (:class:`~flowcli.scoring.predict.Skill`).
    """

    rows: int
    rows_in_mean: int
    statuses: dict[str, int]
    log_prob: float
    log_prob_error: float
    bits_per_dim: float
    gaussian_log_prob: float
    gaussian_log_prob_error: float
    diagonal_gaussian_log_prob: float
    better_than_gaussian: float
    better_than_gaussian_error: float
    auroc: float | None = None
    average_precision: float | None = None
    crps: float | None = None
    crps_error: float | None = None
    coverage: dict[str, float] | None = None
    rows_predicted: int | None = None


def evaluate(model: Model, batches: Iterable[pa.RecordBatch | pa.Table], label: str | None = None) -> Evaluation:
    """Evaluate ``model`` on batches of a table; ``label`` names a column that says which rows are anomalies.

    Raises DataError: wrong columns, no rows, a label column that is not two-valued.
    """
    parts: list[NDArray[np.float64]] = []
    scores: list[NDArray[np.float64]] = []
    statuses = np.zeros(len(NAMES), int)
    labels: list[pa.Table] = []
    column = predicted(model)
    skill = None if column is None else Skill(model, column)

    def diagonal(y: Tensor, context: Tensor | None) -> Tensor:
        return model.baseline.log_prob(y, context, diagonal=True)

    for batch in batches:
        rows = model.codec.read(batch)
        made_of = methods.ingredients(model, rows)
        gaussians = [model.rows_log_prob(rows, density) for density in (model.baseline.log_prob, diagonal)]
        parts.append(np.stack([made_of[0], *gaussians]))
        scores.append(methods.score(made_of, model))
        status = final_status(rows, made_of[0])
        statuses += np.bincount(status, minlength=len(NAMES))
        if skill is not None:
            skill.add(batch, (status == OK) & ~rows.holes)
        if label is not None:
            labels.append(label_of(batch, label))
    if not parts:
        raise DataError("the data has no rows.")
    log_probs = np.concatenate(parts, 1)
    used = np.isfinite(log_probs[0])
    if not used.any():
        raise DataError("no row has a finite log-density: each has a missing, infinite or impossible value.")
    flow, gaussian, diagonal_gaussian = log_probs[:, used]
    auroc = precision = None
    if label is not None:
        auroc, precision = labelled_ranking(np.concatenate(scores), labels, label)
    mean, error = mean_and_error(flow)
    gaussian_mean, gaussian_error = mean_and_error(gaussian)
    gain, gain_error = mean_and_error(flow - gaussian)
    told = skill if skill is not None and skill.rows else None
    crps, crps_error = mean_and_error(told.crps) if told else (None, None)
    return Evaluation(
        rows=log_probs.shape[1],
        rows_in_mean=int(used.sum()),
        statuses={name: int(n) for name, n in zip(NAMES, statuses, strict=True) if n},
        log_prob=mean,
        log_prob_error=error,
        bits_per_dim=-mean / (math.log(2) * model.codec.features),
        gaussian_log_prob=gaussian_mean,
        gaussian_log_prob_error=gaussian_error,
        diagonal_gaussian_log_prob=float(diagonal_gaussian.mean()),
        better_than_gaussian=gain,
        better_than_gaussian_error=gain_error,
        auroc=auroc,
        average_precision=precision,
        crps=crps,
        crps_error=crps_error,
        coverage=told.coverage() if told else None,
        rows_predicted=told.rows if told else None,
    )


def ranking(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Area under the ROC curve, ties counted half, and average precision Σ (R_k − R_{k−1})·P_k over distinct scores."""
    values, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=positive, minlength=len(values))
    misses = counts - hits
    below = np.cumsum(misses) - misses
    auroc = float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))
    found, taken = np.cumsum(hits[::-1]), np.cumsum(counts[::-1])
    precision = float((hits[::-1] * found / taken).sum() / hits.sum())
    return auroc, precision


def labelled_ranking(score: NDArray[np.float64], labels: Sequence[pa.Table], name: str) -> tuple[float, float]:
    """:func:`ranking` of the scores that are there by a label column, which has come in parts.

    Raises DataError when it is not two-valued among them.
    """
    anomalous = _anomalous(pa.concat_tables(labels, promote_options="permissive").column(name), name)
    ranked = ~np.isnan(score)
    if len(set(anomalous[ranked])) != 2:
        raise DataError(f"label column '{name}': the rows that have a score all have one label.")
    return ranking(score[ranked], anomalous[ranked])


def label_of(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Table:
    """A batch's label column. Raises DataError when there is none."""
    if name not in batch.schema.names:
        raise DataError(f"the data has no label column '{name}'.")
    return pa.table({name: batch.column(name)})


def _anomalous(labels: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    """Labels as booleans: of two values, the greater one (1, true, 'outlier' after 'inlier') is the anomaly. Numbers
    in text, as a CSV has them, are numbers."""
    found = pc.unique(labels).to_pylist()
    if None in found:
        raise DataError(f"label column '{name}': has rows without a label.")
    if len(found) != 2:
        raise DataError(f"label column '{name}': needs exactly two values, such as 0 and 1; it has {len(found)}.")
    try:
        values = sorted(found, key=float)
    except (TypeError, ValueError):
        values = sorted(found)
    return np.asarray(pc.equal(labels, pa.scalar(values[1], labels.type)))


def mean_and_error(x: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error; NaN of a single value."""
    error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return float(x.mean()), error
