"""`train.compile`: what is compiled, and that the fit is the same but for rounding."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command import ENVIRONMENT

import flowcli
from flowcli.flows.registry import build
from flowcli.recipe import from_dict
from flowcli.training import loop
from flowcli.training.compiled import compiled
from flowcli.training.loop import Interrupted
from flowcli.training.prepare import prepare
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.vector import as_vector, with_gradient

TRAIN = {"epochs": 4, "patience": 4}
RECIPE = {"flow": {"type": "maf", "transform": "spline", "layers": 2, "hidden": [16]}, "train": TRAIN}
STEPS = 11  # of an epoch: of 800 rows 80 are held out, and batches are of 64
COMPILED = RECIPE | {"train": TRAIN | {"compile": True}}


@pytest.fixture
def frame() -> pd.DataFrame:
    """Real, counted and named columns, and a given one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(800)
    site = np.where(x > 0, "north", rng.choice(["south", "west"], 800))
    return pd.DataFrame({"x": x, "y": x**2 + 0.3 * rng.standard_normal(800), "k": rng.poisson(2, 800), "site": site})


class Ear(Progress):
    """Remembers what it was told, and whether two epochs are over."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.reached = False

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.reached |= evaluation.epoch == 2

    def seen(self) -> bool:
        return self.reached


def off_by_a_tenth(loss: Callable[..., Any], **_: object) -> Callable[..., Any]:
    """A compiler that takes gradients wrongly."""

    def call(*batch: torch.Tensor | None) -> Any:
        value, gradient = loss(*batch)
        return value, 1.1 * gradient

    return call


def test_steps_alone_are_compiled(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = flowcli.fit(RECIPE, frame, run=tmp_path / "plain")
    shapes = []

    def wrapped(loss: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def call(vector: torch.Tensor, y: torch.Tensor, context: torch.Tensor | None) -> Any:
            shapes.append(y.shape)
            return loss(vector, y, context)

        return call

    monkeypatch.setattr(torch, "compile", wrapped)
    compiled = flowcli.fit(COMPILED, frame, run=tmp_path / "compiled")
    assert len(shapes) == compiled.about["steps"] + 1  # and one to try it
    assert len(set(shapes)) == 1
    assert compiled.about == plain.about
    for name, tensor in plain.flow.state_dict().items():
        assert torch.equal(tensor, compiled.flow.state_dict()[name])


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, "two epochs of four"),
        ({"epochs": 3}, "none"),  # of too few to be worth it
        ({"compile": False}, "none"),
        ({"max_time": "30s"}, "none"),  # compiling would take all that is left
    ],
)
def test_auto_compiles_once_a_long_fit_has_taken_its_steps(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, train: dict[str, object], expected: str
) -> None:
    called = []

    def wrapped(loss: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def call(vector: torch.Tensor, y: torch.Tensor, context: torch.Tensor | None) -> Any:
            called.append(len(y))
            return loss(vector, y, context)

        return call

    monkeypatch.setattr(torch, "compile", wrapped)
    monkeypatch.setattr(loop, "COMPILED_FROM", 2 * STEPS - 4)  # within the second epoch
    fitted = flowcli.fit(RECIPE | {"train": TRAIN | train}, frame)
    if expected == "none":
        assert not called
    else:
        assert fitted.about["steps"] == 4 * STEPS
        assert len(called) == 2 * STEPS + 1


@pytest.mark.parametrize(("taken", "worth_it"), [(100, True), (200, False)])
def test_auto_compiles_where_as_much_time_is_left_as_was_taken(
    frame: pd.DataFrame, taken: float, worth_it: bool
) -> None:
    prepared = prepare(from_dict(RECIPE | {"train": {"epochs": 4000, "max_time": "5m"}}), frame)
    trainer = loop.Trainer(
        prepared.flow, prepared.codec, prepared.baseline, prepared.rows, prepared.held_out, prepared.recipe.train,
        Progress(),
    )  # fmt: skip
    trainer.counters.step, trainer.counters.seconds = loop.COMPILED_FROM, taken
    assert trainer._worth_compiling() == worth_it


def test_auto_says_nothing_of_what_it_cannot_compile(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ear = flowcli.fit(RECIPE, frame), Ear()
    monkeypatch.setattr(loop, "COMPILED_FROM", STEPS)
    monkeypatch.setattr(torch, "compile", off_by_a_tenth)
    assert flowcli.fit(RECIPE, frame, progress=ear).about == plain.about
    assert ear.said == []


def test_a_wrong_gradient_is_not_used(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ear = flowcli.fit(RECIPE, frame), Ear()
    monkeypatch.setattr(torch, "compile", off_by_a_tenth)
    assert flowcli.fit(COMPILED, frame, progress=ear).about == plain.about
    assert ear.said == ["train.compile: the steps are taken uncompiled: the gradient of torch.compile is off by 10.0%."]


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_a_splines_loss_and_gradient_can_be_compiled() -> None:
    torch.manual_seed(0)
    options = {"layers": 1, "hidden": [8], "transform": "spline", "bins": 3}
    flow = build("maf", 2, base="gaussian", components=1, whiten=False, order="reverse", direction="maf", **options)
    vector, x = as_vector(flow), torch.randn(64, 2)
    torch.nn.init.normal_(vector, std=0.3)
    found = compiled(flow, vector, x, None)(x, None)[1]
    own = with_gradient(flow, vector)
    (-flow(x).mean()).backward()
    assert torch.allclose(found, own, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_a_fit_says_so_and_goes_on(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "t.parquet")
    nowhere = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "flowcli", "fit", "maf-affine", "t.parquet", "-o", "run", "-s", "train.compile=true",
         "-s", "train.epochs=2", "-s", "flow.layers=1"],
        cwd=tmp_path, env=ENVIRONMENT | nowhere, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, compiling, warning, *epochs, _, following = done.stderr.splitlines()
    assert following.startswith("Next: ")
    assert head.startswith("720 rows")
    assert compiling.startswith("compiling the steps")
    assert warning.startswith("warning: train.compile: the steps are taken uncompiled: ")
    assert "No working C++ compiler" in warning
    assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]


@pytest.mark.slow  # compiling takes half a minute
@pytest.mark.parametrize("transform", ["affine", "spline"])
def test_a_compiled_fit_is_the_same_but_for_rounding(frame: pd.DataFrame, tmp_path: Path, transform: str) -> None:
    change = {"flow": RECIPE["flow"] | {"transform": transform}, "data": {"given": ["site"]}}
    plain, ear = flowcli.fit(RECIPE | change, frame), Ear()
    compiled = flowcli.fit(COMPILED | change, frame, run=tmp_path / "whole", progress=ear)
    assert compiled.about["steps"] == plain.about["steps"]
    assert compiled.about["held_out_log_prob"] == pytest.approx(plain.about["held_out_log_prob"], abs=1e-3)
    assert ear.said == []
    # And it can be stopped and gone on with, to the same bytes.
    ear = Ear()
    with pytest.raises(Interrupted):
        flowcli.fit(COMPILED | change, frame, run=tmp_path / "run", progress=ear, stopped=ear.seen)
    flowcli.fit(COMPILED | change, frame, run=tmp_path / "run", resume=True)
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert files[0] == files[1]
