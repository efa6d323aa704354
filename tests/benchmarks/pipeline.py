"""Scoring from parquet to parquet by the command line, beside the densities alone and a script of pyarrow and zuko.

    python -m tests.benchmarks.pipeline --data DIR --work DIR [--rows 2000000] [--rounds 5] [--long]

DIR of ``--data`` holds ``benchmarks.py``, whose ``power()`` gives the rows: household power, 6 columns of real numbers.
``maf-affine`` is fitted to 200,000 of them for one epoch, once. Then, in rounds that take turns, on all cores:

- ``flowcli score``, a process, less its start-up: the time of the same command on a file of one row;
- ``log_prob`` of the same rows, encoded beforehand, in the chunks that ``score`` uses: with torch's own threads within
  each chunk, and with a chunk in each thread, as ``score`` does it;
- ``zuko_score.py``, a process, less its start-up likewise: with zuko's own ReLU, and with SiLU as ours, which makes
  densities smooth and takes several times as long.

Prints medians and the medians of the rounds' ratios, then how ``score`` grows with the rows (10⁵, 10⁶, with ``--long``
10⁷: medians of three, each less a start-up of its own), and writes ``results/pipeline.json``. Needs the ``bench``
extra.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from flowcli.model import Model
from flowcli.ordered import in_order
from tests.benchmarks.machine import machine
from tests.benchmarks.power import write_tables
from tests.benchmarks.zuko_score import new_flow

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
ACTIVATIONS = ("ReLU", "SiLU")  # of zuko's script


def table_of(work: Path, rows: int) -> Path:
    """A parquet file of so many rows: those of all three parts, again from the beginning where there are too few."""
    path = work / f"rows-{rows}.parquet"
    if not path.exists():
        parts = [pq.read_table(work / f"{part}.parquet") for part in ("train", "validation", "test")]
        whole = pa.concat_tables(parts)
        pq.write_table(pa.concat_tables([whole] * -(-rows // len(whole))).slice(0, rows), path)
    return path


def write_zuko(work: Path, data: Path) -> None:
    """What ``zuko_score.py`` needs: flows as they begin, which take as long as those that have learned."""
    rows = torch.tensor(pq.read_table(data).to_pandas().to_numpy("float32"))
    for activation in ACTIVATIONS:
        torch.manual_seed(0)
        state = new_flow(rows.shape[1], activation).state_dict()
        stored = {"activation": activation, "flow": state, "mean": rows.mean(0), "deviation": rows.std(0)}
        torch.save(stored, work / f"{activation}.pt")


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def process(*arguments: object) -> float:
    """How long ``python -m`` takes."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return seconds(lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL))


def score(work: Path, data: Path) -> float:
    return process("flowcli", "score", work / "run", data, "-o", work / "scores.parquet", "--force")


def zuko(work: Path, data: Path, activation: str) -> float:
    return process("tests.benchmarks.zuko_score", work / f"{activation}.pt", data, work / "zuko.parquet")


def densities(model: Model, data: Path) -> dict[str, Callable[[], object]]:
    """The two ways to compute ``log_prob`` alone."""
    chunks: list[Tensor] = []
    for batch in pq.ParquetFile(data).iter_batches(model.codec.rows_at_once):
        raw = model.codec.read(batch).raw
        chunks.append(model.codec.encode(raw, torch.full_like(raw, 0.5))[0].float())

    def log_prob(chunk: Tensor) -> Tensor:
        with torch.no_grad():
            return model.flow.log_prob(chunk)

    return {
        "log_prob": lambda: torch.cat([*map(log_prob, chunks)]),
        "log_prob, a chunk in each thread": lambda: torch.cat([*in_order(log_prob, chunks, model.threads)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="also 10⁷ rows")
    options = parser.parse_args()
    work: Path = options.work
    write_tables(options.data, work)
    one, data = table_of(work, 1), table_of(work, options.rows)
    if not (work / "run" / "run.json").exists():
        few = table_of(work, 200_000)
        process("flowcli", "fit", "maf-affine", few, "-o", work / "run", "--force", "-s", "train.epochs=1")
    write_zuko(work, table_of(work, 100_000))
    bytes(31 << 20)  # as the command does, so that what is freed is kept here too
    alone = densities(Model.load(work / "run"), data)

    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds):
        start_up = {"score": score(work, one), "zuko": zuko(work, one, ACTIVATIONS[0])}
        found = {"score": score(work, data) - start_up["score"]}
        found |= {name: seconds(way) for name, way in alone.items()}
        for name in ACTIVATIONS:
            found[f"zuko, {name}"] = zuko(work, data, name) - start_up["zuko"]
        rounds.append(found | {f"start-up of {name}": value for name, value in start_up.items()})
    names = ["score", *alone, *(f"zuko, {name}" for name in ACTIVATIONS)]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    ratios = {name: statistics.median(found[name] / found["score"] for found in rounds) for name in names[1:]}
    print(f"{options.rows:,} rows, medians of {options.rounds} rounds; start-up taken off")
    for name in names:
        times = f"   {ratios[name]:.2f} times score's" if name in ratios else ""
        print(f"{name:<34}{medians[name]:>8.2f} s{options.rows / medians[name]:>14,.0f} rows/s{times}")
    print(f"score takes {1 / ratios['log_prob']:.2f} times as long as log_prob alone")

    growth: list[dict[str, Any]] = []
    for rows in (10**5, 10**6, *([10**7] if options.long else [])):
        took = statistics.median(score(work, table_of(work, rows)) - score(work, one) for _ in range(3))
        growth.append({"rows": rows, "seconds": took, "rows_per_second": rows / took})
        print(f"score{rows:>29,} rows{took:>8.2f} s{rows / took:>14,.0f} rows/s")
    about = {"machine": machine(), "load": os.getloadavg()[2], "rows": options.rows, "rounds": rounds}
    found_all = {"medians": medians, "times_score": ratios, "growth": growth}
    RESULTS.write_text(json.dumps(about | found_all, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
