"""Anomaly detection: the shipped recipe on ADBench's tables, beside 26 published methods.

    python -m tests.benchmarks.anomaly --data DIR [--seeds 5] [--variant NAME ...] [--peers] [--shuffled]
        [--contaminated SHARE]

DIR holds ``benchmarks.py``, ``adbench/`` and ``published/``. Protocol of Livernoche et al. (2023), semi-supervised:
half of the normal rows to learn from; the others and all anomalies to test on. No label is seen in fitting; labels of
these tables, beside other tasks, chose the one setting for all. For each variant (``VARIANTS``: the recipe with the
named settings; ``ABLATIONS``: the recipe, scored by other code than the tool's; all but ``anomaly`` with one fit,
``score.folds=1``) prints AUROC, AUPR, the average rank that it would have among the published methods, seconds, and the
share of false discoveries with ``--fdr 0.1``.
``--peers`` adds PyOD's kNN, LOF, IForest and ECOD in the same process. The published split takes the first half of the
normal rows in their file's order, in which they are often sorted; ``--shuffled`` shuffles them before.
``--contaminated`` puts anomalies, half of them at most, among the rows to learn from, as such a share of these. Writes
``results/anomaly.json``, unless ``--only NAME ...`` or ``-s key=value`` makes it another benchmark; variants that were
not run stay as they were.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli import neighbours
from flowcli.model import Model
from flowcli.neighbours import FIGURES, Neighbours, Reference
from flowcli.scoring import FalseDiscoveries, method, score_batch
from flowcli.scoring.evaluate import ranking
from flowcli.training import fit
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "anomaly.json"
VARIANTS: dict[str, list[str]] = {  # the recipe, and what was tried beside it
    "anomaly": [],
    "by likelihood": ["score.method=nll"],
    "by likelihood, no noise": ["score.method=nll", "train.noise=0", "flow.layers=4"],
    "round noise": ["train.noise_shape=round"],
    "more noise": ["train.noise=0.8"],
    "four layers": ["flow.layers=4"],
    "coupling layers": ["flow.type=realnvp", "flow.layers=4"],
    "numbers as they are": ["data.numbers=auto"],
    "one fit": [],
    "trimmed": ["data.trim=0.05"],
}


def of_views(*kept: int) -> dict[str, Any]:
    """Scores by some of the three views alone."""
    rows, figures = np.split(np.arange(sum(FIGURES)), np.cumsum(FIGURES)[:-1]), tuple(FIGURES[v] for v in kept)
    oddness, wanted = method.oddness, np.concatenate([rows[v] for v in kept])
    return {
        "flowcli.scoring.method.FIGURES": figures,
        "flowcli.scoring.method.oddness": lambda d, held_out, own=False: oddness(d[wanted], held_out[wanted], own),
    }


ABLATIONS: dict[str, dict[str, Any]] = {  # what is put in the place of what
    "columns alone": of_views(0),
    "ranks alone": of_views(1),
    "latents alone": of_views(2),
    "without columns": of_views(1, 2),
    "without ranks": of_views(0, 2),
    "without latents": of_views(0, 1),
    "views as they are": {"flowcli.scoring.method.EXPECTED": 0.0},
    "a third of what is expected": {"flowcli.scoring.method.EXPECTED": 1 / 3},
    "a longer tail": {"flowcli.scoring.method.TAIL": 0.2},
    "columns as they are": {"flowcli.neighbours.Neighbours._columns": Neighbours._standard},
    "columns by Euclid's distance": {
        "flowcli.neighbours._nearest": lambda x, rows, norm, own, nearest=neighbours._nearest: nearest(x, rows, 2, own)
    },
    "training rows alone": {
        "flowcli.training.prepare.Reference": lambda training, held_out: Reference(training, held_out[:0])
    },
    "first neighbour alone": {"flowcli.neighbours.NEAREST": (1, 1)},
    "fifth neighbour alone": {"flowcli.neighbours.NEAREST": (5, 5)},
}
Q = 0.1  # the share of false discoveries asked for
ENOUGH = 100  # anomalies from which on a table counts towards the false discoveries
Floats = NDArray[np.float64]


def tables(data: Path) -> ModuleType:
    """The loaders beside the data."""
    spec = importlib.util.spec_from_file_location("tables", data / "benchmarks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame(x: Floats) -> pa.Table:
    return pa.table({f"x{i}": column for i, column in enumerate(x.T)})


def shuffled(train: Floats, test: Floats, labels: NDArray[np.bool_], seed: int) -> tuple[Floats, Floats]:
    """The same rows, with the normal ones dealt out anew."""
    normal = np.random.default_rng(seed).permutation(np.concatenate([train, test[~labels]]))
    anew = test.copy()
    anew[~labels] = normal[len(train) :]
    return normal[: len(train)], anew


def contaminated(
    train: Floats, test: Floats, labels: NDArray[np.bool_], share: float, seed: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Rows to learn from of which a share is anomalies, and those that are left to test on."""
    most = min(round(share / (1 - share) * len(train)), labels.sum() // 2)
    moved = np.random.default_rng(seed).permutation(np.flatnonzero(labels))[:most]
    return np.concatenate([train, test[moved]]), np.delete(test, moved, 0), np.delete(labels, moved)


def figures(score: Floats, labels: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC and AUPR in percent."""
    auroc, aupr = ranking(score, labels)[:2]
    return {"auroc": 100 * auroc, "aupr": 100 * aupr}


def flowclis(train: Floats, test: Floats, labels: NDArray[np.bool_], options: list[str]) -> dict[str, float]:
    """Figures of the recipe with these options."""
    began = time.perf_counter()
    model = fit("anomaly", frame(train), overrides=options)
    fitted = time.perf_counter()
    scored = scores(model, frame(test))
    ended = time.perf_counter()
    p_value = scored.column("p_value").to_numpy(zero_copy_only=False)
    discoveries = FalseDiscoveries(Q)
    discoveries.add(p_value)
    flagged = p_value <= (discoveries.level().alpha or 0)
    return figures(scored.column("score").to_numpy(zero_copy_only=False), labels) | {
        "fit seconds": fitted - began,
        "score seconds": ended - fitted,
        "flagged": float(flagged.sum()),
        "false discoveries": float((flagged & ~labels).sum() / max(flagged.sum(), 1)),
        "found": float((flagged & labels).sum() / labels.sum()),
        "usual": float((p_value > 0.5).mean()),
    }


def scores(model: Model, rows: pa.Table) -> pa.Table:
    parts = [score_batch(model, batch) for batch in rows.combine_chunks().to_batches(max_chunksize=8192)]
    return pa.Table.from_batches(parts).combine_chunks()


def peers(train: Floats, test: Floats, labels: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Figures of PyOD's detectors with their defaults."""
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF

    found = {}
    for make in (KNN, LOF, IForest, ECOD):
        began = time.perf_counter()
        detector = make().fit(train)
        fitted = time.perf_counter()
        score = detector.decision_function(test)
        seconds = {"fit seconds": fitted - began, "score seconds": time.perf_counter() - fitted}
        found[f"PyOD {make.__name__}"] = figures(score, labels) | seconds
    return found


def summary(
    runs: dict[str, list[dict[str, float]]], published: dict[str, dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """Means over tables of the means over seeds, and average ranks among the published methods."""
    mean = {name: {k: float(np.mean([run[k] for run in seeds])) for k in seeds[0]} for name, seeds in runs.items()}
    found: dict[str, Any] = {k: float(np.mean([m[k] for m in mean.values()])) for k in ("auroc", "aupr")}
    for metric, table in published.items():
        ranks = [1 + sum(v > mean[name][metric] for v in table[name].values()) for name in mean]
        found[f"rank by {metric}"] = float(np.mean(ranks))
    for k in ("fit seconds", "score seconds"):
        found[k] = float(sum(m[k] for m in mean.values()))
    found["false discoveries"] = float(
        np.mean([m["false discoveries"] for m in mean.values() if m.get("counts")] or [0])
    )
    return found | {"tables": mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--variant", nargs="*", default=["anomaly"], choices=[*VARIANTS, *ABLATIONS])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--contaminated", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("-s", dest="settings", action="append", default=[], help="of a variant tried out, not kept")
    options = parser.parse_args()
    loaders = tables(options.data)
    published = {metric: loaders.adbench_table(metric) for metric in ("auroc", "aupr")}
    names = options.only or loaders.adbench_names()
    beside = ", shuffled" * options.shuffled
    beside += f", {options.contaminated:.0%} contaminated" if options.contaminated else ""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in names:
        for seed in range(options.seeds):
            train, test, labels = loaders.adbench(name, seed)
            labels = labels.astype(bool)
            if options.shuffled:
                train, test = shuffled(train, test, labels, seed)
            train, test, labels = contaminated(train, test, labels, options.contaminated, seed)
            for variant in options.variant:
                fits = [] if variant == "anomaly" else ["score.folds=1"]
                settings = [f"train.seed={seed}", *fits, *VARIANTS.get(variant, []), *options.settings]
                with ExitStack() as stack:
                    for what, other in ABLATIONS.get(variant, {}).items():
                        stack.enter_context(patch(what, other))
                    run = flowclis(train, test, labels, settings) | {"counts": float(labels.sum() >= ENOUGH)}
                label = variant + beside
                found.setdefault(label, {}).setdefault(name, []).append(run)
                print(
                    f"{name:12} {variant:28} seed {seed}  AUROC {run['auroc']:5.1f}  AUPR {run['aupr']:5.1f}  "
                    f"FDR {run['false discoveries']:.3f} of {run['flagged']:.0f}  "
                    f"{run['fit seconds']:.0f} + {run['score seconds']:.1f} s",
                    flush=True,
                )
            if options.peers and not seed:
                for peer, run in peers(train, test, labels).items():
                    found.setdefault(peer + beside, {})[name] = [run]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"variants": {}}
    for variant, runs in found.items():
        result = summary(runs, published)
        print(
            f"{variant:28} AUROC {result['auroc']:.2f}  AUPR {result['aupr']:.2f}  rank {result['rank by auroc']:.1f} "
            f"and {result['rank by aupr']:.1f}  FDR {result['false discoveries']:.3f}  "
            f"{result['fit seconds']:.0f} + {result['score seconds']:.0f} s"
        )
        kept["variants"][variant] = result | {"seeds": options.seeds}
    if not options.only and not options.settings:
        methods = next(iter(published["auroc"].values()))
        kept["published"] = {
            m: {metric: float(np.mean([t[n][m] for n in names])) for metric, t in published.items()}
            | {
                f"rank by {metric}": float(np.mean([1 + sum(v > t[n][m] for v in t[n].values()) for n in names]))
                for metric, t in published.items()
            }
            for m in methods
        }
        RESULTS.write_text(json.dumps({"machine": machine(), **kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
