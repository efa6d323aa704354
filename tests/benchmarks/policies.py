"""Policies and exploration: a cloned Pendulum, two experts mixed, and Mountain Car by a density of states.

    python -m tests.benchmarks.policies --data DIR [--seeds 5] [--only pendulum mixed car]

DIR holds ``rl/sb_expert_pendulum.npz``: 100 logged episodes of an expert. A flow and a Gaussian policy with the same
networks are cloned from four fifths of them and act from where the others began, for each fifth in turn, so that
returns are compared start by start; likewise, from new starts, for two mixed experts of ours. Mountain Car is explored
by random actions, by plans for random rewards and by plans for the density's bonus. Prints a table of each and writes
``results/policies.json``, in which parts that were not run stay as they were. ``--seeds`` are those of the latter two.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recipes.mountain_car import explore, surprise, whims
from recipes.pendulum import GAUSSIAN, HOLD, STATE, STEPS, acting, clone, compare, jittered, one_sided, play
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "policies.json"
FOLDS = 5
SMOOTH = ["train.noise=0.05"]  # few rows are of the way up
MOVING = 60  # steps of each; after them the pendulum rests, and half of all rows would be one and the same
EPISODES = 40  # of exploration
EXPLORERS = {"random actions": None, "plans for random rewards": whims, "plans for the bonus": surprise}
Floats = NDArray[np.float64]


class Logged(NamedTuple):
    """Rows ``(episodes, steps)``, where each episode began, and the expert's return in it."""

    rows: pd.DataFrame
    starts: Floats
    returns: Floats


def logged(data: Path) -> Logged:
    """The logs, with a little noise on the torque (:func:`jittered`: this expert has none)."""
    with np.load(data / "rl" / "sb_expert_pendulum.npz") as file:
        observations, torques = file["obs"].astype(np.float64), file["actions"][:, 0].astype(np.float64)
        begins, returns = np.flatnonzero(file["episode_starts"]), file["episode_returns"].astype(np.float64)
    rows = pd.DataFrame(observations, columns=STATE).assign(torque=jittered(torques, 0))
    cos, sin, speed = observations[begins].T
    return Logged(rows, np.stack([np.arctan2(sin, cos), speed], 1), returns)


def cloned(logs: Logged, fold: int) -> dict[str, Floats]:
    """Returns of the expert in a fifth of the episodes, and of its clones that have not seen them, from where they
    began."""
    held_out = np.arange(len(logs.starts)) % FOLDS == fold
    rows = (np.flatnonzero(~held_out)[:, None] * STEPS + np.arange(MOVING)).ravel()
    found, starts = {"expert": logs.returns[held_out]}, logs.starts[held_out]
    for name, settings in (("flow", []), ("gaussian", GAUSSIAN)):
        model = clone(logs.rows.iloc[rows], [*SMOOTH, *settings], fold)
        found[name] = play(acting(model), len(starts), fold, starts=starts)[0]
    return found


def figures(runs: list[dict[str, Floats]]) -> dict[str, Any]:
    """Each policy's mean return for each seed, their mean, and its paired difference from the expert's with its error.

    The difference's error is over all episodes of all seeds.
    """
    found: dict[str, Any] = {}
    for name in runs[0]:
        means = [float(run[name].mean()) for run in runs]
        differences = np.concatenate([run[name] - run["expert"] for run in runs])
        found[name] = {
            "seeds": means,
            "mean": float(np.mean(means)),
            "difference": float(differences.mean()),
            "difference error": float(differences.std(ddof=1) / len(differences) ** 0.5),
        }
    return found


def show(title: str, found: dict[str, Any]) -> None:
    print(title)
    for name, one in found.items():
        share = one["difference"] / abs(found["expert"]["mean"])
        seeds = " ".join(f"{mean:.1f}" for mean in one["seeds"])
        print(
            f"  {name:10} {one['mean']:7.1f}  {one['difference']:+.1f} ± {one['difference error']:.1f} "
            f"({share:+.1%})  seeds {seeds}",
            flush=True,
        )


def explored(seeds: int) -> dict[str, Any]:
    """Visited cells and goals of each explorer, for each seed."""
    found: dict[str, Any] = {}
    for name, bonus in EXPLORERS.items():
        began, runs = time.perf_counter(), [explore(bonus, EPISODES, seed) for seed in range(seeds)]
        cells = [counts[-1] for counts, _ in runs]
        found[name] = {
            "cells": cells,
            "mean": float(np.mean(cells)),
            "sd": float(np.std(cells, ddof=1)),
            "goals": [goals for _, goals in runs],
            "cells after each episode": [counts for counts, _ in runs],
            "seconds": time.perf_counter() - began,
        }
        one = found[name]
        print(f"  {name:26} {one['mean']:6.1f} ± {one['sd']:.1f} cells {cells}, goals {one['goals']}", flush=True)
    return found


def pendulum(data: Path, seeds: int) -> dict[str, Any]:
    logs = logged(data)
    found = figures([cloned(logs, fold) for fold in range(FOLDS)])
    show("Pendulum: mean return, difference from the expert's", found)
    return found


def mixed(data: Path, seeds: int) -> dict[str, Any]:
    found = figures([compare(one_sided(), 200, hold=HOLD, seed=seed) for seed in range(seeds)])
    show("Two experts mixed: mean return, difference from the experts'", found)
    return found


def car(data: Path, seeds: int) -> dict[str, Any]:
    print(f"Mountain Car: visited cells after {EPISODES} episodes")
    return explored(seeds)


PARTS = {"pendulum": pendulum, "mixed": mixed, "car": car}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    for part in options.only:
        found = PARTS[part](options.data, options.seeds)
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | {"machine": machine(), part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
