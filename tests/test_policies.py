"""Policies and exploration: the examples of recipes/policies.md, small; in full they are slow, or benchmarks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import ENVIRONMENT

from recipes.mountain_car import explore, surprise
from recipes.pendulum import GAUSSIAN, HOLD, acting, clone, compare, one_sided, play, scripted
from recipes.planner import Grid, Planner

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "recipes" / "policies.md"
QUICK = ["flow.layers=1", "train.epochs=40", "train.batch_size=128", "train.ema=0.99"]


def test_a_clone_does_as_its_expert() -> None:
    logs = play(scripted, 40, seed=1)[1]
    model = clone(logs, QUICK)
    expert, _ = play(scripted, 50, seed=9)
    cloned, acted = play(acting(model), 50, seed=9)
    assert abs(cloned.mean() - expert.mean()) < 0.05 * abs(expert.mean())
    assert acted["torque"].abs().max() < 2


def test_where_two_experts_differ_a_flow_is_ahead_of_a_gaussian() -> None:
    ahead = np.zeros(200)
    for seed in range(4):  # a fit's rounding alone moves its returns by a standard error
        found = compare(one_sided(), 70, episodes=200, hold=HOLD, settings=[*QUICK, f"train.seed={seed}"])
        ahead += (found["flow"] - found["gaussian"]) / 4
    assert ahead.mean() > 3 * ahead.std(ddof=1) / len(ahead) ** 0.5


def test_an_affine_policy_is_a_gaussian() -> None:
    """In the logit of its torque: the quantiles of its draws lie as a Gaussian's do, and a flow's need not."""
    logs = play(scripted, 5, seed=1)[1]
    state = {"cos": -1.0, "sin": 0.0, "speed": 0.0}
    drawn = clone(logs, [*GAUSSIAN, "train.epochs=2"]).sample(20_000, given=state)["torque"].to_numpy()
    low, middle, high = np.quantile(np.log((2 + drawn) / (2 - drawn)), [0.02275, 0.5, 0.97725])
    inner = np.diff(np.quantile(np.log((2 + drawn) / (2 - drawn)), [0.15866, 0.84134]))[0]
    assert high - middle == pytest.approx(middle - low, rel=0.05)
    assert high - low == pytest.approx(2 * inner, rel=0.05)


def test_the_bonus_covers_more_than_random_actions() -> None:
    by_chance, _ = explore(None, 15, seed=0)
    by_bonus, _ = explore(surprise, 15, seed=0)
    assert by_bonus[:5] == by_chance[:5]  # nothing is learned yet
    assert by_bonus[-1] > 2 * by_chance[-1]


def test_a_grid_interpolates_what_is_linear_and_wraps_an_angle() -> None:
    grid = Grid((-1.0, 0.0), (1.0, 3.0), (5, 4))
    states = np.random.default_rng(0).uniform((-1, 0), (1, 3), (50, 2))
    assert grid.between(grid.points @ [2.0, -1.0], states) == pytest.approx(states @ [2.0, -1.0])
    circle = Grid((-np.pi, 0.0), (np.pi, 1.0), (9, 2), wraps=True)
    values = np.cos(circle.points[:, 0])
    turned = states + np.array([2 * np.pi, 0])
    assert circle.between(values, turned) == pytest.approx(circle.between(values, states))


def test_a_plan_goes_to_what_is_rewarded() -> None:
    """On a line, one step a move: from k steps away the value is γᵏ⁻¹/(1 − γ)."""
    line = Grid((0.0, 0.0), (4.0, 1.0), (5, 2))
    planner = Planner(line, [-1, 1], lambda s, a: (np.array([np.clip(s[0] + a, 0, 4), s[1]]), False), discount=0.5)
    q = planner.plan((planner.next[..., 0] == 4).astype(float))
    assert q.max(1)[::2] == pytest.approx([0.25, 0.5, 1.0, 2.0, 2.0])
    assert planner.best(q, np.array([[0.0, 0.5], [2.5, 1.0]])).tolist() == [1, 1]


def test_the_pages_commands(tmp_path: Path) -> None:
    play(scripted, 5, seed=1)[1].to_parquet(tmp_path / "logs.parquet", index=False)
    (commands,) = re.findall(r"```sh\n(flowcli .*?)```", PAGE.read_text(), flags=re.DOTALL)
    commands = re.sub(r"(flowcli fit \S+)", r"\1 -s train.epochs=2", commands)
    script = f'set -euo pipefail\nflowcli() {{ "{sys.executable}" -m flowcli "$@"; }}\n{commands}'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=300)
    assert {"torques.csv", "bonus.parquet"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pendulum.py", "pendulum.py --mixed", "mountain_car.py"])
def test_the_examples_in_full(script: str) -> None:
    words = [sys.executable, *f"{ROOT}/recipes/{script}".split()]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=600)
    print(done.stdout)
    assert len(done.stdout.splitlines()) == (2 if script == "mountain_car.py" else 3)
