"""What only all scored rows together say: which to flag as discoveries, and whether they are like those of the fit."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowcli.scoring.score import Level

MANY = 100  # rows that say whether a file's rows are like those of the fit
USUAL = 1 / 4  # the share of them that is as usual as the more usual half of held-out rows, if they are


class Likeness:
    """Whether rows are like those of the fit, by how many of them are as usual as the more usual half of the held-out
    rows: half, if they are."""

    def __init__(self) -> None:
        self.rows = self.usual = 0

    def add(self, scores: pa.RecordBatch) -> None:
        """Count rows that were scored; those without a p-value say nothing."""
        p_value = scores.column("p_value")
        self.rows += len(p_value) - p_value.null_count
        self.usual += pc.sum(pc.greater(p_value, 0.5)).as_py() or 0

    @property
    def strange(self) -> bool:
        """They are of another kind, or most are anomalies."""
        return self.rows >= MANY and self.usual < USUAL * self.rows

    def sentence(self) -> str:
        """What to say of strange ones."""
        return (
            f"only {self.usual / self.rows:.0%} of the rows are as usual as the more usual half of the held-out rows. "
            "Unless most are anomalies, they are of another kind than the rows of the fit, and their p-values mean "
            "little: fit anew."
        )


class FalseDiscoveries:
    """Which p-values to flag so that at most a share ``q`` of the flagged is expected to be normal (Benjamini &
    Hochberg 1995), from counts of distinct p-values: there are no more of those than held-out rows.

    Conformal p-values that share their held-out rows depend on each other in the way that keeps this valid (Bates et
    al. 2023, theorem 2). It supposes normal rows like those of the fit. Where all rows seem odd, what is normal has
    changed, unless most are anomalies: of many rows at least half are taken for normal, and their p-values are raised
    to the power a ≤ 1 that makes these as usual as held-out rows (the empirical null of Efron 2004; by a quantile,
    as the genomic control of Devlin & Roeder 1999). No p-value becomes smaller, so fewer are flagged, never more.
    """

    def __init__(self, q: float) -> None:
        self.q = q
        self.counts: Counter[float] = Counter()

    def add(self, p_value: NDArray[np.float64]) -> None:
        """Count p-values; NaN, a row without one, is no test."""
        values, counts = np.unique(p_value[~np.isnan(p_value)], return_counts=True)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def level(self) -> Level:
        """Flags p-values up to the greatest p with pᵃ ≤ q·#{p-values ≤ p}/#{p-values}; none, where there is no such."""
        tests, below, alpha = self.counts.total(), 0, 0.0
        power = self._power(tests)
        for p in sorted(self.counts):
            below += self.counts[p]
            if p**power * tests <= self.q * below:
                alpha = p
        return Level(alpha=alpha)

    def _power(self, tests: int) -> float:
        """The a with which a quarter of the p-values, half of the normal rows', is above ½; 1 where it is so already.

        With u the p-value that a quarter is at or above, uᵃ = ½.
        """
        above = 0
        for p in sorted(self.counts, reverse=True):
            above += self.counts[p]
            if above >= USUAL * tests:
                return 1.0 if tests < MANY or p > 0.5 else math.log(0.5) / math.log(p)
        return 1.0


def discoveries(batches: Iterator[pa.RecordBatch], q: float) -> Iterator[pa.RecordBatch]:
    """The batches with ``is_anomaly`` as all their p-values together decide; meanwhile they lie in a temporary file."""
    first = next(batches, None)
    if first is None:
        return
    found = FalseDiscoveries(q)
    with tempfile.TemporaryFile() as spool:
        with pa.ipc.new_stream(spool, first.schema) as writer:
            for batch in itertools.chain([first], batches):
                found.add(batch.column("p_value").to_numpy(zero_copy_only=False))
                writer.write_batch(batch)
        spool.seek(0)
        level, place = found.level(), first.schema.get_field_index("is_anomaly")
        for batch in pa.ipc.open_stream(spool):
            score, p_value = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("score", "p_value"))
            flags = pa.array(level.flags(score, p_value), mask=batch.column("p_value").is_null().to_numpy(False))
            yield batch.set_column(place, "is_anomaly", flags)
