"""A folder of parquet scored by one process, by shards and by engines, all on the same cores.

    python -m tests.benchmarks.shards --work DIR [--rows 2000000] [--rounds 5] [--engines spark ray]

Rows are drawn from a mixture, 6 columns of real numbers, in 8 files; the model is an affine MAF of 5 layers with 64
hidden units. In rounds that take turns, on all cores:

- ``score`` to one file; ``--shard 0/1``, one process that does every part; and two shards side by side, with half of
  the cores' threads each;
- Spark (``local[2]``) and Ray (two actors), as :mod:`tests.benchmarks.engines` has them.

Start-up, the time of the same on a folder of a few rows, is taken off and listed apart. Prints medians, and the medians
of the rounds' ratios to ``score``: by the clock, which a busy machine disturbs, and of the processors' time, which it
hardly does. Writes ``results/shards.json``. Spark needs the ``spark`` extra and Java 17, Ray ``pip install
'ray[data]'``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import flowcli
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "shards.json"
FILES, COLUMNS, FEW = 8, 6, 100
CORES = os.cpu_count() or 1
RECIPE = {"flow": {"type": "maf", "layers": 5, "hidden": [64, 64]}, "train": {"epochs": 1}}


def table(rows: int, seed: int) -> pa.Table:
    """Rows of a mixture of three Gaussians."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, COLUMNS)) @ np.random.default_rng(0).standard_normal((COLUMNS, COLUMNS))
    x += 4 * rng.integers(0, 3, (rows, 1))
    return pa.table({f"x{i}": x[:, i] for i in range(COLUMNS)})


def prepare(work: Path, rows: int) -> Path:
    """The model, two files of a few rows, and the lake, once."""
    lake = work / f"lake-{rows}"
    for folder, files, n in ((work / "few", 2, FEW), (lake, FILES, rows // FILES)):
        if not folder.exists():
            folder.mkdir(parents=True)
            for i in range(files):
                pq.write_table(table(n, i), folder / f"{i}.parquet")
    if not (work / "model.safetensors").exists():
        flowcli.fit(RECIPE, table(50_000, 99)).save(work / "model.safetensors")
    return lake


def process(threads: int, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYSPARK_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def command(work: Path, data: Path, shards: int) -> tuple[float, float]:
    """Seconds that so many shards take side by side, each with its share of the cores, by the clock and of processors;
    none: ``score`` to a file."""
    output = work / ("scores" if shards else "scores.parquet")
    if output.is_dir():
        shutil.rmtree(output)
    score = ["flowcli", "score", work / "model.safetensors", data, "-o", output]
    began = time.monotonic()
    if shards:
        running = [process(CORES // shards, *score, "--shard", f"{i}/{shards}") for i in range(shards)]
    else:
        running = [process(CORES, *score, "--force")]
    used = 0.0
    for one in running:
        _, status, usage = os.wait4(one.pid, 0)
        one.returncode = os.waitstatus_to_exitcode(status)
        used += usage.ru_utime + usage.ru_stime
        if one.returncode:
            raise SystemExit(f"{' '.join(map(str, score))}: failed")
    return time.monotonic() - began, used


def engine(name: str, work: Path, lake: Path) -> dict[str, float]:
    """Seconds of start-up, of the lake, and of processors for the lake."""
    arguments = ("tests.benchmarks.engines", name, work / "model.safetensors", work / "few", lake, work / name)
    for folder in (work / name, work / f"{name}-one"):
        shutil.rmtree(folder, ignore_errors=True)
    out, _ = process(1, *arguments).communicate()
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="*", default=["spark", "ray"])
    options = parser.parse_args()
    work: Path = options.work
    lake = prepare(work, options.rows)
    ways = {"score": 0, "--shard 0/1": 1, "two shards": 2}
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        found = {}
        for name, shards in ways.items():
            start_up, idle = command(work, work / "few", shards)
            seconds, used = command(work, lake, shards)
            found[name] = {"start_up": start_up, "seconds": seconds - start_up, "processor": used - idle}
        for name in options.engines:
            found[name] = engine(name, work, lake)
        rounds.append(found)
    load = os.getloadavg()[2]
    print(f"{options.rows:,} rows, medians of {options.rounds} rounds, load {load:.1f} on {CORES} cores")
    print(f"{'':<14}{'start-up':>10}{'rows':>10}{'rows/s':>12}{'times score':>13}{'processor':>12}{'times score':>13}")
    medians = {}
    for name in rounds[0]:
        median = {key: statistics.median(found[name][key] for found in rounds) for key in rounds[0][name]}
        ratio = {key: statistics.median(found[name][key] / found["score"][key] for found in rounds) for key in median}
        rate = options.rows / median["seconds"]
        medians[name] = {"medians": median, "rows_per_second": rate, "times_score": ratio}
        print(
            f"{name:<14}{median['start_up']:>8.1f} s{median['seconds']:>8.2f} s{rate:>12,.0f}{ratio['seconds']:>13.2f}"
            f"{median['processor']:>10.2f} s{ratio['processor']:>13.2f}"
        )
    about = {"machine": machine(), "load": load, "rows": options.rows, "rounds": rounds}
    RESULTS.write_text(json.dumps(about | {"medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
