"""The search for a recipe: it goes on where it was killed, gives up what falls behind, and never sees the test rows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import ENVIRONMENT, flowcli, succeed

import flowcli as package
from flowcli.recipe import load
from flowcli.training.prepare import as_recipe, prepare
from flowcli.tune import Study

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("-s", "train.epochs=4", "-s", "flow.layers=2", "-s", "data.validation=0.5")


def write_table(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(240)
    frame = pd.DataFrame({"x": x, "y": x**2 + 0.3 * rng.standard_normal(240)})
    frame.to_csv(folder / "t.csv", index=False)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table and a study of it."""
    folder = write_table(tmp_path_factory.mktemp("tune"))
    assert succeed("tune", "radial", "t.csv", *QUICK, "--trials", "6", "-o", "tuned", cwd=folder) == "tuned/best.yaml\n"
    return folder


def trials(folder: Path) -> list[dict[str, Any]]:
    """The trials that are written down, without what a clock says."""
    lines = (folder / "trials.jsonl").read_text().splitlines() if (folder / "trials.jsonl").exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def killed(arguments: list[str], cwd: Path, after: int, seconds: float) -> None:
    """Kill a study as soon as so many trials are written down."""
    command = [sys.executable, "-m", "flowcli", "tune", *arguments]
    with subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + seconds
        while len(trials(cwd / "tuned")) < after:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def test_killed_and_resumed_it_ends_as_if_nothing_had_been(world: Path, table: Path) -> None:
    study = ["radial", "t.csv", *QUICK, "--trials", "6"]
    killed([*study, "-o", "tuned"], table, 2, 120)
    there = len(trials(table / "tuned"))
    assert 2 <= there < 6
    done = flowcli("tune", *study, "-o", "tuned", "--resume", cwd=table)
    assert (done.returncode, done.stdout) == (0, "tuned/best.yaml\n"), done.stderr
    assert f"{there} trials are there already" in done.stderr
    assert trials(table / "tuned") == trials(world / "tuned")
    assert len(trials(table / "tuned")) == 6
    assert not [path for path in (table / "tuned").iterdir() if path.name.endswith(".part")]
    assert len(list((table / "tuned").glob("*.safetensors"))) <= 2


def test_the_best_recipe_has_its_evidence_and_can_be_fitted(world: Path) -> None:
    found = trials(world / "tuned")
    first, complete = found[0], [t for t in found if t["state"] == "complete"]
    assert first["parameters"] == {}
    assert (first["difference"], first["difference_error"]) == (0, 0)
    best = max(complete, key=lambda t: t["value"])
    text = (world / "tuned" / "best.yaml").read_text()
    recipe = load(str(world / "tuned" / "best.yaml"))
    assert best["difference"] > 2 * best["difference_error"]
    assert f"{best['value']:.4f}; the recipe as it was: {first['value']:.4f}" in re.sub(r"\s+", " ", text)
    assert "On 48 test rows, which no trial saw" in text
    assert recipe.flow.layers == best["parameters"]["flow.layers"]
    assert recipe.train.lr == best["parameters"]["train.lr"]
    assert succeed("fit", "tuned/best.yaml", "-o", "run", cwd=world) == "run\n"


def test_a_recipe_that_nothing_beats_stays_as_it_was(world: Path) -> None:
    done = flowcli("tune", "radial", "t.csv", *QUICK, "--trials", "1", "-o", "alone", cwd=world)
    assert "no trial was ahead" in done.stderr
    assert "it stays as it was" in (world / "alone" / "best.yaml").read_text()
    assert load(str(world / "alone" / "best.yaml")).flow.layers == 2


def test_no_trial_sees_the_test_rows(world: Path, table: Path) -> None:
    recipe = load("radial", [f"data.files=[{world / 't.csv'}]", *QUICK[1::2]])
    test = Study(table / "look", recipe, 0.2, 0, False, False).test.to_pandas()
    frame = pd.read_csv(table / "t.csv")
    hidden = frame["x"].isin(test["x"])
    assert hidden.sum() == len(test) == 48
    frame.loc[hidden] *= 1e6
    frame.to_csv(table / "t.csv", index=False)
    succeed("tune", "radial", "t.csv", *QUICK, "--trials", "3", "-o", "tuned", cwd=table)
    assert trials(table / "tuned") == trials(world / "tuned")[:3]


def test_folds_hold_out_other_rows_each(table: Path) -> None:
    frame = pd.read_csv(table / "t.csv")
    recipe = as_recipe({"flow": {"type": "planar", "layers": 1}})
    held_out = [prepare(recipe, frame, fold=fold).held_out.raw[:, 0].tolist() for fold in range(10)]
    assert sorted(itertools.chain(*held_out)) == sorted(frame["x"])
    assert held_out[0] == prepare(recipe, frame).held_out.raw[:, 0].tolist()


