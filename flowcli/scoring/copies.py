"""Whether a model gives its training rows back: distances to the closest of them, of drawn rows and of new ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.baseline import scores
from flowcli.data.status import OK
from flowcli.data.table import TableCodec
from flowcli.data.thin import Thinned
from flowcli.errors import DataError, UsageError
from flowcli.model import Model
from flowcli.scoring.evaluate import ranking

MAX_NEW = 5_000  # rows that are drawn, and new ones
MAX_TRAIN, MAX_NUMBERS = 200_000, 1 << 24  # training rows, and numbers in them
NEAR = 0.05  # the share of new rows that are called near
SURE = 1e-3  # the p-value below which there are copies
AT_ONCE = 1 << 22  # distances in memory


@dataclass(frozen=True)
class Copies:
    """Drawn rows against training rows, and beside them (``_new``) real rows that the model has not seen.

    ``identical`` are shares of rows that are one of the training rows, value for value. Distances are to the closest
    training row; their ``median`` and 5 % quantile ``low``. ``near`` are the shares of rows no further from a training
    row than ``low_new``: 5 % of the new rows, or more where many are at that distance, as many are at 0 in a table of
    few values. ``p_value`` is the probability, were the model's draws as good as new rows, of so many near ones
    (Fisher's exact test, one-sided; conservative, as the new rows choose the distance), and there are copies
    (``copied``) when it is below 0.001. ``auroc`` is the probability that a drawn row is nearer than a new one: 0.5 by
    chance.

    Copies show among the near rows first: a few of them hardly move the median or the AUROC, where a fit that is a
    little too wide moves all distances up. The new rows must come from where the training rows do.
    """

    rows: int
    rows_new: int
    rows_train: int
    identical: float
    identical_new: float
    median: float
    median_new: float
    low: float
    low_new: float
    near: float
    near_new: float
    auroc: float
    p_value: float
    copied: bool


def new_rows(model: Model) -> Thinned:
    """Keeps at most 5,000 of the rows that pass, evenly spread. Raises UsageError for images."""
    if not isinstance(model.codec, TableCodec):
        raise UsageError("--copies: is for tables, and this model is of images.")
    return Thinned(MAX_NEW, [*model.codec.types])


def train_rows(model: Model, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """At most 200,000 rows, evenly spread; fewer of more than 83 numbers each. Raises DataError when there are none."""
    kept = Thinned(
        min(MAX_TRAIN, max(1, MAX_NUMBERS // model.codec.features)), [*model.codec.types], "the training data"
    )
    for batch in batches:
        kept.add(batch)
    return kept.table()


def draw_like(model: Model, new: pa.Table, seed: int = 0) -> pa.Table:
    """As many draws as there are complete rows in ``new``; given columns have the values of those rows.

    Raises DataError when there are none, or columns are missing or of another type.
    """
    complete = new.filter(pa.array(model.codec.read(new).status == OK))
    if not complete.num_rows:
        raise DataError("--copies: no row of the data is complete, with values that the model knows.")
    n, given = (1, complete) if model.codec.given else (complete.num_rows, None)
    return pa.Table.from_batches(model.sample_batches(n, given, seed), model.sample_schema())


def copies(model: Model, drawn: pa.Table, new: pa.Table, train: pa.Table) -> Copies:
    """Are ``drawn`` rows nearer to ``train`` than ``new`` rows are?

    The distance is Euclidean over the modelled columns in the codec's space: continuous numbers standardised, after
    their transform, and each discrete one seen through the Gaussian score of the middle of its cell
    (:func:`flowcli.baseline.scores`). Rows whose status is not ``ok`` (a missing value that is not modelled as one, an
    infinite value, a level never seen) are left out on all sides.

    Raises UsageError for images; DataError when a side has no row left, or columns are missing or of another type.
    """
    if not isinstance(model.codec, TableCodec):
        raise UsageError("--copies: is for tables, and this model is of images.")
    sides = {"drawn": drawn, "new": new, "training": train}
    raw = {name: _raw(model.codec, table, name) for name, table in sides.items()}
    points = {name: _points(model.codec, numbers) for name, numbers in raw.items()}
    from_drawn, from_new = (_closest(points[name], points["training"]) for name in ("drawn", "new"))
    known = _keys(raw["training"])
    # "higher": a distance that a new row has, so that at least 5 % of them are near.
    low_new = float(np.quantile(from_new, NEAR, method="higher"))
    near, near_new = from_drawn <= low_new, from_new <= low_new
    auroc, _ = ranking(-np.concatenate([from_drawn, from_new]), np.arange(len(from_drawn) + len(from_new)) < len(near))
    p_value = _at_least(int(near.sum()), len(near), int(near_new.sum()), len(near_new))
    return Copies(
        rows=len(near),
        rows_new=len(near_new),
        rows_train=len(known),
        identical=float(np.isin(_keys(raw["drawn"]), known).mean()),
        identical_new=float(np.isin(_keys(raw["new"]), known).mean()),
        median=float(np.median(from_drawn)),
        median_new=float(np.median(from_new)),
        low=float(np.quantile(from_drawn, NEAR, method="higher")),
        low_new=low_new,
        near=float(near.mean()),
        near_new=float(near_new.mean()),
        auroc=auroc,
        p_value=p_value,
        copied=p_value < SURE,
    )


def _raw(codec: TableCodec, table: pa.Table, name: str) -> Tensor:
    """Raw numbers ``(n, features)`` of the rows that are ``ok``."""
    rows = codec.read(table)
    raw = rows.raw[torch.from_numpy(rows.status == OK)]
    if not len(raw):
        raise DataError(f"--copies: of the {name} rows none is complete, with values that the model knows.")
    return raw


def _points(codec: TableCodec, raw: Tensor) -> Tensor:
    """Where rows are for the distance, both ``(n, features)``."""
    y, _ = codec.encode(raw, torch.full_like(raw, 0.5))
    return scores(y, codec.cells)[0]


def _keys(raw: Tensor) -> NDArray[np.void]:
    """One value for each row ``(n,)``, equal where all its numbers are."""
    numbers = np.ascontiguousarray((raw + 0.0).numpy())  # −0 is 0
    return numbers.view(np.dtype((np.void, numbers.itemsize * numbers.shape[1])))[:, 0]


def _closest(points: Tensor, among: Tensor) -> NDArray[np.float64]:
    """The distance ``(n,)`` of each point to the closest one ``among`` others; of identical ones, exactly 0."""
    parts = points.split(max(1, AT_ONCE // len(among)))
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(part, among, compute_mode=exact).amin(1) for part in parts]).numpy()


def _at_least(a: int, n: int, b: int, m: int) -> float:
    """The probability that of a + b marks dealt to n + m rows, a or more are on the n (hypergeometric)."""

    def log_choose(of: int, k: Tensor) -> Tensor:
        return math.lgamma(of + 1) - torch.lgamma(k + 1) - torch.lgamma(of - k + 1)

    k = torch.arange(a, min(a + b, n) + 1, dtype=torch.float64)
    log_p = log_choose(n, k) + log_choose(m, a + b - k) - log_choose(n + m, torch.full_like(k, a + b))
    return min(1.0, float(log_p.exp().sum()))
