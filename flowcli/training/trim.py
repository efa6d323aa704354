"""Rows that are left out before anything is learned or held out, where some of them may be anomalies."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch

from flowcli.baseline import Baseline, scores
from flowcli.data.table import TableCodec
from flowcli.recipe import Recipe

SOME = 5_000  # rows at random that the others are compared with
REACH = 0.1  # the share of them that a row has to be near to
AT_ONCE = 1 << 22  # distances in memory at once


def trimmed(table: pa.Table, recipe: Recipe) -> pa.Table:
    """The rows without the share ``data.trim`` of them that is furthest from the nearest tenth of all rows.

    A density learns an anomaly that is there several times, and each is near the others. None is near a tenth of all
    rows, as long as they are fewer. In the city-block metric, in standard deviations of each column of which large ones
    count by their logarithm. Raises DataError as the codec does.
    """
    codec = TableCodec.fit(table, recipe.data, table)
    rows = codec.read(table)
    y, _ = codec.encode(rows.raw, torch.full_like(rows.raw, 0.5))
    x = scores(Baseline.of(y, rows.missing, codec.cells).expected(y, rows.missing), codec.cells)[0]
    x = torch.asinh((x - x.mean(0)) / x.std(0).clamp(min=1e-12))
    picked = np.random.default_rng([recipe.train.seed, 2]).permutation(len(x))[:SOME]
    some, reach = x[np.sort(picked)], math.ceil(REACH * len(picked))
    found = [torch.cdist(part, some, p=1).kthvalue(reach, 1).values for part in x.split(max(1, AT_ONCE // len(some)))]
    order = torch.cat(found).argsort(stable=True)
    return table.take(np.sort(order[: len(x) - round(recipe.data.trim * len(x))].numpy()))
