"""Models side by side on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli.errors import DataError
from flowcli.model import Model
from flowcli.scoring import method as methods
from flowcli.scoring.evaluate import label_of, labelled_ranking, mean_and_error

Batches = Iterable[pa.RecordBatch | pa.Table]


@dataclass(frozen=True)
class Compared:
    """A model among others: means over the ``rows_in_mean`` that have a finite log-density under each of them, with
    their standard errors; nats a row.

    ``difference`` is the mean of the rows' own differences from the first model. Its error is smaller than those of the
    two means, which rows that are hard for both make large (a paired comparison).
    """

    rows: int
    rows_in_mean: int
    log_prob: float
    log_prob_error: float
    difference: float
    difference_error: float
    bits_per_dim: float
    auroc: float | None = None


def compare(models: Sequence[Model], batches: Sequence[Batches], label: str | None = None) -> list[Compared]:
    """Each model on its own reading of the same rows; ``label`` names a column that says which are anomalies.

    Raises DataError: wrong columns, no row with a density under each model, a label column that is not two-valued.
    """
    figures, aurocs = [], []
    for model, parts in zip(models, batches, strict=True):
        found, auroc = _measured(model, parts, label)
        figures.append(found)
        aurocs.append(auroc)
    log_probs = np.stack(figures)
    used = np.asarray(np.isfinite(log_probs).all(0))
    if not used.any():
        raise DataError("no row has a finite log-density under each of the models.")
    return [
        Compared(
            len(used),
            int(used.sum()),
            *mean_and_error(log_prob[used]),
            *mean_and_error(log_prob[used] - log_probs[0][used]),
            -float(log_prob[used].mean()) / (math.log(2) * model.codec.features),
            auroc,
        )
        for model, log_prob, auroc in zip(models, log_probs, aurocs, strict=True)
    ]


def _measured(model: Model, batches: Batches, label: str | None) -> tuple[NDArray[np.float64], float | None]:
    """Log-densities ``(n,)`` and, with labels, the AUROC."""
    log_probs, scores, labels = [np.zeros(0)], [], []
    for batch in batches:
        made_of = methods.ingredients(model, model.codec.read(batch))
        log_probs.append(made_of[0])
        scores.append(methods.score(made_of, model))
        if label is not None:
            labels.append(label_of(batch, label))
    auroc = labelled_ranking(np.concatenate(scores), labels, label)[0] if label is not None and labels else None
    return np.concatenate(log_probs), auroc
