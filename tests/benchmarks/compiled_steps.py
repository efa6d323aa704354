"""A training step as ``fit`` takes it, compiled (``train.compile``) and not, and what compiling costs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.compiled_steps [--rounds 100] [CASE ...]

The same rows, batches and start for both, which take their steps in turn; medians and their ratio are given. Compiling
starts from an empty cache: a fit of the same shape on the same machine finds most of it there. Steps to win it back are
the seconds of compiling over those saved in a step. Prints the table and writes ``results/compiled_steps.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from flowcli.recipe import from_dict
from flowcli.training.encode import Encoded
from flowcli.training.loop import Trainer
from flowcli.training.prepare import prepare
from flowcli.training.progress import Progress
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "compiled_steps.json"
ROWS, BATCH = 8000, 512

# Real columns, discrete columns, and the flow.
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "MAF, affine": (6, 0, {"type": "maf", "hidden": [64, 64], "layers": 5}),
    "MAF, affine, wide": (43, 0, {"type": "maf", "hidden": [512, 512], "layers": 5}),
    "MAF, spline": (6, 0, {"type": "maf", "transform": "spline", "hidden": [128, 128], "layers": 5}),
    "MAF, spline, discrete": (4, 6, {"type": "maf", "transform": "spline", "hidden": [64, 64], "layers": 5}),
    "RealNVP, affine": (6, 0, {"type": "realnvp", "hidden": [64, 64], "layers": 8}),
    "RealNVP, spline": (6, 0, {"type": "realnvp", "transform": "spline", "hidden": [64, 64], "layers": 8}),
    "planar": (3, 0, {"type": "planar"}),
    "radial": (3, 0, {"type": "radial"}),
}


def table(real: int, discrete: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, real)) @ rng.standard_normal((real, real))
    x[:, 0] += x[:, -1] ** 2
    counts = {f"k{i}": rng.poisson(np.exp(x[:, i % real] / 3)) for i in range(0, discrete, 2)}
    levels = {f"k{i}": rng.choice(list("abcdefg"), ROWS) for i in range(1, discrete, 2)}
    return pd.DataFrame({f"x{i}": x[:, i] for i in range(real)} | counts | levels)


class Steps:
    """The steps of a fit, one at a time."""

    def __init__(self, frame: pd.DataFrame, flow: dict[str, Any]) -> None:
        prepared = prepare(from_dict({"flow": flow, "train": {"batch_size": BATCH}}), frame)
        self.trainer = Trainer(
            prepared.flow, prepared.codec, prepared.baseline, prepared.rows, prepared.held_out, prepared.recipe.train,
            Progress(),
        )  # fmt: skip
        self.data: Encoded = next(self.trainer._windows(0))
        self.batches = torch.randperm(len(self.data.y)).split(BATCH)[:-1]
        self.noise = torch.Generator()
        self.trainer.flow.train()

    def seconds(self) -> float:
        """Of the next step."""
        counters = self.trainer.counters
        began = time.perf_counter()
        self.trainer._step(self.data, self.batches[counters.step % len(self.batches)], self.noise)
        counters.step += 1
        return time.perf_counter() - began


def measure(name: str, rounds: int) -> dict[str, Any]:
    real, discrete, flow = CASES[name]
    frame = table(real, discrete)
    plain, compiled = Steps(frame, flow), Steps(frame, flow)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        began = time.perf_counter()
        compiled.trainer.loss_and_gradient = compiled.trainer._compiled
        cost = time.perf_counter() - began
        if compiled.trainer.loss_and_gradient == compiled.trainer._uncompiled:
            return {"case": name, "columns": real + discrete, "flow": flow, "refused": True}
        plain.seconds(), compiled.seconds()
        times = [(plain.seconds(), compiled.seconds()) for _ in range(rounds)]
    a, b = (statistics.median(t) for t in zip(*times, strict=True))
    return {
        "case": name, "columns": real + discrete, "flow": flow, "uncompiled_ms": 1e3 * a, "compiled_ms": 1e3 * b,
        "ratio": a / b, "compiling_s": cost, "steps_to_win_it_back": round(cost / (a - b)) if a > b else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    results = []
    print(f"{'':<22}{'uncompiled':>12}{'compiled':>12}{'ratio':>7}{'compiling':>11}{'won back after':>16}")
    for case in options.cases:
        r = measure(case, options.rounds)
        results.append(r)
        print(
            f"{case:<22}refused: its gradient is wrong" if "refused" in r else
            f"{case:<22}{r['uncompiled_ms']:>9.2f} ms{r['compiled_ms']:>9.2f} ms{r['ratio']:>7.2f}"
            f"{r['compiling_s']:>9.0f} s{r['steps_to_win_it_back'] or '-':>10} steps", flush=True
        )  # fmt: skip
    about = machine() | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"machine": about, "rounds": options.rounds, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
