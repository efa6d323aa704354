"""The loop: what it does when numbers stop being numbers, and that resuming changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import flowcli
from flowcli.errors import TrainingError, UsageError
from flowcli.recipe import Train, from_dict
from flowcli.training.group import Group
from flowcli.training.loop import Interrupted, Trainer, batch_size
from flowcli.training.prepare import prepare
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.state import State

SMALL = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}, "train": {"epochs": 6, "patience": 6}}


class Ear(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard: list[Evaluation] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.heard.append(evaluation)


def trainer(frame: pd.DataFrame, recipe: dict = SMALL, ear: Progress | None = None) -> Trainer:
    prepared = prepare(from_dict(recipe), frame)
    return Trainer(
        prepared.flow, prepared.codec, prepared.baseline, prepared.rows, prepared.held_out, prepared.recipe.train,
        ear or Progress(),
    )  # fmt: skip


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(600)
    return pd.DataFrame({"x": x, "y": x**2 + 0.3 * rng.standard_normal(600), "k": rng.poisson(2, 600)})


def poison(fit: Trainer, bad: set[int]) -> None:
    """Make the loss of the numbered training steps infinite."""
    count = iter(range(10_000))
    honest = fit.flow.forward

    def forward(x, context=None):
        out = honest(x, context)
        return out * math.inf if fit.flow.training and next(count) in bad else out

    fit.flow.forward = forward


def test_training_beats_its_start_and_keeps_the_best(frame: pd.DataFrame) -> None:
    ear = Ear()
    fit = trainer(frame, SMALL | {"train": {"epochs": 20}}, ear)
    state = fit.run()
    assert state.counters.finished
    curve = [e.held_out_log_prob for e in ear.heard]
    assert state.counters.best == max(curve)
    assert state.counters.best_epoch == curve.index(max(curve)) + 1
    with torch.no_grad():
        again = fit.flow.log_prob(fit.held_out.y).double().mean().item() + fit.held_out.log_det
    assert again == pytest.approx(max(curve), abs=1e-5)


def test_single_bad_steps_are_skipped_and_counted(frame: pd.DataFrame) -> None:
    ear = Ear()
    fit = trainer(frame, ear=ear)
    poison(fit, {2, 5, 6, 20})
    state = fit.run()
    assert state.counters.skipped == 4
    assert state.counters.retreats == 0
    assert all(torch.isfinite(t).all() for t in state.weights.values())
    assert ear.said == []


def test_four_bad_steps_in_a_row_step_back_with_half_the_rate(frame: pd.DataFrame) -> None:
    ear = Ear()
    fit = trainer(frame, ear=ear)
    poison(fit, {10, 11, 12, 13})
    state = fit.run()
    assert state.counters.retreats == 1
    assert state.counters.rate == 0.5
    assert state.counters.epoch == 6
    assert len(ear.said) == 1
    assert "back to the end of epoch 1" in ear.said[0]


def test_giving_up_keeps_the_best_model(frame: pd.DataFrame) -> None:
    fit = trainer(frame)
    poison(fit, set(range(12, 10_000)))
    before: list[State] = []
    with pytest.raises(TrainingError, match="gave up at epoch 2"):
        fit.run(on_state=lambda state, evaluation: before.append(state))
    for name, tensor in fit.flow.state_dict().items():
        assert torch.equal(tensor, before[-1].best[name])


def test_a_failed_fit_leaves_a_loadable_run_and_exit_code_four(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "mean", lambda self, loss, *_: (loss * math.nan, False))
    with pytest.raises(TrainingError) as error:
        flowcli.fit(SMALL, frame, run=tmp_path / "run")
    assert error.value.exit_code == 4
    assert np.isfinite(flowcli.load(tmp_path / "run").log_prob(frame)).all()


@pytest.mark.parametrize("stop_after", [3, 17, 40])
def test_interrupting_anywhere_and_resuming_changes_nothing(frame: pd.DataFrame, stop_after: int) -> None:
    resumes_to_the_same(frame, SMALL, stop_after)


def test_values_drawn_for_missing_ones_are_the_same_after_a_pause(frame: pd.DataFrame) -> None:
    holes = frame.mask(pd.DataFrame(np.random.default_rng(1).random(frame.shape) < 0.2, columns=list(frame)))
    columns = {name: {"missing": "marginalise"} for name in frame}
    resumes_to_the_same(holes, SMALL | {"data": {"columns": columns}}, 25)


def resumes_to_the_same(frame: pd.DataFrame, recipe: dict, stop_after: int) -> None:
    whole = trainer(frame, recipe).run()
    fit, asked = trainer(frame, recipe), iter(range(10_000))
    with pytest.raises(Interrupted):
        fit.run(stopped=lambda: next(asked) >= stop_after)
    stored = fit.state
    assert stored is not None
    again = trainer(frame, recipe).run(start=State.of(stored.tensors(), vars(stored.counters)))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_bad_steps_in_a_row_are_counted_across_short_epochs(frame: pd.DataFrame) -> None:
    fit = trainer(frame, SMALL | {"train": {"epochs": 6, "patience": 6, "batch_size": 270}})
    assert fit.steps == 2
    poison(fit, {2, 3, 4, 5})
    assert fit.run().counters.retreats == 1


def test_one_row_far_out_does_not_decide_the_start(frame: pd.DataFrame) -> None:
    far = frame.assign(x=frame["x"].where(np.arange(600) != np.flatnonzero(frame["x"] < 0)[3], 1e9))
    train = {"train": {"epochs": 8, "seed": 3}}
    plain, robust = flowcli.fit(SMALL | train, frame), flowcli.fit(SMALL | train, far)
    usual = frame.loc[frame["x"] > 0]
    assert robust.log_prob(usual).mean() == pytest.approx(plain.log_prob(usual).mean(), abs=0.3)


def test_a_held_out_row_without_density_does_not_stop_a_fit(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.iloc[500:].assign(x=[1e300, *frame["x"].iloc[501:]]).to_csv(tmp_path / "v.csv", index=False)
    recipe = SMALL | {"data": {"validation": str(tmp_path / "v.csv")}}
    model = flowcli.fit(recipe, frame.iloc[:500], run=tmp_path / "run")
    assert model.about["best_epoch"] > 0
    assert math.isfinite(model.about["held_out_log_prob"])
    again = flowcli.fit(recipe, frame.iloc[:500], run=tmp_path / "run", resume=True)
    assert again.about == model.about


class Stop(Progress):
    """Asks for a stop after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.reached = epoch, False

    def evaluated(self, evaluation: Evaluation) -> None:
        self.reached |= evaluation.epoch >= self.epoch

    def seen(self) -> bool:
        return self.reached


