"""Conditional densities: the shipped recipe on five of the UCI regression sets, beside published figures.

    python -m tests.benchmarks.conditional --data DIR [--splits 20] [--only NAME ...] [-s key=value]

DIR holds ``conditional/NAME.npz`` (X, y, ``test_mask[split, row]``: the splits of Gal & Ghahramani 2016) and
``published/uci_nll_deep_ensembles_table1.csv``. Every split is fitted by the recipe ``conditional`` alone, on nine
tenths of its training rows; the rest decides when to stop. Prints, for each set, the mean over splits and its standard
error of the negative log-likelihood of the test rows (nats, in units of y), their CRPS and the share within central
intervals. Wine's y is a whole number: its figure is a log-mass, which compares with a density at a spacing of one.
Writes ``results/conditional.json`` after each split, where sets that were not run stay as they were; not with ``-s``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli.scoring import evaluate
from flowcli.training import fit
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "conditional.json"
NAMES = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red")
PUBLISHED = {"wine-quality-red": "wine"}  # names there that are others
WHOLE = {"wine-quality-red"}  # whose y counts something
Floats = NDArray[np.float64]


def table(x: Floats, y: Floats) -> pa.Table:
    return pa.table({**{f"x{i}": column for i, column in enumerate(x.T)}, "y": y})


def one(x: Floats, y: Floats, test: NDArray[np.bool_], settings: list[str]) -> dict[str, float]:
    """Figures of the recipe on one split."""
    began = time.perf_counter()
    given = ",".join(f"x{i}" for i in range(x.shape[1]))
    model = fit("conditional", table(x[~test], y[~test]), overrides=[f"data.given=[{given}]", *settings])
    fitted = time.perf_counter() - began
    found = evaluate(model, table(x[test], y[test]).to_batches())
    assert found.crps is not None
    assert found.coverage is not None
    assert found.rows_in_mean == test.sum()
    within = {f"within {level} %": share for level, share in found.coverage.items()}
    return {"nll": -found.log_prob, "crps": found.crps, **within, "fit seconds": fitted}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Means over splits, and the standard error of the first two."""
    found: dict[str, Any] = {"splits": len(runs)} | {k: float(np.mean([run[k] for run in runs])) for k in runs[0]}
    for k in ("nll", "crps"):
        found[f"{k} error"] = float(np.std([run[k] for run in runs], ddof=1) / math.sqrt(len(runs)))
    return found


def published(data: Path) -> dict[str, dict[str, str]]:
    with (data / "published" / "uci_nll_deep_ensembles_table1.csv").open() as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=NAMES)
    parser.add_argument("-s", dest="settings", action="append", default=[], help="of a variant tried out, not kept")
    options = parser.parse_args()
    theirs = published(options.data)
    sets = {}
    for name in options.only or NAMES:
        with np.load(options.data / "conditional" / f"{name}.npz") as file:
            sets[name] = file["X"], file["y"].ravel(), file["test_mask"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
    for split in range(options.splits):
        for name, (x, y, masks) in sets.items():
            settings = ["data.columns={y: integer}"] * (name in WHOLE) + options.settings
            runs[name].append(one(x, y, masks[split], settings))
            print(f"{split:2} {name:17}", "  ".join(f"{k} {v:.3f}" for k, v in runs[name][-1].items()), flush=True)
        if split and not options.settings:
            kept = json.loads(RESULTS.read_text())["sets"] if RESULTS.exists() else {}
            kept |= {
                name: summary(run) | {"published": theirs[PUBLISHED.get(name, name)]} for name, run in runs.items()
            }
            RESULTS.write_text(json.dumps({"machine": machine(), "sets": kept}, indent=1) + "\n")
    print("\n| | NLL | deep ensembles | CRPS | 50 % | 80 % | 90 % | 95 % | s |\n| --- |" + " ---: |" * 8)
    for name, run in runs.items():
        found = summary(run)
        within = " | ".join(f"{100 * found[f'within {level} %']:.1f}" for level in (50, 80, 90, 95))
        print(
            f"| {name} | {found['nll']:.3f} ± {found['nll error']:.3f} "
            f"| {theirs[PUBLISHED.get(name, name)]['DeepEnsembles']} | {found['crps']:.4g} | {within} "
            f"| {found['fit seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
