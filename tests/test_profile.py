"""`fit --profile`: every second of a fit belongs to a phase, and to the right one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import flowcli, succeed

from flowcli.recipe import from_dict
from flowcli.training.clock import Profile
from flowcli.training.fit import train
from flowcli.training.prepare import prepare

SMALL = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}, "train": {"epochs": 4, "patience": 4}}
COMPILED = ["compiling", "forward and backward"]  # phases of fits that compile their steps
OPTIONS = ("-s", "train.epochs=4", "-s", "flow.layers=2", "-s", "flow.hidden=[16]")


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(600)
    return pd.DataFrame({"x": x, "y": x**2 + 0.3 * rng.standard_normal(600), "k": rng.poisson(2, 600)})


def test_the_phases_are_all_of_the_fit(frame: pd.DataFrame) -> None:
    began = time.perf_counter()
    profile = Profile(began)
    prepared = prepare(from_dict(SMALL), frame, clock=profile)
    train(prepared, profile=profile)
    taken = time.perf_counter() - began
    assert profile.total == pytest.approx(taken, abs=0.2)
    assert profile.total < taken
    # Everything with a name was done, and what has none is little; nothing was compiled and nothing saved.
    assert {phase for phase, seconds in profile.seconds.items() if seconds < 1e-4} <= {*COMPILED, "saving"}
    assert profile.seconds["other"] < 0.2 * taken


def test_time_is_that_of_the_phase_that_took_it(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(from_dict(SMALL), frame)
    honest = prepared.flow.forward

    def slow(x, context=None):
        time.sleep(0.02)
        return honest(x, context)

    monkeypatch.setattr(prepared.flow, "forward", slow)
    profile = Profile(time.perf_counter())
    state = train(prepared, profile=profile).about
    assert state["steps"] >= 16
    assert profile.seconds["forward"] > 0.02 * state["steps"]
    assert profile.seconds["evaluation"] > 0.02 * (state["epochs"] + 1)
    assert max(profile.seconds[phase] for phase in ("data", "backward", "optimizer")) < 0.02 * state["steps"]


def test_the_file_the_table_and_the_same_model(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "t.parquet")
    succeed("--version")  # by then commands start at once
    began = time.monotonic()
    done = flowcli("fit", "maf-affine", "t.parquet", "-o", "a", "--profile", *OPTIONS, cwd=tmp_path)
    taken = time.monotonic() - began
    assert done.returncode == 0
    found = json.loads((tmp_path / "a" / "profile.json").read_text())
    phases = found["phases"]
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases.values()), abs=1e-4)
    assert sum(phase["share"] for phase in phases.values()) == pytest.approx(1, abs=1e-4)
    assert found["seconds"] < taken < found["seconds"] + 2
    assert [phase for phase in phases if not phases[phase]["seconds"]] == COMPILED
    for phase, figures in [item for item in phases.items() if item[0] not in COMPILED]:
        assert any(line.split()[:2] == [phase, f"{figures['seconds']:.2f}"] for line in done.stderr.splitlines()), phase

    plain = flowcli("fit", "maf-affine", "t.parquet", "-o", "b", *OPTIONS, cwd=tmp_path)
    assert "backward" not in plain.stderr
    assert not (tmp_path / "b" / "profile.json").exists()
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in "ab"]
    assert models[0] == models[1]

    # A run that is replaced leaves nothing behind.
    succeed("fit", "maf-affine", "t.parquet", "-o", "a", "--force", *OPTIONS, cwd=tmp_path)
    assert not (tmp_path / "a" / "profile.json").exists()
