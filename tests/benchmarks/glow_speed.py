"""A Glow's training step and its sampling, timed against normflows' multi-scale Glow of the same depth and width.

    python -m tests.benchmarks.glow_speed [--rounds 15] [--threads 2]

Both have the same scales, steps, hidden channels and batch, a sigmoid-free start (the last convolutions at zero) and
Adam; ours also has its learned split priors, gradient clipping and the moving average of the weights, as ``fit`` takes
them. Rounds alternate between the two, and medians and their ratio are given. Prints the table and writes
``results/glow_speed.json``. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import normflows
import torch

from flowcli.flows.registry import build
from flowcli.training.state import Average
from flowcli.training.vector import as_vector, with_gradient
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "glow_speed.json"


class Case(NamedTuple):
    name: str
    shape: tuple[int, int, int]
    levels: int
    layers: int
    width: int
    batch: int


CASES = (
    Case("digits", (1, 8, 8), 2, 6, 64, 64),
    Case("MNIST", (1, 28, 28), 2, 8, 64, 64),
    Case("CIFAR-10", (3, 32, 32), 3, 8, 64, 32),
    Case("CIFAR-10, wide", (3, 32, 32), 3, 4, 256, 32),
)


def ours(case: Case) -> tuple[Callable[[], Any], Callable[[], Any]]:
    features = case.shape[0] * case.shape[1] * case.shape[2]
    flow = build(
        "glow", features, 0, case.shape, base="gaussian", components=1, whiten=False, layers=case.layers,
        hidden=[case.width, case.width], transform="affine", bins=8, levels=case.levels,
    )  # fmt: skip
    x = torch.randn(case.batch, features)
    flow.float()
    flow.start(x)
    vector = as_vector(flow)
    gradient = with_gradient(flow, vector)
    optimizer = torch.optim.AdamW([vector], lr=1e-4, fused=True)
    average = Average(flow, vector, 0.999)

    def step() -> None:
        loss = -flow(x).mean()
        gradient.zero_()
        loss.backward()
        norm = float(gradient.norm())
        if norm > 5.0:
            gradient.mul_(5.0 / norm)
        optimizer.step()
        average.update()

    return step, torch.no_grad()(lambda: flow.sample(case.batch))


def theirs(case: Case) -> tuple[Callable[[], Any], Callable[[], Any]]:
    channels, height, width = case.shape
    bases, flows, merges = [], [], []
    for i in range(case.levels):  # from the coarsest
        deep = channels * 2 ** (case.levels + 1 - i)
        blocks = [normflows.flows.GlowBlock(deep, case.width, scale_map="exp") for _ in range(case.layers)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        if i:
            merges.append(normflows.flows.Merge())
        size = (height // 2 ** (case.levels - i), width // 2 ** (case.levels - i))
        bases.append(normflows.distributions.DiagGaussian((deep // (2 if i else 1), *size)))
    flow = normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)
    x = torch.randn(case.batch, *case.shape)
    flow.log_prob(x, None)  # which sets its ActNorms
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = -flow.log_prob(x, None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, torch.no_grad()(lambda: flow.sample(case.batch))


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(case: Case, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    pairs = list(zip(("training step", "sampling"), ours(case), theirs(case), strict=True))
    out: dict[str, Any] = case._asdict()
    for name, our, their in pairs:
        our(), their()
        times = [(seconds(our), seconds(their)) for _ in range(rounds)]
        a, b = (statistics.median(t) for t in zip(*times, strict=True))
        ratio = statistics.median(their / our for our, their in times)
        out[name] = {"flowcli_ms": 1e3 * a, "normflows_ms": 1e3 * b, "ratio": ratio}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    print(
        f"{'':<16}{'levels':>7}{'steps':>6}{'width':>6}{'batch':>6}   {'':<14}{'flowcli':>10}{'normflows':>11}  ratio"
    )
    for case in CASES:
        r = measure(case, options.rounds)
        results.append(r)
        for what in ("training step", "sampling"):
            print(
                f"{case.name:<16}{case.levels:>7}{case.layers:>6}{case.width:>6}{case.batch:>6}   {what:<14}"
                f"{r[what]['flowcli_ms']:>7.1f} ms{r[what]['normflows_ms']:>8.1f} ms{r[what]['ratio']:>7.2f}"
            )
    about = machine() | {"threads": options.threads, "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"machine": about, "rounds": options.rounds, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
