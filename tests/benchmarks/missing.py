"""Rows with missing values: how exact their densities are, how well they rank, and what learning from them costs.

    python -m tests.benchmarks.missing [--repeats 10] [--draws 8192] [--part exact|scoring|learning ...]

*exact*: a Gaussian of six columns, whose marginals are known in closed form, learned by ``maf-spline`` from 4,000 rows;
500 other rows miss one to three values. A row's ``log_prob`` is set against the true marginal, and its
``log_prob_error`` against what it claims to be: the standard error of an estimate of the *model's own* marginal. So the
check of that is the same model's marginal from many more draws, not the truth, from which the fit's error keeps it.

*scoring*: ``quickstart`` on half of the normal rows of wine (the third class is odd) and breast cancer (malignant is
odd); AUROC on the rest, complete and with a fifth of the cells missing at random, beside the same scores with the
training rows' means in the gaps.

*learning*: the same with a fifth of the training cells missing, by ``missing: marginalise``, ``indicator`` and
``impute``, beside learning from complete rows; tested on complete rows. What ``indicator`` states is the density of the
values *and* of their being there; beside it is what remains without the latter, d·log 0.8 in truth.

Prints the tables and writes ``results/missing.json``. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, spearmanr
from sklearn.datasets import load_breast_cancer, load_wine

import flowcli
from flowcli.model import Model
from flowcli.scoring import score_batch
from flowcli.scoring.evaluate import ranking
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "missing.json"
COLUMNS, LEARNED_FROM, TESTED = 6, 4_000, 500
SHARE = 0.2  # of the cells that are missing
WAYS = ("marginalise", "indicator", "impute")
Floats = NDArray[np.float64]


# -- exact ---------------------------------------------------------------------------------------------------------


def true_marginals(rows: Floats, mean: Floats, covariance: Floats) -> Floats:
    """The Gaussian's log-density ``(n,)`` of what is there of each row."""
    there = ~np.isnan(rows)
    parts = [
        multivariate_normal(mean[t], covariance[np.ix_(t, t)]).logpdf(row[t])
        for row, t in zip(rows, there, strict=True)
    ]
    return np.array(parts)


def rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))


def exact(draws: int) -> dict[str, Any]:
    """Against the closed form, and the claimed error against the same model's marginal from ``draws`` draws."""
    rng = np.random.default_rng(0)
    mix, mean = rng.standard_normal((COLUMNS, COLUMNS)), rng.standard_normal(COLUMNS)
    covariance = mix @ mix.T
    rows = mean + rng.standard_normal((LEARNED_FROM + TESTED, COLUMNS)) @ mix.T
    names = [f"x{i}" for i in range(COLUMNS)]
    model = flowcli.fit("maf-spline", pd.DataFrame(rows[:LEARNED_FROM], columns=names))
    test = rows[LEARNED_FROM:]
    holed = test.copy()
    count = rng.integers(1, 4, TESTED)
    holed[rng.permuted(np.tile(np.arange(COLUMNS), (TESTED, 1)), axis=1) < count[:, None]] = np.nan
    read = model.codec.read(pa.Table.from_pandas(pd.DataFrame(holed, columns=names)))
    began = time.monotonic()
    found = model.density(read)
    seconds = time.monotonic() - began
    many = model.completed(read, draws=draws)
    truth = true_marginals(holed, mean, covariance)
    complete = model.log_prob(pd.DataFrame(test, columns=names)) - true_marginals(test, mean, covariance)
    off = found.log_prob - many.log_prob
    result: dict[str, Any] = {
        "rows_per_second": TESTED / seconds,
        "complete_rows_rms_error": rms(complete),
        "spearman": float(spearmanr(found.log_prob, truth).statistic),
        "rms_error": rms(found.log_prob - truth),
        "rms_error_of_the_model": rms(many.log_prob - truth),
        "rms_error_of_the_estimate": rms(off),
        "mean_claimed_error": float(found.error.mean()),
        "mean_claimed_error_of_many_draws": float(many.error.mean()),
        "covered_by_1": float((abs(off) <= found.error).mean()),
        "covered_by_2": float((abs(off) <= 2 * found.error).mean()),
        "mean_offset": float(off.mean()),
        "by_missing": {
            str(k): {
                "rows": int((count == k).sum()),
                "spearman": float(spearmanr(found.log_prob[count == k], truth[count == k]).statistic),
                "rms_error": rms((found.log_prob - truth)[count == k]),
                "rms_error_of_the_estimate": rms(off[count == k]),
                "mean_claimed_error": float(found.error[count == k].mean()),
                "covered_by_2": float((abs(off) <= 2 * found.error)[count == k].mean()),
            }
            for k in (1, 2, 3)
        },
    }
    print(f"\n{TESTED} rows of a Gaussian of {COLUMNS} columns, 1 to 3 values missing; nats")
    print(
        f"{'missing':<10}{'rows':>6}{'Spearman':>10}{'rms error':>11}{'of estimate':>13}{'claimed':>9}{'±2 covers':>11}"
    )
    lines = {"all": result | {"rows": TESTED}} | result["by_missing"]
    for name, line in lines.items():
        print(f"{name:<10}{line['rows']:>6}{line['spearman']:>10.4f}{line['rms_error']:>11.4f}"
              f"{line['rms_error_of_the_estimate']:>13.4f}{line['mean_claimed_error']:>9.4f}"
              f"{line['covered_by_2']:>11.1%}")  # fmt: skip
    print(f"the same rows complete: rms error {result['complete_rows_rms_error']:.4f}; ±1 covers "
          f"{result['covered_by_1']:.1%}; {result['rows_per_second']:,.0f} rows/s; offset {off.mean():+.4f}; "
          f"{draws} draws claim {many.error.mean():.4f} themselves")  # fmt: skip
    return result


