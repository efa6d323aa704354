"""The shipped digits: how long ``glow-digits`` learns, how good it is, and whether its digits are read as digits.

    python -m tests.benchmarks.digits --work DIR

Fits by the command line, draws 100 pictures of each class, and lets scikit-learn's support vector classifier, fitted to
the real digits, say what they show. Prints the table, writes ``results/digits.json`` and, under ``--work``,
``sheet.png``. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "digits.json"
DIGITS = Path(__file__).parents[2] / "sample_data" / "digits.zip"


def flowcli(*arguments: object) -> str:
    command = [sys.executable, "-m", "flowcli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    run, given, drawn = work / "glow-digits", work / "labels.csv", work / "drawn.parquet"
    given.write_text("label\n" + "".join(f"{digit}\n" for digit in range(10)))
    began = time.monotonic()
    flowcli("fit", "glow-digits", DIGITS, "-o", run, "--force")
    seconds = time.monotonic() - began
    flowcli("sample", run, "-n", 10, "--given", given, "-o", work / "sheet.png", "--force")
    flowcli("sample", run, "-n", 100, "--given", given, "-o", drawn, "--force")

    real, digit = load_digits(return_X_y=True)
    classifier = SVC().fit(np.minimum(16 * real, 255), digit)
    table = pq.read_table(drawn)
    images = [np.asarray(Image.open(io.BytesIO(content))) for content in table.column("image").to_pylist()]
    labels = np.array(table.column("label").to_pylist(), int)
    right = classifier.predict(np.stack(images).reshape(len(images), -1)) == labels
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    bits = {
        name: -metrics[f"held_out_{key}"] / (64 * math.log(2))
        for name, key in (("glow", "log_prob"), ("gaussian", "gaussian_log_prob"))
    }
    by_class = {str(d): float(right[labels == d].mean()) for d in range(10)}
    print(f"fit: {seconds:.0f} s, {metrics['epochs']} epochs, {metrics['parameters']:,} parameters")
    print(f"held out: {bits['glow']:.3f} bits a pixel; a full-covariance Gaussian has {bits['gaussian']:.3f}")
    print(f"drawn digits read as their class: {right.mean():.1%} (" + ", ".join(
        f"{d}: {share:.0%}" for d, share in by_class.items()) + ")")  # fmt: skip
    result = {
        "machine": machine(),
        "fit_seconds": seconds,
        "held_out_bits_per_dim": bits,
        "read_as_their_class": float(right.mean()),
        "by_class": by_class,
        "metrics": metrics,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
