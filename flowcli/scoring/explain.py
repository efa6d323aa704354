"""Why a row is odd: how much likelier it would be with one column drawn anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.data.status import NONFINITE
from flowcli.data.table import TableCodec
from flowcli.errors import UsageError
from flowcli.model import Model

Floats = NDArray[np.float64]

DRAWS = 64  # of each column


def reasons(model: Model, batch: pa.RecordBatch | pa.Table, rows: Rows, complete: Floats, most: int) -> pa.Table:
    """The ``most`` columns that make each row odd, the oddest first: ``reason_k``, its name, and ``nats_k``.

    A column's nats are E[log p(x_j′, x_−j)] − log p(x), with x_j′ from the model's p(· | x_−j): by how much the row
    would be likelier, on average, if this column were drawn anew given all others. The definition is the same for every
    flow and does not depend on units or on the order of columns. About 0 is usual; nats of different columns do not add
    up to the row's log-density, since each is given all others. It is an estimate (:meth:`Model.completed`).

    ``complete (n,)`` is the rows' :attr:`Density.complete`. A column that is missing is no reason. A value that a
    column cannot have has infinitely many nats. Raises UsageError for images.
    """
    codec = model.codec
    if not isinstance(codec, TableCodec):
        raise UsageError("--explain: is for tables, and this model is of images.")
    nats = np.full((len(rows), len(codec.columns)), -np.inf)
    for j, slots in enumerate(codec.slots):
        there = np.ones(len(rows), bool) if rows.missing is None else ~rows.missing[:, slots].any(1).numpy()
        use = np.flatnonzero(there & ~rows.lost)
        if slots and len(use):
            some = rows.take(torch.from_numpy(use))
            hidden = torch.zeros(some.raw.shape, dtype=torch.bool) if some.missing is None else some.missing.clone()
            hidden[:, slots] = True
            nats[use, j] = model.completed(replace(some, missing=hidden), draws=DRAWS).complete
    with np.errstate(invalid="ignore"):
        # Where the row has no density at all, columns are in the order of what it would have without each.
        order = np.argsort(-nats, axis=1, kind="stable")
        nats = np.where(np.isneginf(nats), -np.inf, nats - complete[:, None])
    impossible = codec.statuses(batch) >= NONFINITE
    nats[impossible.any(axis=1)] = -np.inf  # beside what cannot be, nothing else is a reason
    nats[impossible] = np.inf
    order = np.where(impossible.any(axis=1, keepdims=True), np.argsort(~impossible, axis=1, kind="stable"), order)
    names = np.array([column.name for column in codec.columns], object)
    found = {}
    for k in range(most):
        at = order[:, k] if k < nats.shape[1] else np.zeros(len(rows), int)
        value = nats[np.arange(len(rows)), at] if k < nats.shape[1] else np.full(len(rows), -np.inf)
        none = np.isneginf(value) | np.isnan(value) | rows.lost
        found[f"reason_{k + 1}"] = pa.array(names[at], pa.string(), mask=none)
        found[f"nats_{k + 1}"] = pa.array(value, mask=none)
    return pa.table(found)


def reason_fields(most: int) -> list[pa.Field]:
    """The columns that :func:`reasons` gives."""
    pairs = ((f"reason_{k}", f"nats_{k}") for k in range(1, most + 1))
    return [field for name, nats in pairs for field in (pa.field(name, pa.string()), pa.field(nats, pa.float64()))]