# -- real tables ---------------------------------------------------------------------------------------------------


def normal_and_odd(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a table that are normal and those that are odd."""
    bunch = {"wine": load_wine, "breast_cancer": load_breast_cancer}[name](as_frame=True)
    odd = (bunch.target == {"wine": 2, "breast_cancer": 0}[name]).to_numpy()
    return bunch.data[~odd].astype(float), bunch.data[odd].astype(float)


def halves(name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, NDArray[np.bool_]]:
    """Half of the normal rows, at random; all other rows; which of these are odd."""
    normal, odd = normal_and_odd(name)
    order = np.random.default_rng(seed).permutation(len(normal))
    train, rest = normal.iloc[order[: len(normal) // 2]], normal.iloc[order[len(normal) // 2 :]]
    return train, pd.concat([rest, odd]), np.arange(len(rest) + len(odd)) >= len(rest)


def with_holes(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A fifth of the cells missing, at random."""
    return frame.mask(np.random.default_rng([seed, 1]).random(frame.shape) < SHARE)


def auroc(model: Model, frame: pd.DataFrame, odd: NDArray[np.bool_]) -> float:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    score = score_batch(model, table).column("score").to_numpy(zero_copy_only=False)
    return ranking(score, odd)[0]


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "worst": min(values), "best": max(values)}


def scoring(name: str, repeats: int) -> dict[str, Any]:
    """AUROC of a model of complete rows, on complete rows and on those with missing values."""
    train, test, odd = halves(name, 0)
    model = flowcli.fit("quickstart", train)
    holed = [with_holes(test, seed) for seed in range(repeats)]
    result = {
        "complete": auroc(model, test, odd),
        "missing": spread([auroc(model, frame, odd) for frame in holed]),
        "means_put_in": spread([auroc(model, frame.fillna(train.mean()), odd) for frame in holed]),
    }
    print(f"{name:<16}{result['complete']:>10.4f}" + "".join(
        f"{result[k]['mean']:>15.4f}{result[k]['worst']:>9.4f}" for k in ("missing", "means_put_in")))  # fmt: skip
    return result


def learning(name: str, repeats: int) -> dict[str, Any]:
    """AUROC and log-likelihood on complete rows of models of rows with missing values; a split and a mask a seed."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ("complete", *WAYS)}
    for seed in range(repeats):
        train, test, odd = halves(name, seed)
        for way in found:
            columns = {column: {"missing": way} for column in train} if way != "complete" else {}
            frame = train if way == "complete" else with_holes(train, seed)
            overrides = [f"data.columns={json.dumps(columns)}", f"train.seed={seed}"]
            model = flowcli.fit("quickstart", frame, overrides=overrides)
            found[way].append((auroc(model, test, odd), float(model.log_prob(test[~odd]).mean())))
    result: dict[str, Any] = {}
    being_there = test.shape[1] * math.log(1 - SHARE)
    for way, pairs in found.items():
        aurocs, log_probs = zip(*pairs, strict=True)
        rest = [log_prob - being_there * (way == "indicator") for log_prob in log_probs]
        lost = [a - b for a, (_, b) in zip(rest, found["complete"], strict=True)]
        result[way] = {
            "auroc": spread([*aurocs]),
            "log_prob": spread([*log_probs]),
            "log_prob_of_values": float(np.mean(rest)),
            "against_complete": float(np.mean(lost)),
            "against_complete_error": float(np.std(lost, ddof=1) / math.sqrt(repeats)) if repeats > 1 else None,
        }
        line = result[way]
        print(f"{name:<16}{way:<14}{line['auroc']['mean']:>10.4f}{line['auroc']['worst']:>9.4f}"
              f"{line['log_prob']['mean']:>12.3f}{line['log_prob_of_values']:>12.3f}"
              f"{line['against_complete']:>12.3f}")  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="masks, and splits to learn from")
    parser.add_argument("--draws", type=int, default=8192, help="of the marginal that estimates are checked with")
    parser.add_argument("--part", nargs="*", choices=("exact", "scoring", "learning"))
    options = parser.parse_args()
    parts = options.part or ["exact", "scoring", "learning"]
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {"machine": machine(), "repeats": options.repeats}
    if "exact" in parts:
        result["exact"] = exact(options.draws) | {"draws": options.draws}
    names = ("wine", "breast_cancer")
    if "scoring" in parts:
        print(f"\nAUROC, a fifth of the cells missing in {options.repeats} ways")
        print(f"{'':<16}{'complete':>10}{'missing: mean':>15}{'worst':>9}{'means: mean':>15}{'worst':>9}")
        result["scoring"] = {name: scoring(name, options.repeats) for name in names}
    if "learning" in parts:
        print(
            f"\nlearned from rows with a fifth of the cells missing, tested on complete ones; {options.repeats} splits"
        )
        print(f"{'':<30}{'AUROC':>10}{'worst':>9}{'log p':>12}{'of values':>12}{'− complete':>12}")
        result["learning"] = {name: learning(name, options.repeats) for name in names}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
