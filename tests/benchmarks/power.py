"""POWER (Papamakarios et al. 2017): mean test log-likelihood of shipped recipes at a wall time, by the command line.

    python -m tests.benchmarks.power --data DIR --work DIR [--threads 1] RECIPE=TIME ...

DIR of ``--data`` holds ``benchmarks.py``, whose ``power()`` gives the published split. Parquet files and run folders go
under ``--work``; a run that is there and finished is not fitted again. Prints the held-out curve of each run at equal
wall times and its figure on the test rows, and writes ``results/power.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAMES = ("active_power", "voltage", "metering_1", "metering_2", "metering_3", "minute")
RESULTS = Path(__file__).parent / "results" / "power.json"
PUBLISHED = {"Gaussian": -7.74, "RealNVP (10)": 0.17, "MAF (5)": 0.14, "MAF (10)": 0.24, "RQ-NSF (AR)": 0.66}


def write_tables(data: Path, work: Path) -> None:
    """The three parts of the published split as parquet, once."""
    if (work / "test.parquet").exists():
        return
    spec = importlib.util.spec_from_file_location("published", data / "benchmarks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    work.mkdir(parents=True, exist_ok=True)
    for part, rows in zip(("train", "validation", "test"), module.power(), strict=True):
        pq.write_table(pa.table({name: rows[:, i] for i, name in enumerate(NAMES)}), work / f"{part}.parquet")


def flowcli(arguments: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "flowcli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def measure(work: Path, recipe: str, time: str, threads: int) -> dict[str, Any]:
    """Fit if need be, then evaluate on the test rows."""
    run = work / f"{recipe}-{time}"
    if not (run / "run.json").exists():
        validation = f"data.validation={work / 'validation.parquet'}"
        arguments = ["fit", recipe, str(work / "train.parquet"), "-s", validation, "--max-time", time, "-o", str(run)]
        flowcli(arguments, threads)
    found = json.loads(flowcli(["evaluate", str(run), str(work / "test.parquet"), "--json"], threads))
    manifest = json.loads((run / "run.json").read_text())
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "recipe": recipe,
        "max_time": time,
        "threads": manifest["threads"],
        "training_seconds": manifest["seconds"]["training"],
        "steps": manifest["metrics"]["steps"],
        "parameters": manifest["metrics"]["parameters"],
        "test_log_prob": found["log_prob"],
        "test_log_prob_error": found["log_prob_error"],
        "gaussian_log_prob": found["gaussian_log_prob"],
        "curve": [{"seconds": round(e["seconds"]), "held_out_log_prob": e["held_out_log_prob"]} for e in curve],
    }


def at(curve: list[dict[str, float]], seconds: float) -> str:
    """The last held-out log-likelihood known by then."""
    known = [e["held_out_log_prob"] for e in curve if e["seconds"] <= seconds]
    return f"{known[-1]:.3f}" if known and curve[-1]["seconds"] >= seconds - 60 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("runs", nargs="+", metavar="RECIPE=TIME")
    options = parser.parse_args()
    write_tables(options.data, options.work)
    results = [measure(options.work, *run.split("="), options.threads) for run in options.runs]

    minutes = (2, 5, 10, 20, 30, 40, 60, 90)
    print("held-out log-likelihood after minutes (the last figure of a run is after annealing)")
    print(f"{'run':<24}" + "".join(f"{m:>8}" for m in minutes) + f"{'test':>10} ± error")
    for r in results:
        row = "".join(f"{at(r['curve'], 60 * m):>8}" for m in minutes)
        print(f"{r['recipe']} {r['max_time']:<5}".ljust(24) + row + f"{r['test_log_prob']:>10.4f} ± "
              f"{r['test_log_prob_error']:.4f}")  # fmt: skip
    print("published: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "system": platform.system()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "published": PUBLISHED, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
