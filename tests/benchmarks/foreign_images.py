"""Foreign images found by a Glow: Fashion-MNIST against MNIST and others, every scoring method in one table.

    python -m tests.benchmarks.foreign_images --data DIR --work DIR [--max-time 25m] [--from mnist] [-s key=value ...]

DIR of ``--data`` holds ``fashion_mnist.npz`` and ``mnist.npz``. The shipped recipe is fitted by the command line to the
training images of one of them, given so long and with the recipe's options as ``-s`` says; a run that is there and
finished is not fitted again. Its test images are then told from those of the other, and from its own test images
turned upside down, inverted, shuffled and blurred, and from noise and plain pictures. Prints AUROC (1 is perfect, 0.5
is guessing), and writes ``results/foreign_images_FROM.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import flowcli
from flowcli.model import Model
from flowcli.recipe import MethodName
from flowcli.scoring import method as methods
from flowcli.scoring.evaluate import ranking
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"
METHODS: tuple[MethodName, ...] = ("nll", "typicality", "complexity", "auto")
Images = NDArray[np.uint8]


def fitted(work: Path, images: Path, options: list[str], max_time: str) -> Path:
    """The run folder of the recipe on a data set's training images."""
    run = work / f"{images.stem}-{max_time}"
    if not (run / "run.json").exists():
        command = ["fit", "glow-fashion", f"{images}/x_train", "-o", str(run), "--max-time", max_time, "--force"]
        settings = [part for option in options for part in ("-s", option)]
        subprocess.run([sys.executable, "-m", "flowcli", *command, *settings], check=True)
    return run


def foreign(own: Images, other: Images) -> dict[str, Images]:
    """Pictures that are not of the model's kind, ``(n, 28, 28)``."""
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(own.reshape(len(own), -1), axis=1).reshape(own.shape)
    padded = np.pad(own.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    blurred = sum(padded[:, i : i + 28, j : j + 28] for i in range(3) for j in range(3)) / 9
    return {
        "the other's test images": other,
        "own, upside down": own[:, ::-1],
        "own, inverted": 255 - own,
        "own, blurred": blurred.round().astype(np.uint8),
        "own, pixels shuffled": shuffled,
        "noise": rng.integers(0, 256, own.shape, dtype=np.uint8),
        "plain": np.broadcast_to(rng.integers(0, 256, (len(own), 1, 1), dtype=np.uint8), own.shape),
    }


def parts(model: Model, images: Images) -> NDArray[np.float64]:
    """What the scores of images are made of, in batches."""
    out = []
    for i in range(0, len(images), 500):
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images[i : i + 500]))
        out.append(methods.ingredients(model, model.codec.read(pa.table({"image": tensor}))))
    return np.concatenate(out, 1)


def auroc(normal: NDArray[np.float64], odd: NDArray[np.float64]) -> float:
    labels = np.concatenate([np.zeros(len(normal), bool), np.ones(len(odd), bool)])
    return ranking(np.concatenate([normal, odd]), labels)[0]


def test_images(file: Path) -> Images:
    with np.load(file) as arrays:
        images: Images = arrays["x_test"]
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max-time", default="25m")
    parser.add_argument("--from", dest="own", choices=("fashion_mnist", "mnist"), default="fashion_mnist")
    parser.add_argument("-s", dest="options", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    other = "mnist" if options.own == "fashion_mnist" else "fashion_mnist"
    run = fitted(options.work, options.data / f"{options.own}.npz", options.options, options.max_time)
    model = flowcli.load(run)
    own, others = (test_images(options.data / f"{name}.npz") for name in (options.own, other))
    normal = parts(model, own)
    table: dict[str, dict[str, float]] = {}
    for name, images in foreign(own, others).items():
        odd = parts(model, images)
        table[name] = {m: auroc(*(methods.score(p, model, m) for p in (normal, odd))) for m in METHODS}
    print(
        f"AUROC, a Glow of {options.own}{'':<20}" + "".join(f"{m:>12}" for m in METHODS).replace("   auto", "default")
    )
    for name, row in table.items():
        print(f"{name:<44}" + "".join(f"{row[m]:>12.4f}" for m in METHODS))
    manifest = json.loads((run / "run.json").read_text())
    bits = float(-normal[0].mean() / np.log(2) / model.codec.features)
    print(f"{bits:.3f} bits a pixel on its own test images; {manifest['seconds']['training']:.0f} s of training")
    result: dict[str, Any] = {
        "machine": machine() | {"threads": manifest["threads"]},
        "options": options.options,
        "training_seconds": manifest["seconds"]["training"],
        "steps": manifest["metrics"]["steps"],
        "parameters": manifest["metrics"]["parameters"],
        "test_bits_per_dim": bits,
        "auroc": table,
    }
    (RESULTS / f"foreign_images_{options.own}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
