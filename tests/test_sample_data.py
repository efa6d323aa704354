"""Every flow on the sample tables: from a shipped recipe to rows and figures, ahead of the Gaussian."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import succeed
from PIL import Image

FLOWS = ["planar", "radial", "realnvp-affine", "realnvp-spline", "maf-affine", "maf-spline"]


def learn(flow: str, frame: pd.DataFrame, folder: Path, *settings: str) -> dict[str, float]:
    """Fit on four fifths, walk all the commands, return what ``evaluate`` says of the last fifth."""
    order = np.random.default_rng(0).permutation(len(frame))
    cut = len(frame) * 4 // 5
    frame.iloc[order[:cut]].to_csv(folder / "train.csv", index=False)
    frame.iloc[order[cut:]].to_csv(folder / "test.csv", index=False)
    options = [word for setting in settings for word in ("-s", setting)]
    succeed("fit", flow, "train.csv", "-o", "run", *options, cwd=folder)
    succeed("score", "run", "test.csv", "-o", "scores.parquet", cwd=folder)
    succeed("sample", "run", "-n", len(frame), "-o", "drawn.csv", cwd=folder)
    found = json.loads(succeed("evaluate", "run", "test.csv", "--json", cwd=folder))
    scores, drawn = pd.read_parquet(folder / "scores.parquet"), pd.read_csv(folder / "drawn.csv")
    assert len(scores) == found["rows"] == len(frame) - cut
    assert scores["log_prob"].mean() == pytest.approx(found["log_prob"], abs=1e-5)
    assert list(drawn) == list(frame)
    assert np.isfinite(drawn.to_numpy()).all()
    spread = frame.quantile(0.9) - frame.quantile(0.1)
    assert ((drawn.median() - frame.median()).abs() < 0.5 * spread).all()
    return found


def check(flow: str, found: dict[str, float]) -> None:
    assert found["log_prob"] > found["diagonal_gaussian_log_prob"]
    if flow not in ("planar", "radial"):
        assert found["better_than_gaussian"] > 2 * found["better_than_gaussian_error"]


@pytest.mark.parametrize("flow", FLOWS)
def test_breast_cancer(flow: str, sample_data: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(sample_data / "breast_cancer.csv").drop(columns="diagnosis")
    check(flow, learn(flow, frame, tmp_path))


@pytest.mark.parametrize("flow", FLOWS)
def test_spirals_in_few_epochs(flow: str, sample_data: Path, tmp_path: Path) -> None:
    check(flow, learn(flow, pd.read_csv(sample_data / "spirals.csv"), tmp_path, "train.epochs=12"))


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_spirals_by_the_recipe_as_it_is(flow: str, sample_data: Path, tmp_path: Path) -> None:
    found = learn(flow, pd.read_csv(sample_data / "spirals.csv"), tmp_path)
    check(flow, found)
    assert found["better_than_gaussian"] > 0.3


def test_digits_are_whole_numbers_with_constant_corners(sample_data: Path, tmp_path: Path) -> None:
    digits = sample_data / "digits.parquet"
    options = ("-s", "data.exclude=[digit]", "-s", "train.epochs=3", "-s", "flow.layers=2", "-s", "flow.hidden=[64]")
    succeed("fit", "maf-affine", digits, "-o", "run", *options, cwd=tmp_path)
    succeed("sample", "run", "-n", "200", "-o", "drawn.parquet", cwd=tmp_path)
    drawn, real = pd.read_parquet(tmp_path / "drawn.parquet"), pd.read_parquet(digits).drop(columns="digit")
    assert list(drawn.dtypes) == list(real.dtypes)
    constant = real.columns[real.nunique() == 1]
    assert len(constant) > 0
    assert (drawn[constant] == real[constant].iloc[0]).all().all()
    odd = real.head(3).assign(**{constant[0]: [0, 1, 0]})
    odd.to_csv(tmp_path / "odd.csv", index=False)
    succeed("score", "run", "odd.csv", "-o", "s.csv", cwd=tmp_path)
    assert pd.read_csv(tmp_path / "s.csv")["status"].tolist() == ["ok", "constant_violated", "ok"]


def test_wine_whole_way(sample_data: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(sample_data / "wine.csv").drop(columns="cultivar")
    found = learn("quickstart", frame, tmp_path)
    assert found["log_prob"] > found["diagonal_gaussian_log_prob"]


def test_drawn_digits_are_read_as_their_class(sample_data: Path, tmp_path: Path) -> None:
    zipped = sample_data / "digits.zip"
    succeed("fit", "glow-digits", zipped, "-o", "run", "-s", "train.epochs=20", "-s", "train.max_time=5m", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert metrics["held_out_log_prob"] > metrics["held_out_gaussian_log_prob"] + 10
    (tmp_path / "labels.csv").write_text("label\n" + "".join(f"{digit}\n" for digit in range(10)))
    succeed("sample", "run", "-n", "30", "--given", "labels.csv", "-o", "drawn.parquet", cwd=tmp_path)
    drawn = pd.read_parquet(tmp_path / "drawn.parquet")
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(content)), float).ravel() for content in drawn["image"]])
    real = pd.read_parquet(sample_data / "digits.parquet")
    digit, pixels = real.pop("digit").to_numpy(), np.minimum(16 * real.to_numpy(float), 255)
    distance = (pictures**2).sum(1)[:, None] - 2 * pictures @ pixels.T + (pixels**2).sum(1)
    nearest = digit[distance.argmin(1)]  # which reads 98 % of real digits
    assert (nearest == drawn["label"].astype(int)).mean() > 0.85
