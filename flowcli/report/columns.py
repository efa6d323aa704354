"""How well drawn rows match the data, column by column, and which columns depend on each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowcli.data.columns import ColumnCodec, Constant, Gated, Moment, Real, Told
from flowcli.data.columns.column import dense

Values = NDArray[Any]  # numbers, or text

FEW = 24  # different values up to which each has a bar
OTHERS = "(others)"
GROUPS = 8  # that a column is cut into for its dependence on others
SEARCHED = 64  # columns whose pairs are measured
DISCRETE = 20  # rows for each different value, with which a column's numbers are not continuous
SPIKE = 0.05  # share of the rows at one value, with which they are not either


@dataclass(frozen=True)
class Column:
    """A column of the data and of drawn rows, as many as there are rows: numbers (times as seconds) with NaN, or levels
    as text with None, for what is missing.

    ``distance`` is between the two distributions, in [0, 1]: for numbers the greatest difference of their cumulative
    distribution functions (Kolmogorov–Smirnov), for levels the total variation. ``chance`` is what it would be between
    two samples of one distribution, exceeded once in a thousand columns. ``repeats`` says that a column is modelled as
    a density although its values are few, or one of them is frequent: ``different`` ones, the commonest of a share
    ``spike``.
    """

    name: str
    kind: str
    transform: str
    numeric: bool
    time: bool
    data_rows: Values
    drawn_rows: Values
    distance: float
    chance: float
    different: int
    spike: float
    repeats: bool

    @cached_property
    def data(self) -> Values:
        """The values that the data have."""
        return _there(self.data_rows)

    @cached_property
    def drawn(self) -> Values:
        """The values that drawn rows have."""
        return _there(self.drawn_rows)

    @property
    def missing(self) -> tuple[float, float]:
        """The shares of rows without a value, in the data and drawn."""
        return 1 - len(self.data) / len(self.data_rows), 1 - len(self.drawn) / len(self.drawn_rows)

    @property
    def misfit(self) -> bool:
        """Whether the drawn values differ from the data by more than chance, and by enough to matter."""
        return self.distance > max(0.05, self.chance)


@dataclass(frozen=True)
class Pair:
    """Two columns and how they depend on each other: mutual information in nats, of the data and of drawn rows."""

    x: Column
    y: Column
    data: float
    drawn: float


def compare(codec: ColumnCodec, data: pa.ChunkedArray, drawn: pa.ChunkedArray) -> Column | None:
    """A column of both tables; None for one that is not modelled, or has no value in one of them."""
    if isinstance(codec, Constant | Told):
        return None
    value = codec.value if isinstance(codec, Gated) else codec
    time, levels = isinstance(value, Moment), codec.kind == "category"
    rows = [_values(dense(part.combine_chunks()), time, levels) for part in (data, drawn)]
    ours, theirs = map(_there, rows)
    if not len(ours) or not len(theirs):
        return None
    counts = np.unique(ours, return_counts=True)[1]
    spike = float(counts.max() / len(ours))
    free = isinstance(codec, Real) and len(ours) >= 2 * DISCRETE
    distance, chance = (variation if levels else kolmogorov)(ours, theirs)
    return Column(
        name=codec.name,
        kind=value.kind,
        transform=getattr(value, "transform", "none"),
        numeric=not levels,
        time=time,
        data_rows=rows[0],
        drawn_rows=rows[1],
        distance=distance,
        chance=chance,
        different=len(counts),
        spike=spike,
        repeats=free and (len(counts) * DISCRETE <= len(ours) or spike >= SPIKE),
    )


def _values(values: pa.Array, time: bool, levels: bool) -> Values:
    if levels:
        return np.array([None if v is None else str(v) for v in values.to_pylist()], object)
    if time:
        values = pc.divide(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64()), 1e6)
    x = np.array(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    return np.where(np.isfinite(x), x, np.nan)


def _there(values: Values) -> Values:
    missing = [v is None for v in values] if values.dtype == object else np.isnan(values)
    return np.asarray(values[~np.asarray(missing, bool)])


def kolmogorov(x: Values, y: Values) -> tuple[float, float]:
    """The Kolmogorov–Smirnov distance of two samples, and what it exceeds by chance once in a thousand times:
    √(−½ log(α/2) · (1/n + 1/m)), which repeated values only make smaller."""
    places = np.unique(np.concatenate([x, y]))
    below = [np.searchsorted(np.sort(v), places, side="right") / len(v) for v in (x, y)]
    chance = math.sqrt(-0.5 * math.log(0.001 / 2) * (1 / len(x) + 1 / len(y)))
    return float(np.abs(below[0] - below[1]).max()), chance


def variation(x: Values, y: Values) -> tuple[float, float]:
    """The total variation ½ Σ|p_k − q_k| of the levels of two samples, and what it exceeds by chance at most once in a
    thousand times: its mean, each |p_k − q_k| being a half-normal, and √(½ log(1/α)·(1/n + 1/m)) for its spread
    (McDiarmid's inequality)."""
    levels, codes = np.unique(np.concatenate([x, y]), return_inverse=True)
    counts = [np.bincount(c, minlength=len(levels)) for c in np.split(codes, [len(x)])]
    p, q = (c / c.sum() for c in counts)
    scale = 1 / len(x) + 1 / len(y)
    both = (counts[0] + counts[1]) / (len(x) + len(y))
    mean = 0.5 * float(np.sqrt(2 / math.pi * both * (1 - both) * scale).sum())
    return 0.5 * float(np.abs(p - q).sum()), mean + math.sqrt(0.5 * math.log(1000) * scale)


def pairs(columns: Sequence[Column], most: int) -> list[Pair]:
    """The ``most`` dependent pairs of columns in the data, the most dependent first; of the first 64 columns."""
    codes = [(c, _codes(c, c.data_rows), _codes(c, c.drawn_rows)) for c in columns[:SEARCHED]]
    found = [(mutual_information(a[1], b[1]), i, j) for (i, a), (j, b) in itertools.combinations(enumerate(codes), 2)]
    found = sorted((f for f in found if f[0] > 0), key=lambda f: -f[0])[:most]
    return [
        Pair(codes[i][0], codes[j][0], information, mutual_information(codes[i][2], codes[j][2]))
        for information, i, j in found
    ]


def _codes(column: Column, values: Values) -> NDArray[np.int64]:
    """Which of at most nine groups each row is in: eighths of the numbers, the commonest levels, and what is missing
    or left over."""
    if column.numeric:
        edges = np.unique(np.quantile(column.data, np.arange(1, GROUPS) / GROUPS))
        return np.where(np.isnan(values), GROUPS, np.searchsorted(edges, values, side="right"))
    levels, counts = np.unique(column.data, return_counts=True)
    place = {level: i for i, level in enumerate(levels[np.argsort(-counts, kind="stable")][:GROUPS])}
    return np.array([place.get(value, GROUPS) for value in values], np.int64)


def mutual_information(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Of two columns of groups, in nats: Σ p log p/(p_a p_b), less what chance gives on average, (cells − groups of a −
    groups of b + 1)/2n (Miller 1955); at least 0."""
    table = np.bincount(a * (GROUPS + 1) + b, minlength=(GROUPS + 1) ** 2).reshape(GROUPS + 1, -1)
    p = table / table.sum()
    rows, columns = p.sum(1, keepdims=True), p.sum(0, keepdims=True)
    there = p > 0
    information = float((p[there] * np.log(p[there] / (rows @ columns)[there])).sum())
    free = ((rows > 0).sum() - 1) * ((columns > 0).sum() - 1)
    return max(0.0, information - float(free) / (2 * len(a)))
