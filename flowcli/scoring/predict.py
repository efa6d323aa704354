"""What a conditional model says of its one column: draws for each row, their mean and quantiles, how right they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli.data.columns import ColumnCodec, Counted, Gated, Integer, Real
from flowcli.data.columns.column import numbers
from flowcli.data.kinds import values_of
from flowcli.data.status import NAMES, OK
from flowcli.errors import UsageError
from flowcli.model import Model

Floats = NDArray[np.float64]
AT_ONCE = 1024  # rows that are drawn for


def predicted(model: Model) -> ColumnCodec | None:
    """The one column of numbers that a model tells from its given columns; None, where it has another task."""
    drawn = [column for column in getattr(model.codec, "columns", ()) if column.width]
    if not model.codec.given or len(drawn) != 1:
        return None
    column = drawn[0]
    gaps = (isinstance(column, Gated) and column.gaps) or (isinstance(column, Counted) and column.missing is not None)
    kind = column.value if isinstance(column, Gated) else column
    return column if isinstance(kind, Real | Integer | Counted) and not gaps else None


def draws(model: Model, column: str, given: pa.Table, n: int, seed: int) -> Floats:
    """``n`` draws of the column for each row of the given ones, ``(rows, n)``: those of ``sample``. Raises DataError
    where it does."""
    drawn = [numbers(batch.column(column)) for batch in model.sample_batches(n, given, seed)]
    return np.concatenate([*drawn, np.empty(0)]).reshape(given.num_rows, n)


def crps(drawn: Floats, y: Floats) -> Floats:
    """Continuous ranked probability scores ``(rows,)`` of ``y (rows,)``, in its units, from ``drawn (rows, m)``.

    E|X − y| − ½ E|X − X′| (Gneiting & Raftery 2007, equation 21), its second mean over pairs of different draws,
    2/(m(m−1)) Σ_{i<j} |x_i − x_j|: unbiased for any m (Ferro 2014). Of sorted draws that sum is Σ_i (2i − m − 1)·x_i.
    """
    m = drawn.shape[1]
    ranked = np.sort(drawn - y[:, None], 1)  # the differences do not change, and large offsets do no harm
    pairs = ranked @ (2.0 * np.arange(1, m + 1) - m - 1)
    return np.asarray(np.abs(ranked).mean(1) - pairs / (m * (m - 1)))


def ranks(drawn: Floats, y: Floats, coins: Floats) -> Floats:
    """Where in (0, 1) each ``y (rows,)`` is among its draws ``(rows, m)``, ties broken by ``coins`` from (0, 1).

    (#{x_i < y} + coin·(1 + #{x_i = y}))/(m + 1) is exactly uniform when y follows the law of the draws, for any m, and
    for whole numbers too (the randomised probability integral transform; Czado, Gneiting & Held 2009).
    """
    less, same = ((compared).sum(1) for compared in (drawn < y[:, None], drawn == y[:, None]))
    return np.asarray((less + coins * (1 + same)) / (drawn.shape[1] + 1))


class Skill:
    """CRPS and coverage of central intervals, of rows that come in batches; at most ``ROWS``, the first."""

    ROWS = 10_000
    DRAWS = 256
    LEVELS = (0.5, 0.8, 0.9, 0.95)

    def __init__(self, model: Model, column: ColumnCodec) -> None:
        self.model, self.column = model, column
        self.rows = 0
        self._crps: list[Floats] = []
        self._ranks: list[Floats] = []

    def add(self, batch: pa.RecordBatch | pa.Table, used: NDArray[np.bool_]) -> None:
        """Take the ``used (n,)`` rows of a batch, which have a density, into account."""
        which = np.flatnonzero(used)[: self.ROWS - self.rows]
        for start in range(0, len(which), AT_ONCE):
            rows = pa.table(batch.take(pa.array(which[start : start + AT_ONCE])))
            y = numbers(values_of(rows, self.column))
            drawn = draws(self.model, self.column.name, rows, self.DRAWS, self.rows)
            self._crps.append(crps(drawn, y))
            self._ranks.append(ranks(drawn, y, np.random.default_rng(self.rows).random(len(y))))
            self.rows += len(y)

    @property
    def crps(self) -> Floats:
        """Of each row."""
        return np.concatenate(self._crps)

    def coverage(self) -> dict[str, float]:
        """The share of rows within the central interval of each level, by its percentage. An interval that ends at a
        whole number holds a part of it, so that the level can be met."""
        away = np.abs(np.concatenate(self._ranks) - 0.5)
        return {f"{100 * level:g}": float((away <= level / 2).mean()) for level in self.LEVELS}


@dataclass(frozen=True)
class Predictor:
    """Gives a batch of given columns the predicted column's ``mean``, ``median`` and ``quantiles``, by ``count`` draws.

    Raises UsageError for a model without given columns or of more than one column of numbers.
    """

    model: Model
    quantiles: Sequence[float] = (0.05, 0.95)
    seed: int = 0
    count: int = 1000

    def __post_init__(self) -> None:
        if not self.model.codec.given:
            raise UsageError("this model was fitted without given columns, so there is nothing to predict from.")
        if predicted(self.model) is None:
            raise UsageError(
                "predict is for models of one column of numbers without missing values, given others; this one is of "
                f"{', '.join(self.model.codec.schema.names)}: `flowcli sample --given FILE` draws them."
            )

    @property
    def schema(self) -> pa.Schema:
        """The columns that a batch gets: ``mean``, ``median``, ``q0.05`` …, ``status``."""
        names = ["mean", "median", *(f"q{q:g}" for q in self.quantiles)]
        return pa.schema([*((name, pa.float64()) for name in names), ("status", pa.string())])

    def __call__(self, batch: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
        """One row for each of the batch's, in order; empty figures where a given value cannot be used."""
        column = predicted(self.model)
        assert column is not None
        status = self.model.codec.given_status(batch)
        fine = np.flatnonzero(status == OK)
        figures = np.full((batch.num_rows, 2 + len(self.quantiles)), np.nan)
        if len(fine):
            given = pa.table(batch.take(pa.array(fine)))
            drawn = draws(self.model, column.name, given, self.count, self.seed)
            figures[fine, 0] = drawn.mean(1)
            figures[fine, 1:] = np.quantile(drawn, [0.5, *self.quantiles], axis=1).T
        lost = status != OK
        columns = [pa.array(figure, mask=lost) for figure in figures.T]
        return pa.RecordBatch.from_arrays([*columns, pa.array(NAMES).take(pa.array(status))], schema=self.schema)
