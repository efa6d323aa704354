"""TensorBoard reads what a fit writes for it, also of one that was stopped and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command import ENVIRONMENT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flowcli
from flowcli.errors import UsageError
from flowcli.training.board import Board
from flowcli.training.loop import Interrupted
from flowcli.training.progress import Evaluation, Progress

RECIPE = {"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "train": {"epochs": 4, "log": ["tensorboard"]}}


class Stop(Progress):
    """Asks for a stop after the second epoch."""

    asked = False

    def evaluated(self, evaluation: Evaluation) -> None:
        self.asked = evaluation.epoch == 2

    def seen(self) -> bool:
        return self.asked


def test_the_figures_are_those_of_metrics_jsonl(mixed: pd.DataFrame, tmp_path: Path) -> None:
    run, stop = tmp_path / "run", Stop()
    with pytest.raises(Interrupted):
        flowcli.fit(RECIPE, mixed, run=run, progress=stop, stopped=stop.seen)
    flowcli.fit(RECIPE, mixed, run=run, resume=True)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for name in ("held_out_log_prob", "train_log_prob", "lr", "skipped_steps", "rows_per_second"):
        there = [(event.step, event.value) for event in board.Scalars(name)]
        expected = [(line["step"], pytest.approx(line[name])) for line in lines if line[name] is not None]
        assert there == expected
    flowcli.fit(RECIPE, mixed, run=run, force=True)  # the folder is known to be a fit's own


def test_what_a_killed_fit_wrote_after_its_last_state_is_replaced(tmp_path: Path) -> None:
    for state, steps in ((0, (0, 10, 20, 30)), (10, (20, 30, 40))):
        board = Board(tmp_path, state)
        for step in steps:
            board.write(Evaluation(step // 10, step, -2.0, -state, 0, 1e-3, 0, 1.0, 1.0))
        board.close()
    there = EventAccumulator(str(tmp_path)).Reload().Scalars("held_out_log_prob")
    assert [(event.step, event.value) for event in there] == [(0, 0), (10, 0), (20, -10), (30, -10), (40, -10)]


def test_killed_before_its_first_save_it_leaves_nothing_in_the_way(mixed: pd.DataFrame, tmp_path: Path) -> None:
    mixed.to_parquet(tmp_path / "t.parquet")
    code = (
        "import os, signal, flowcli\nfrom flowcli.training.run import Run\n"
        "Run.write_model = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"flowcli.fit({RECIPE}, run='run', overrides=['data.files=t.parquet'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "run").iterdir()) == []
    flowcli.fit(RECIPE, mixed, run=tmp_path / "run")


def test_the_log_is_no_part_of_what_a_resumed_fit_must_share(mixed: pd.DataFrame, tmp_path: Path) -> None:
    flowcli.fit(RECIPE, mixed, run=tmp_path / "run")
    plain = {"flow": RECIPE["flow"], "train": {"epochs": 4}}
    flowcli.fit(plain, mixed, run=tmp_path / "run", resume=True)


def test_where_it_is_not_installed_a_sentence_says_so(
    mixed: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"train.log: tensorboard is not installed here; pip install 'flowcli"):
        flowcli.fit(RECIPE, mixed, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