def test_a_stopped_fit_leaves_the_model_that_its_best_epoch_is(frame: pd.DataFrame, tmp_path: Path) -> None:
    stop = Stop(3)
    with pytest.raises(Interrupted):
        flowcli.fit(SMALL, frame, run=tmp_path / "a", progress=stop, stopped=stop.seen)
    left = flowcli.load(tmp_path / "a")
    flowcli.fit(SMALL | {"train": {"epochs": 3, "patience": 6}}, frame, run=tmp_path / "b")
    assert left.about["epochs"] == 3
    held = left.calibration.shape[1]
    assert held == 60
    # Calibrated with the density that `score` computes: the held-out rows' p-values are the ranks among themselves.
    prepared = prepare(from_dict(SMALL), frame)
    assert np.array_equal(left.rows_log_prob(prepared.held_out), left.calibration[0].numpy())
    for name in ("model.safetensors", "resume.json", "resume-a.safetensors", "metrics.jsonl", "recipe.yaml"):
        assert (tmp_path / "a" / name).exists()


def test_a_resumed_fit_can_save_before_it_finds_a_better_epoch(frame: pd.DataFrame, tmp_path: Path) -> None:
    whole = flowcli.fit(SMALL, frame, run=tmp_path / "whole")
    for epoch in (1, 2, 4):
        stop = Stop(epoch)
        with pytest.raises(Interrupted):
            flowcli.fit(SMALL, frame, run=tmp_path / "run", progress=stop, stopped=stop.seen, resume=epoch > 1)
    flowcli.fit(SMALL, frame, run=tmp_path / "run", resume=True)
    files = [tmp_path / run / "model.safetensors" for run in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert whole.about["epochs"] == 6


def test_patience_stops(frame: pd.DataFrame) -> None:
    fit = trainer(frame, SMALL | {"train": {"epochs": 1000, "patience": 3, "lr": 0.05}})
    state = fit.run()
    assert state.counters.epoch == state.counters.best_epoch + 3 < 1000


def test_the_moving_average_is_what_is_kept(frame: pd.DataFrame) -> None:
    state = trainer(frame).run()
    assert any(not torch.equal(state.weights[name], state.average[name]) for name in state.weights)
    plain = trainer(frame, SMALL | {"train": {"epochs": 3, "ema": 0.0}}).run()
    assert all(torch.equal(plain.weights[name], plain.average[name]) for name in plain.weights)


@pytest.mark.parametrize(("rows", "size"), [(10, 10), (100, 64), (3000, 128), (10_000, 256), (10**6, 512)])
def test_auto_batches(rows: int, size: int) -> None:
    assert batch_size(Train(), rows) == size


def test_noise_and_double_precision(frame: pd.DataFrame) -> None:
    model = flowcli.fit(SMALL | {"train": {"epochs": 2, "noise": 0.1, "precision": "float64"}}, frame)
    assert model.flow.base.anchor.dtype == torch.float64
    assert np.isfinite(model.log_prob(frame)).all()


def test_init_from_another_shape_is_refused(frame: pd.DataFrame) -> None:
    model = flowcli.fit(SMALL, frame)
    with pytest.raises(UsageError, match="another shape"):
        flowcli.fit(SMALL | {"flow": {"type": "maf", "layers": 3}}, frame, init_from=model)


def test_a_held_out_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.iloc[500:].to_csv(tmp_path / "v.csv", index=False)
    prepared = prepare(from_dict(SMALL | {"data": {"validation": str(tmp_path / "v.csv")}}), frame.iloc[:500])
    assert (len(prepared.rows), len(prepared.held_out)) == (500, 100)


def test_correlated_columns_start_as_their_gaussian(frame: pd.DataFrame) -> None:
    near = frame.assign(copy=frame["x"] * 3 + 1e-3 * np.random.default_rng(1).standard_normal(600))
    gaussian = {"flow": SMALL["flow"] | {"base": "gaussian"}}
    prepared = prepare(from_dict(gaussian), pa.Table.from_pandas(near))
    y, _ = prepared.codec.encode(prepared.held_out.raw, torch.full_like(prepared.held_out.raw, 0.5))
    with torch.no_grad():
        flow = prepared.flow.double().log_prob(y)
    assert flow.mean().item() == pytest.approx(prepared.baseline.log_prob(y).mean().item(), abs=1e-2)


@pytest.mark.parametrize(("hidden", "used"), [([16], 1), ([600, 600], 2)])
def test_steps_of_a_narrow_flow_are_taken_by_one_thread(frame: pd.DataFrame, hidden: list[int], used: int) -> None:
    class Counting(Progress):
        def __init__(self) -> None:
            self.threads: set[int] = set()

        def step(self, epoch: int, done: float) -> None:
            self.threads.add(torch.get_num_threads())

    ear, own = Counting(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recipe = SMALL | {
            "flow": {"type": "maf", "layers": 1, "hidden": hidden},
            "train": {"epochs": 1, "batch_size": 512},
        }
        trainer(frame, recipe, ear).run()
        assert ear.threads == {used}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own)
