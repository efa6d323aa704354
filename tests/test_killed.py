"""Nothing is lost to SIGKILL: fits killed at random events end as the undisturbed one, byte for byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ENVIRONMENT, flowcli, succeed

from flowcli import tensorfile
from flowcli.errors import ModelFileError
from flowcli.training.run import Run
from flowcli.training.state import State


def kill(trials: int, *stream: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("kill.py")), str(trials), "0", *stream]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=3600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_event_a_fit_ends_as_if_nothing_had_been(trials: int) -> None:
    found = kill(trials)
    assert found["identical"] == trials
    assert found["resumed"] >= 0.8 * trials
    assert len(found["mutants"]) >= 8
    assert not any(found["mutants"].values()), "a state is whole without this, so the test sees nothing"


@pytest.mark.parametrize("trials", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_event_a_stream_goes_on_where_it_was(trials: int) -> None:
    found = kill(trials, "stream")
    assert found["identical"] == trials
    assert found["resumed"] >= 0.8 * trials
    assert found["mutants"] == {"place in an epoch": False}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i % 7},{i * i % 11}\n" for i in range(60)))
    succeed("fit", "quickstart", "t.csv", "-o", "run", "-s", "train.epochs=2", cwd=tmp_path)
    return tmp_path / "run"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resume(run: Path) -> subprocess.CompletedProcess[str]:
    return flowcli("fit", "quickstart", "t.csv", "-o", "run", "-s", "train.epochs=2", "--resume", cwd=run.parent)


def test_a_damaged_state_is_named_and_the_one_before_is_used(run: Path) -> None:
    newest = json.loads((run / "resume.json").read_text())[0]["file"]
    model = (run / "model.safetensors").read_bytes()
    damage(run / newest)
    done = resume(run)
    assert done.returncode == 0, done.stderr
    assert f"run/{newest}: missing or damaged; trying the state before it" in done.stderr
    assert (run / "model.safetensors").read_bytes() == model


def test_no_damage_to_what_resuming_needs_goes_unnoticed(run: Path) -> None:
    names = ("resume-a.safetensors", "resume-b.safetensors", "resume.json")
    whole = {name: (run / name).read_bytes() for name in names}
    newest = json.loads(whole["resume.json"])[0]["file"]
    fingerprint = tensorfile.read(run / newest)[1]["fingerprint"]
    said: list[str] = []
    refused: list[tuple[str, bool]] = []
    states = [State.of(*_parts(run / name)).tensors() for name in names[:2]]
    draw = random.Random(0)
    for trial in range(1000):
        name = names[trial % 3]
        content = bytearray(whole[name])
        if draw.random() < 0.5:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        (run / name).write_bytes(content)
        said.clear()
        try:
            state, _ = Run.going_on(run).read_state(fingerprint, said.append)
            tensors = state.tensors()
            if name == newest:
                assert said == [f"{run / name}: missing or damaged; trying the state before it"]
            # What is used is one of the two states, whole.
            assert any(all(torch.equal(tensors[key], of[key]) for key in of) for of in states)
        except ModelFileError as error:
            refused.append((name, "--force begins anew" in str(error)))
        (run / name).write_bytes(whole[name])
    assert set(refused) == {("resume.json", True)}


def _parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, about = tensorfile.read(path)
    return tensors, about["counters"]


@pytest.mark.parametrize("files", [["resume-a.safetensors", "resume-b.safetensors"], ["resume.json"]])
def test_with_no_state_left_a_fit_stops(run: Path, files: list[str]) -> None:
    model = (run / "model.safetensors").read_bytes()
    for file in files:
        damage(run / file) if file != "resume.json" else (run / file).write_text("[{")
    done = resume(run)
    assert done.returncode == 5
    assert "--force begins anew" in done.stderr
    assert (run / "model.safetensors").read_bytes() == model


def test_what_a_killed_process_left_is_swept(run: Path) -> None:
    left = run / ".model.safetensors.0a1b2c3d.part"
    left.write_bytes(b"half")
    (run / ".mine.part").write_bytes(b"not ours")
    assert resume(run).returncode == 0
    assert not left.exists()
    assert (run / ".mine.part").exists()


def test_a_run_that_is_replaced_is_there_until_the_end(run: Path) -> None:
    link, model = run.parent / "link", (run / "model.safetensors").read_bytes()
    link.symlink_to(run)
    fit = ("fit", "quickstart", "t.csv", "-o", "link", "--force", "-s", "train.epochs=2", "-s", "train.seed=1")
    failed = flowcli(*fit, "-s", "train.device=cuda", cwd=run.parent)
    assert failed.returncode == 2
    assert (run / "model.safetensors").read_bytes() == model
    succeed(*fit, cwd=run.parent)
    assert link.is_symlink()
    assert (run / "model.safetensors").read_bytes() != model
    assert sorted(p.name for p in run.parent.iterdir()) == ["link", "run", "t.csv"]
