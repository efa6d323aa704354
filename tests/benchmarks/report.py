"""How long ``report`` takes and how large its page is: breast cancer, and a million rows of ten columns of every kind.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.report --work DIR

Fits by the command line and writes a page of each run. Prints the table and writes ``results/report.json``. Needs the
``report`` extra.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "report.json"
BREAST_CANCER = Path(__file__).parents[2] / "sample_data" / "breast_cancer.csv"


def table(n: int) -> pd.DataFrame:
    """Numbers, a tail, times, levels, counts, a flag, a spike and gaps, most of them dependent."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal(n)
    return pd.DataFrame(
        {
            "amount": np.exp(2 + a),
            "cost": 3 * a + rng.standard_normal(n) ** 2,
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 500_000, n), unit="min"),
            "site": np.where(a + rng.standard_normal(n) > 0.7, "north", rng.choice(["south", "west"], n)),
            "count": rng.poisson(np.exp(1 + 0.3 * a)),
            "flag": rng.random(n) < 0.3,
            "many": (1000 * np.abs(rng.standard_normal(n) + a)).astype(int),
            "zero": np.where(rng.random(n) < 0.4, 0, rng.standard_normal(n)),
            "hole": np.where(rng.random(n) < 0.1, np.nan, a + rng.standard_normal(n)),
            "ring": np.cos(3 * a) + 0.1 * rng.standard_normal(n),
        }
    )


def flowcli(*arguments: object) -> tuple[float, float]:
    """Run it; wall-clock and processor seconds."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "flowcli", *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    table(1_000_000).to_parquet(work / "million.parquet", index=False)
    holes, large = "data.columns={hole: {missing: indicator}}", ("-s", "train.epochs=1", "-s", "train.batch_size=4096")
    fits = {
        "breast cancer": ("quickstart", BREAST_CANCER, "-s", "data.exclude=[diagnosis]"),
        "a million rows": ("maf-affine", work / "million.parquet", "-s", holes, *large),
    }
    found = {}
    for name, fit in fits.items():
        run, page = work / name.replace(" ", "-"), work / f"{name.replace(' ', '-')}.html"
        flowcli("fit", *fit, "-o", run, "--force", "--quiet")
        seconds, used = flowcli("report", run, "-o", page, "--force", "--quiet")
        found[name] = {"seconds": seconds, "processor_seconds": used, "bytes": page.stat().st_size}
        print(f"{name:<15} {seconds:6.1f} s, {used:.1f} s of the processor, {page.stat().st_size / 1e6:.2f} MB")
    RESULTS.write_text(json.dumps({"machine": machine(), "reports": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
