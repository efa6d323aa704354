"""Peak memory of scoring and of fitting a large parquet file, beside that of a hundredth of it.

    python -m tests.benchmarks.memory --work DIR [--rows 50000000] [--fit-time 3m]

Generates a table of 10 real columns, fits a small flow to its first rows, and scores it and its first hundredth by the
command line; then fits a flow to each, streamed, for a given time after what has to be read first. Prints peak resident
memory and rows a second, and writes ``results/memory.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "memory.json"
COLUMNS, GROUP = 10, 250_000


def generate(path: Path, rows: int) -> None:
    """Correlated columns, a row group at a time."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((COLUMNS, COLUMNS))
    schema = pa.schema([(f"x{i}", pa.float32()) for i in range(COLUMNS)])
    part = path.with_suffix(".part")
    with pq.ParquetWriter(part, schema) as writer:
        for start in range(0, rows, GROUP):
            x = rng.standard_normal((min(GROUP, rows - start), COLUMNS)) @ mix
            writer.write_table(pa.table(list(x.T.astype(np.float32)), schema=schema))
    part.rename(path)


def flowcli(*arguments: object) -> dict[str, float]:
    """Seconds and peak resident megabytes of a command."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "flowcli", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return {"seconds": time.monotonic() - began, "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--fit-time", default="3m")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    sizes = {"whole": options.rows, "hundredth": options.rows // 100}
    for name, rows in sizes.items():
        generate(work / f"{name}-{rows}.parquet", rows)
    small = pq.ParquetFile(work / f"hundredth-{sizes['hundredth']}.parquet").read_row_group(0).slice(0, 20_000)
    pq.write_table(small, work / "train.parquet")
    small_flow = ("-s", "flow.layers=2", "-s", "flow.hidden=[16]")
    flowcli(
        "fit", "maf-affine", work / "train.parquet", "-o", work / "run", "--force", "-s", "train.epochs=3", *small_flow
    )
    result: dict[str, Any] = {"machine": machine()}
    for name, rows in sizes.items():
        data, out = work / f"{name}-{rows}.parquet", work / f"{name}-scores.parquet"
        found = flowcli("score", work / "run", data, "-o", out, "--force")
        assert pq.read_metadata(out).num_rows == rows
        speed = rows / found["seconds"]
        print(f"score {rows:>12,} rows: {found['peak_mb']:7.0f} MB, {found['seconds']:7.1f} s, {speed:,.0f} rows/s")
        result[name] = {"rows": rows, **found, "rows_per_second": speed}
        fit = ("fit", "maf-affine", data, "-o", work / f"{name}-run", "--force", "--max-time", options.fit_time)
        found = flowcli(*fit, "-s", "train.stream=true", "-s", "train.epochs=1", *small_flow)
        about = json.loads((work / f"{name}-run" / "run.json").read_text())
        found |= {"steps": about["metrics"]["steps"], "training_seconds": about["seconds"]["training"]}
        print(
            f"fit   {rows:>12,} rows: {found['peak_mb']:7.0f} MB, {found['seconds']:7.1f} s, {found['steps']:,} steps"
        )
        result[name]["fit"] = found
    result["ratio"] = result["whole"]["peak_mb"] / result["hundredth"]["peak_mb"]
    result["fit_ratio"] = result["whole"]["fit"]["peak_mb"] / result["hundredth"]["fit"]["peak_mb"]
    for what, ratio in (("scoring", "ratio"), ("fitting", "fit_ratio")):
        print(f"peak memory of {what} the whole is {result[ratio]:.2f} times that of its hundredth")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
