"""Fits that hold out other rows: what p-values compare with where few rows are held out."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import flowcli
from flowcli.scoring import Scorer, p_values
from flowcli.training.fit import train
from flowcli.training.group import Group
from flowcli.training.loop import Interrupted
from flowcli.training.prepare import as_recipe, folds, prepare
from flowcli.training.progress import Progress

RECIPE = {
    "data": {"numbers": "real", "validation": 0.2},
    "flow": {"type": "maf", "layers": 1, "hidden": [16]},
    "train": {"epochs": 4, "noise": 0.3},
    "score": {"method": "neighbours", "folds": 5},
}


class Ear(Progress):
    """Hears of further fits and of sentences; asks for a stop after so many fits."""

    def __init__(self, most: int = 100) -> None:
        self.fits: list[tuple[int, int]] = []
        self.said: list[str] = []
        self.most = most

    def again(self, number: int, of: int, held_out_log_prob: float) -> None:
        assert np.isfinite(held_out_log_prob)
        self.fits.append((number, of))

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def enough(self) -> bool:
        return len(self.fits) >= self.most


def rows(n: int, seed: int = 0) -> pd.DataFrame:
    x = np.random.default_rng(seed).standard_normal((n, 3))
    return pd.DataFrame(x @ [[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]], columns=["x", "y", "z"])


@given(st.integers(1, 12), st.floats(0.01, 0.9), st.integers(8, 5_000), st.integers(1, 3_000))
def test_folds_are_as_many_as_are_needed_and_have_no_row_in_common(
    most: int, share: float, n: int, enough: int
) -> None:
    count, held = folds(most, share, n, enough), max(1, round(share * n))
    assert 1 <= count <= most
    assert count == 1 or count * held <= n
    assert count == 1 or (count - 1) * held < enough
    if count < most:
        assert count * held >= enough or (count + 1) * held > n


def test_the_held_out_rows_of_all_fits_calibrate_the_first() -> None:
    frame, recipe, ear = rows(400), as_recipe(RECIPE), Ear()
    model = flowcli.fit(RECIPE, frame, progress=ear)
    assert ear.fits == [(2, 5), (3, 5), (4, 5), (5, 5)]
    each = [prepare(recipe, frame, fold=fold) for fold in range(5)]
    assert sorted(itertools.chain(*(p.held_out.raw[:, 0].tolist() for p in each))) == sorted(frame["x"])
    alone = [train(prepared) for prepared in each]
    assert np.array_equal(model.calibration, np.concatenate([one.calibration for one in alone], 1))
    for name, tensor in alone[0].flow.state_dict().items():
        assert np.array_equal(model.flow.state_dict()[name], tensor), name
    assert model.about == alone[0].about


def test_p_values_of_new_rows_are_uniform_and_small_ones_are_there() -> None:
    model, new = flowcli.fit(RECIPE, rows(400)), rows(4_000, seed=1)
    scorer = Scorer(model)
    assert scorer.least_p_value == 1 / 401
    p = model.score(new)["p_value"].to_numpy()
    # The empirical distribution of 400 calibration rows is within 1.63/√400 of the true one with probability 0.99.
    assert np.abs(np.sort(p) - np.arange(1, 4_001) / 4_000).max() < 1.63 / 20
    assert p.min() < 1 / 100
    assert p_values(np.array([np.inf]), scorer.held_out)[0] == 1 / 401


@pytest.mark.parametrize("most", [1, 3])
def test_a_fit_stopped_among_the_further_ones_goes_on(tmp_path: Path, most: int) -> None:
    frame = rows(300)
    flowcli.fit(RECIPE, frame, run=tmp_path / "whole")
    ear = Ear(most)
    with pytest.raises(Interrupted):
        flowcli.fit(RECIPE, frame, run=tmp_path / "run", progress=ear, stopped=ear.enough)
    assert len(ear.fits) == most
    assert flowcli.load(tmp_path / "run").calibration.shape[1] == 60  # can be scored with
    assert not (tmp_path / "run" / "run.json").exists()
    again = Ear()
    flowcli.fit(RECIPE, frame, run=tmp_path / "run", resume=True, progress=again)
    assert len(again.fits) == 4
    files = [tmp_path / run / "model.safetensors" for run in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    flowcli.fit(RECIPE, frame, run=tmp_path / "run", resume=True, progress=again)
    assert len(again.fits) == 4
    assert "is finished already" in again.said[-1]


def test_a_further_fit_that_goes_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ear, mean = Ear(), Group.mean

    def poisoned(self: Group, loss: Tensor, *rest: Any) -> tuple[Tensor, bool]:
        third = ear.fits[-1:] == [(2, 5)] and not ear.said
        return mean(self, loss * math.nan if third else loss, *rest)

    monkeypatch.setattr(Group, "mean", poisoned)
    model = flowcli.fit(RECIPE, rows(400), progress=ear)
    assert ear.fits == [(2, 5), (4, 5), (5, 5)]
    assert ear.said == ["fit 3/5 did not stay finite, and is left out"]
    assert model.calibration.shape[1] == 4 * 80


def test_no_further_fit_begins_that_would_not_end_in_time() -> None:
    ear = Ear()
    recipe = RECIPE | {"train": {"epochs": 1_000, "patience": 1_000, "max_time": "1s"}}
    model = flowcli.fit(recipe, rows(300), progress=ear)
    assert (ear.fits, model.calibration.shape[1]) == ([], 60)
    assert ear.said[-1] == "train.max_time: leaves no time for 4 of the fits that hold out other rows"


def test_a_file_of_held_out_rows_is_all_there_is(tmp_path: Path) -> None:
    rows(50, seed=2).to_csv(tmp_path / "held_out.csv", index=False)
    ear = Ear()
    data = RECIPE["data"] | {"validation": str(tmp_path / "held_out.csv")}
    model = flowcli.fit(RECIPE | {"data": data}, rows(200), progress=ear)
    assert (ear.fits, model.calibration.shape[1]) == ([], 50)
