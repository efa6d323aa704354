"""Runs side by side on the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import flowcli, succeed

import flowcli as package

FAST = ("-s", "flow.layers=2", "-s", "flow.hidden=[16]", "-s", "train.epochs=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(7000)
    frame = pd.DataFrame({"x": x, "y": x**2 + rng.standard_normal(7000), "k": rng.integers(0, 3, 7000)})
    frame[:2000].to_csv(folder / "train.csv", index=False)
    new = frame[2000:].reset_index(drop=True)
    new["odd"] = (np.arange(5000) % 10 == 0).astype(int)
    new.loc[new["odd"] == 1, "y"] += 4
    new.to_csv(folder / "new.csv", index=False)
    for run, recipe, more in (
        ("spline", "maf-spline", ()), ("affine", "maf-affine", ()), ("seed", "maf-affine", ("--seed", 1)),
    ):  # fmt: skip
        succeed("fit", recipe, "train.csv", "-o", run, *FAST, *more, cwd=folder)
    return folder


def compared(folder: Path, *arguments: object) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(succeed("compare", *arguments, "--json", cwd=folder))
    return found


def test_the_paired_difference_is_numpys(folder: Path) -> None:
    new = pd.read_csv(folder / "new.csv")
    ours, theirs = (package.load(folder / run).log_prob(new) for run in ("spline", "affine"))
    first, second = compared(folder, "spline", "affine", "--data", "new.csv", "--label", "odd")
    assert (first["rows"], first["rows_in_mean"]) == (5000, 5000)
    d = theirs - ours
    assert second["difference"] == pytest.approx(np.mean(d), rel=1e-9)
    assert second["difference_error"] == pytest.approx(np.std(d, ddof=1) / np.sqrt(5000), rel=1e-9)
    assert second["log_prob"] == pytest.approx(theirs.mean(), rel=1e-9)
    assert second["log_prob_error"] == pytest.approx(theirs.std(ddof=1) / np.sqrt(5000), rel=1e-9)
    assert second["bits_per_dim"] == pytest.approx(-theirs.mean() / np.log(2) / 3, rel=1e-9)
    assert (first["difference"], first["difference_error"]) == (0, 0)
    evaluated = json.loads(succeed("evaluate", "affine", "new.csv", "--label", "odd", "--json", cwd=folder))
    assert second["auroc"] == pytest.approx(evaluated["auroc"], rel=1e-12)


def test_held_out_rows_are_those_of_the_fit(folder: Path) -> None:
    first, second = compared(folder, "affine", "spline")
    assert first["rows"] == 200
    for found, run in ((first, "affine"), (second, "spline")):
        manifest = json.loads((folder / run / "run.json").read_text())
        assert found["log_prob"] == pytest.approx(manifest["metrics"]["held_out_log_prob"], rel=1e-6)
        assert found["parameters"] == manifest["metrics"]["parameters"]
        assert found["seconds"] == manifest["seconds"]["training"]


def test_one_table(folder: Path) -> None:
    lines = succeed("compare", "spline", "affine/model.safetensors", "--data", "new.csv", cwd=folder).splitlines()
    assert lines[0].split() == ["run", "flow", "parameters", "seconds", "log-likelihood", "difference", "bits/dim"]
    assert len({len(line) for line in lines}) == 1
    assert "maf spline 2×[16]" in lines[1]
    assert lines[2].split()[5] == "?"  # a model file alone does not know how long it took


def test_a_row_without_a_density_is_in_no_mean(folder: Path) -> None:
    new = pd.read_csv(folder / "new.csv").head(50)
    new.loc[3, "x"] = np.inf
    new.to_csv(folder / "hole.csv", index=False)
    for found in compared(folder, "spline", "affine", "--data", "hole.csv"):
        assert (found["rows"], found["rows_in_mean"]) == (50, 49)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("affine", "seed"), 2, "held out different rows"),
        (("affine/model.safetensors",), 3, "a model file alone"),
        (("affine", "--label", "odd"), 2, "--label: needs --data"),
        (("affine", "seed", "--data", "-"), 2, "standard input"),
        (("affine", "--data", "new.csv", "--label", "none"), 3, "no label column 'none'"),
        (("nothing",), 5, "nothing"),
    ],
)
def test_what_cannot_be_compared(folder: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = flowcli("compare", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_runs_without_hashes_of_their_files_may_have_held_out_different_rows(folder: Path) -> None:
    """Of interrupted runs there is no manifest, of objects in a store no hash, and of standard input neither."""
    for name, change in (
        ("interrupted", lambda manifest: None),
        ("stored", lambda manifest: manifest | {"data": [{"file": "s3://lake/train.csv"}]}),
    ):
        shutil.copytree(folder / "affine", folder / name)
        manifest = change(json.loads((folder / name / "run.json").read_text()))
        (folder / name / "run.json").unlink()
        if manifest:
            (folder / name / "run.json").write_text(json.dumps(manifest))
        for runs in ((name, name), (name, "affine"), ("affine", name)):
            done = flowcli("compare", *runs, cwd=folder)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"{name} has no hashes of the files it was fitted to" in done.stderr
            assert "--data" in done.stderr
        assert len(compared(folder, name, "affine", "--data", "new.csv")) == 2


def test_other_columns_are_warned_of(folder: Path) -> None:
    succeed("fit", "maf-affine", "train.csv", "-o", "fewer", "-s", "data.exclude=[k]", *FAST, cwd=folder)
    done = flowcli("compare", "affine", "fewer", cwd=folder)
    assert done.returncode == 0
    assert "these runs model different columns" in done.stderr
