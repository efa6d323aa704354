"""Time to quality: how long ``flowcli fit`` takes to a held-out log-likelihood that zuko reaches, both from the start.

    python -m tests.benchmarks.race --data DIR --work DIR [--rows 200000] [--epochs 15] [--share 0.5]

POWER (``power.py``), 200,000 random rows of it to learn from and 50,000 to hold out. Both are processes that begin
cold, read the same parquet files and train the same flow (MAF, 5 layers of [128, 128], affine) with batches of 512.
zuko's script is ``zuko_fit.py``, at Adam's usual rate and, a second time, with a rate that falls to zero. ``flowcli
fit`` is then given a share of zuko's wall time, start-up included, and must end, calibration and files included,
within it and above zuko's last held-out figure. Runs take turns. Prints the table and writes ``results/race.json``.
Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from tests.benchmarks.machine import machine
from tests.benchmarks.power import write_tables

RESULTS = Path(__file__).parent / "results" / "race.json"
HELD_OUT = 50_000
CLOSING = 6.0  # seconds that a fit takes before and after training, about
RECIPE = {
    "version": 1,
    "flow": {"type": "maf", "layers": 5, "hidden": [128, 128], "transform": "affine"},
    "train": {"epochs": 1000, "patience": 1000, "batch_size": 512, "lr": 5e-3},
}


def some(source: Path, rows: int, to: Path) -> Path:
    """So many random rows of a file."""
    if not to.exists():
        table = pq.read_table(source)
        rows = min(rows, table.num_rows)
        pq.write_table(table.take(pa.array(np.random.default_rng(0).choice(table.num_rows, rows, replace=False))), to)
    return to


def zuko(train: Path, held_out: Path, epochs: int, cosine: bool) -> dict[str, Any]:
    """Wall seconds and the last held-out figure."""
    command = [sys.executable, "-m", "tests.benchmarks.zuko_fit", str(train), str(held_out), "--epochs", str(epochs)]
    began = time.monotonic()
    out = subprocess.run(command + ["--cosine"] * cosine, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = time.monotonic() - began
    curve = [json.loads(line) for line in out.splitlines()]
    return {"seconds": seconds, "held_out": curve[-1]["held_out"], "curve": curve}


def flowcli(train: Path, held_out: Path, work: Path, limit: float) -> dict[str, Any]:
    """The same of ``flowcli fit`` that has ``limit`` seconds in all."""
    recipe, run = work / "race.yaml", work / "race"
    recipe.write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "flowcli", "fit", recipe, train, "-s", f"data.validation={held_out}", "-o", run]
    began = time.monotonic()
    subprocess.run(
        [*map(str, command), "--force", "--max-time", f"{limit - CLOSING:.1f}s"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    return {"seconds": seconds, "held_out": metrics["held_out_log_prob"], "epochs": metrics["epochs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=15, help="of zuko")
    parser.add_argument("--share", type=float, default=0.5, help="of zuko's time that flowcli has")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    write_tables(options.data, options.work)
    train = some(options.work / "train.parquet", options.rows, options.work / f"train-{options.rows}.parquet")
    held_out = some(options.work / "validation.parquet", HELD_OUT, options.work / f"held-out-{HELD_OUT}.parquet")
    rounds = []
    print(f"{'':<24}{'seconds':>9}{'held out':>10}{'ratio':>7}")
    for _ in range(options.rounds):
        for name, cosine in (("Adam", False), ("Adam, cosine", True)):
            theirs = zuko(train, held_out, options.epochs, cosine)
            ours = flowcli(train, held_out, options.work, options.share * theirs["seconds"])
            ratio = theirs["seconds"] / ours["seconds"]
            rounds.append({"zuko": theirs, "flowcli": ours, "schedule": name, "ratio": ratio})
            print(f"{f'zuko, {name}':<24}{theirs['seconds']:>9.1f}{theirs['held_out']:>10.4f}")
            print(f"{'flowcli fit':<24}{ours['seconds']:>9.1f}{ours['held_out']:>10.4f}{ratio:>7.2f}", flush=True)
    about = machine() | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"machine": about, "rows": options.rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
