"""Does ``score --explain`` name the column that was tampered with?

    python -m tests.benchmarks.reasons [--rows 200] [--tables wine ...] [--recipes quickstart ...]

Half of the rows of wine, breast cancer and diabetes, with their labels left out, are learned; in rows of the other half
one value each is planted, in a column of more than ten values. Half of the plants are *far*: 4 to 6 standard deviations
from the column's mean, on either side. The other half are *contextual*: a value that the column has in the tenth of the
learned rows at the other end, so that nothing is odd but its company. Planted values have as many decimals
as the column's.

Prints in what share of the rows the planted column is the first reason, or among the first three, for several flows and
for the naive explanation, the largest |value − mean|/deviation; and writes ``results/reasons.json``. Needs the
``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

import flowcli
from flowcli.scoring import score_batch
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "reasons.json"
RECIPES = ("quickstart", "maf-spline", "realnvp-affine", "radial")
NAIVE = "largest |z|"
LEVELS = 10  # a column that has no more is not planted in
Names = NDArray[np.str_]


def tables() -> dict[str, pd.DataFrame]:
    """The three tables, in their own units, without labels."""
    return {
        "wine": load_wine(as_frame=True).data,
        "breast_cancer": load_breast_cancer(as_frame=True).data,
        "diabetes": load_diabetes(as_frame=True, scaled=False).data,
    }


@dataclass(frozen=True)
class Planted:
    """Rows with one planted value each, in ``column``; ``far`` says which kind it is."""

    learned: pd.DataFrame
    rows: pd.DataFrame
    column: Names
    far: NDArray[np.bool_]


def decimals(values: pd.Series[float]) -> int:
    """After how many a column's values end."""
    return next(k for k in range(12) if np.allclose(values, values.round(k), rtol=0, atol=1e-12))


def plant(frame: pd.DataFrame, n: int) -> Planted:
    """Half of the rows to learn from, and ``n`` of the others, again and again if need be, with planted values."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(frame))
    learned, rest = frame.iloc[order[: len(frame) // 2]], frame.iloc[order[len(frame) // 2 :]]
    rows = rest.iloc[np.resize(rng.permutation(len(rest)), n)].astype(float).reset_index(drop=True)
    names = [name for name in frame if frame[name].nunique() > LEVELS]
    column, far = rng.choice(names, n), np.arange(n) < n // 2
    for i, name in enumerate(column):
        values = learned[name]
        if far[i]:
            value = values.mean() + rng.choice([-1, 1]) * rng.uniform(4, 6) * values.std()
        else:
            high = rows.loc[i, name] > values.median()
            value = rng.choice(
                values[values <= values.quantile(0.1)] if high else values[values >= values.quantile(0.9)]
            )
        rows.loc[i, name] = round(value, decimals(frame[name]))
    return Planted(learned, rows, column, far)


def hits(first: Names, planted: Planted) -> dict[str, dict[str, float]]:
    """Shares of the rows whose planted column is the first, or one of the first three, of ``first (n, 3)``."""
    found = first == planted.column[:, None]
    kinds = {"far": planted.far, "contextual": ~planted.far}
    return {
        kind: {"first": float(found[of, 0].mean()), "of_three": float(found[of].any(1).mean())}
        for kind, of in kinds.items()
    }


def naive(planted: Planted) -> dict[str, Any]:
    z = ((planted.rows - planted.learned.mean()) / planted.learned.std()).abs().to_numpy()
    return hits(planted.rows.columns.to_numpy(str)[np.argsort(-z, axis=1)[:, :3]], planted)


def measure(recipe: str, planted: Planted) -> dict[str, Any]:
    """What the reasons of a fitted flow are worth, and rows a second with them and without."""
    model = flowcli.fit(recipe, planted.learned)
    table = pa.Table.from_pandas(planted.rows, preserve_index=False)
    began = time.monotonic()
    score_batch(model, table)
    scored = time.monotonic()
    scores = score_batch(model, table, explain=3)
    explained = time.monotonic()
    reasons = [scores.column(f"reason_{k}").to_numpy(zero_copy_only=False).astype(str) for k in (1, 2, 3)]
    return hits(np.stack(reasons, 1), planted) | {
        "rows_per_second": len(planted.rows) / (explained - scored),
        "rows_per_second_without": len(planted.rows) / (scored - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tables", nargs="*", default=[*tables()], choices=[*tables()])
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rows": options.rows, "tables": {}}
    print(f"{'':<34}{'far: first':>11}{'of three':>10}{'contextual: first':>19}{'of three':>10}{'rows/s':>9}")
    for name in options.tables:
        planted = plant(tables()[name], options.rows)
        found = {NAIVE: naive(planted)} | {recipe: measure(recipe, planted) for recipe in options.recipes}
        for what, line in found.items():
            speed = f"{line['rows_per_second']:>9,.0f}" if "rows_per_second" in line else ""
            print(f"{name:<16}{what:<18}{line['far']['first']:>11.1%}{line['far']['of_three']:>10.1%}"
                  f"{line['contextual']['first']:>19.1%}{line['contextual']['of_three']:>10.1%}{speed}")  # fmt: skip
        result["tables"][name] = {"learned_from": len(planted.learned), "columns": planted.rows.shape[1]} | found
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
