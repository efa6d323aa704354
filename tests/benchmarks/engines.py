"""A folder of parquet scored by an engine, timed from within; :mod:`tests.benchmarks.shards` starts it.

    python -m tests.benchmarks.engines spark|ray MODEL ONE LAKE OUTPUT

First ONE, a folder of few rows, is scored: what an engine starts is started by then. Then LAKE is, from parquet to
parquet, on two cores. Prints the seconds that each took, and the processors' for LAKE, of this
process and all that it started (as Linux knows them), as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import flowcli
from flowcli.scoring import Scorer

Engine = Callable[[str, str, str], None]


def spark() -> Engine:
    from pyspark.sql import SparkSession

    import flowcli.spark

    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")

    def score(model: str, data: str, output: str) -> None:
        scores = flowcli.spark.score(model, session.read.parquet(data))
        scores.write.mode("overwrite").parquet(output)

    return score


class Score:
    """What Ray calls in each of its actors."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self.scorer = Scorer(flowcli.load(model))

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.Table.from_batches([self.scorer.beside(batch) for batch in table.to_batches()])


def ray() -> Engine:
    import ray.data

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def score(model: str, data: str, output: str) -> None:
        rows: Any = ray.data.read_parquet(data)
        scores = rows.map_batches(
            Score, fn_constructor_args=[model], batch_format="pyarrow", batch_size=65_536, concurrency=2, num_cpus=0.5
        )
        scores.write_parquet(output)

    return score


def processor() -> float:
    """Seconds of processors that this process, and all that came from it, have had."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[path.parent.name], used[path.parent.name] = fields[1], sum(map(int, fields[11:15]))

    def ours(process: str) -> bool:
        return process == str(os.getpid()) or (process in parents and ours(parents[process]))

    return sum(ticks for process, ticks in used.items() if ours(process)) / os.sysconf("SC_CLK_TCK")


def main(engine: str, model: str, one: str, lake: str, output: str) -> dict[str, float]:
    warnings.simplefilter("ignore")
    logging.disable()
    began = time.monotonic()
    score = {"spark": spark, "ray": ray}[engine]()
    score(model, one, f"{output}-one")
    started, before = time.monotonic(), processor()
    score(model, lake, output)
    seconds = time.monotonic() - started
    return {"start_up": started - began, "seconds": seconds, "processor": processor() - before}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