def test_the_difference_is_that_of_the_same_rows(world: Path) -> None:
    one_fold = ("-s", "data.validation=0.9")
    succeed("tune", "radial", "t.csv", *QUICK, *one_fold, "--trials", "4", "-o", "one", cwd=world)
    found = trials(world / "one")
    leader = max((t for t in found if t["value"] is not None), key=lambda t: t["value"])
    ours, theirs = (
        package.load(world / "one" / f"trial-{n}.safetensors").calibration[0].numpy() for n in (leader["number"], 0)
    )
    assert leader["number"]
    assert leader["value"] == pytest.approx(ours.mean())
    assert leader["difference"] == pytest.approx((ours - theirs).mean())
    assert leader["difference_error"] == pytest.approx((ours - theirs).std(ddof=1) / np.sqrt(len(ours)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("t.csv", "-o", "tuned", "--seed", "1", "--resume"), 2, "was begun with another seed"),
        (("t.csv", "-o", "tuned", "-s", "train.lr=1e-4", "--resume"), 2, "was begun with another recipe"),
        (("t.csv", "-o", "tuned"), 2, "--resume goes on"),
        (("t.csv", "-o", "none", "--resume"), 2, "nothing to resume"),
        (("t.csv", "-o", ".", "--force"), 2, "exists already"),
        (("t.csv", "-o", "new", "--test", "1.5"), 2, "--test"),
        (("t.csv", "-o", "new", "-s", "score.method=neighbours"), 2, "score.method: neighbours does not score by"),
        ((), 2, "no data"),
    ],
)
def test_what_cannot_be_tuned(world: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = flowcli("tune", "radial", *arguments, *QUICK, cwd=world)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert (world / "t.csv").exists()


def test_force_replaces_a_study_and_nothing_else(world: Path, table: Path) -> None:
    study, again = table / "tuned", ("radial", "t.csv", "-o", "tuned", "--force", "--trials", "1", *QUICK)
    shutil.copytree(world / "tuned", study)
    for stranger in ("thesis.txt", "trial-notes"):
        (study / stranger).write_text("mine")
        before = sorted(path.name for path in study.iterdir())
        done = flowcli("tune", *again, cwd=table)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"holds '{stranger}', which no study wrote" in done.stderr
        assert sorted(path.name for path in study.iterdir()) == before
        (study / stranger).unlink()
    (study / ".best.yaml.0123abcd.part").write_text("by one that was killed")
    assert succeed("tune", *again, cwd=table) == "tuned/best.yaml\n"
    names = {"study.json", "trials.jsonl", "trial-0.npy", "trial-0.safetensors", "best.yaml"}
    assert {path.name for path in study.iterdir()} == names


def test_it_trains_where_it_is_told(world: Path) -> None:
    study = ("tune", "radial", "t.csv", *QUICK, "--trials", "1", "-o", "elsewhere")
    for more, environment in ((("--device", "nowhere"), {}), ((), {"FLOWCLI_DEVICE": "nowhere"})):
        done = flowcli(*study, *more, cwd=world, environment=environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert "train.device: 'nowhere'" in done.stderr
    done = flowcli(*study, "--device", "cpu", cwd=world, environment={"FLOWCLI_DEVICE": "nowhere"})
    assert done.returncode == 0, done.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys\nfrom flowcli.cli import main\nsys.modules['optuna'] = None\n"
        "sys.argv = ['flowcli', 'tune', 'maf-affine']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr == "error: flowcli tune needs optuna: pip install 'flowcli[tune]'.\n"


@pytest.mark.slow
def test_breast_cancer_killed_at_the_tenth_of_twenty(tmp_path: Path) -> None:
    """It ends with a recipe that is better than the default, or is the default, on rows that were held out."""
    data = str(ROOT / "sample_data" / "breast_cancer.csv")
    study = ["quickstart", data, "-s", "data.exclude=[diagnosis]", "--trials", "20", "-o", "tuned"]
    killed(study, tmp_path, 10, 1200)
    done = flowcli("tune", *study, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path / "tuned")
    assert len(found) == 20
    recipe = load(str(tmp_path / "tuned" / "best.yaml"))
    best = max((t for t in found if t["value"] is not None), key=lambda t: t["value"])
    chosen = best if recipe.train.lr == best["parameters"].get("train.lr") else found[0]
    assert chosen["value"] >= found[0]["value"]
