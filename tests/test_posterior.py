"""Targets on the command line: the gate before their code, hostile ones, and what a fitted one gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arviz_base import from_dict as as_arviz
from command import flowcli, succeed

RECIPE = """
target: {file: target.py, data: data.json}
parameters:
  mu: real
  theta: {shape: [2]}
  rate: positive
flow: {type: realnvp, layers: 2, hidden: [8]}
train: {epochs: 6}
"""
IMPORTS = "import pathlib, torch\nfrom torch.distributions import Exponential, Normal\n"
MARK = "pathlib.Path(__file__).with_name('ran').touch()\n"
TARGET = f"""{IMPORTS}{MARK}
def log_density(parameters, data):
    mu, theta, rate = parameters["mu"], parameters["theta"], parameters["rate"]
    value = Normal(data["at"], 1.0).log_prob(mu) + Exponential(2.0).log_prob(rate)
    return value + Normal(mu[:, None], 0.5).log_prob(theta).sum(1)
"""


def write(folder: Path, target: str = TARGET, recipe: str = RECIPE) -> Path:
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "target.py").write_text(target)
    (folder / "data.json").write_text('{"at": 3.0}')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its target and the run of a fit."""
    folder = write(tmp_path_factory.mktemp("posterior"))
    succeed("fit", "recipe.yaml", "--allow-code", "-o", "run", cwd=folder)
    (folder / "ran").unlink()
    return folder


def refused(folder: Path, code: int, *words: object) -> str:
    """The one sentence of a command that must fail with an exit code."""
    done = flowcli(*words, cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert sentence.endswith((".", "?"))
    return sentence


# -- the gate -----------------------------------------------------------------------------------------------------


def test_no_code_runs_unless_it_is_allowed(run: Path) -> None:
    sentence = "error: {}: is code, which runs only with --allow-code; read it first."
    assert refused(run, 2, "fit", "recipe.yaml", "-o", "other") == sentence.format("target.py")
    assert refused(run, 2, "fit", "recipe.yaml", "--dry-run") == sentence.format("target.py")
    for words in (
        ["evaluate", "run"],
        ["sample", "run", "-n", 3, "--weights"],
        ["sample", "run", "-n", 3, "--resample"],
    ):
        assert refused(run, 2, *words) == sentence.format(run / "target.py")
    for words in (["sample", "run", "-n", 3], ["inspect", "run"], ["validate", "recipe.yaml"]):
        succeed(*words, cwd=run)
    assert not (run / "ran").exists()
    assert not (run / "other").exists()


def test_a_model_file_is_enough_to_sample(run: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((run / "run" / "model.safetensors").read_bytes())
    assert b"def log_density" not in (tmp_path / "m.safetensors").read_bytes()
    drawn = succeed("sample", "m.safetensors", "-n", 5000, "--seed", 1, "-o", "-", cwd=tmp_path)
    assert drawn == succeed("sample", "run", "-n", 5000, "--seed", 1, cwd=run)
    assert drawn.startswith(succeed("sample", "run", "-n", 7, "--seed", 1, cwd=run))


# -- what it gives ------------------------------------------------------------------------------------------------


def test_the_run_folder(run: Path) -> None:
    names = {path.name for path in (run / "run").iterdir()}
    assert names == {"model.safetensors", "recipe.yaml", "run.json", "metrics.jsonl"}
    manifest = json.loads((run / "run" / "run.json").read_text())
    assert [Path(file["file"]).name for file in manifest["target"]] == ["target.py", "data.json"]
    lines = (run / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 7))
    again = succeed("fit", "run/recipe.yaml", "--allow-code", "-o", "again", cwd=run)
    assert again == "again\n"
    assert (run / "again" / "model.safetensors").read_bytes() == (run / "run" / "model.safetensors").read_bytes()


def test_evaluate_says_whether_to_trust_it(run: Path) -> None:
    text = succeed("evaluate", "run", "--allow-code", cwd=run)
    names = ["draws", "ELBO", "evidence", "divergence", "k-hat", "effective sample size", "trust"]
    assert [line[:22].strip() for line in text.splitlines()] == names
    found = json.loads(succeed("evaluate", "run", "--allow-code", "--json", cwd=run))
    assert found["evidence"] == pytest.approx(0.0, abs=0.02)
    assert found["elbo"] <= found["evidence"] + 3 * found["elbo_error"]
    assert found["k_hat"] < 0.7
    assert found["trust"].startswith("yes")


def test_weights_and_resampling_agree_with_the_target(run: Path) -> None:
    words = ("sample", "run", "-n", 8000, "--allow-code", "-o")
    succeed(*words, "w.parquet", "--weights", cwd=run)
    succeed(*words, "r.parquet", "--resample", cwd=run)
    weighted, resampled = pd.read_parquet(run / "w.parquet"), pd.read_parquet(run / "r.parquet")
    assert list(weighted) == ["mu", "theta[0]", "theta[1]", "rate", "log_weight"]
    weight = np.exp(weighted.pop("log_weight"))
    for mean in ((weighted.mul(weight, axis=0)).sum() / weight.sum(), resampled.mean()):
        assert mean.to_numpy() == pytest.approx([3.0, 3.0, 3.0, 0.5], abs=0.05)
    assert resampled["theta[0]"].std() == pytest.approx(1.25**0.5, rel=0.05)
    assert resampled["rate"].std() == pytest.approx(0.5, rel=0.05)


def test_draws_open_in_arviz(run: Path) -> None:
    succeed("sample", "run", "-n", 100, "-o", "a.parquet", "--force", cwd=run)
    frame = pd.read_parquet(run / "a.parquet")
    names = dict.fromkeys(column.partition("[")[0] for column in frame)
    draws = {name: frame.filter(regex=rf"^{name}(\[|$)").to_numpy()[None] for name in names}
    posterior = as_arviz(
        {"posterior": {name: value.squeeze(-1) if value.shape[-1] == 1 else value for name, value in draws.items()}}
    )
    assert dict(posterior["posterior"].sizes) == {"chain": 1, "draw": 100, "theta_dim_0": 2}


def test_a_target_that_changed_is_told(run: Path) -> None:
    before = (run / "data.json").read_text()
    (run / "data.json").write_text('{"at": 3.001}')
    done = flowcli("evaluate", "run", "--allow-code", cwd=run)
    (run / "data.json").write_text(before)
    assert done.returncode == 0
    assert done.stderr == f"warning: {run / 'target.py'}: its code or its data have changed since the fit\n"


def test_what_a_target_prints_is_no_result(tmp_path: Path) -> None:
    write(tmp_path, TARGET.replace("    mu, theta", "    print('here')\n    mu, theta"))
    done = flowcli("fit", "recipe.yaml", "--allow-code", "-o", "run", "-s", "train.epochs=1", cwd=tmp_path)
    assert done.stdout == "run\n"
    assert "here" in done.stderr.splitlines()


def test_inspect(run: Path) -> None:
    text = succeed("inspect", "run", cwd=run)
    assert f"target    {run / 'target.py'}: log_density" in text
    assert "  theta: real [2]" in text
    assert json.loads(succeed("inspect", "run", "--json", cwd=run))["features"] == 4


# -- what it refuses ----------------------------------------------------------------------------------------------

FUNCTION = "def log_density(parameters, data):\n    return "
HOSTILE = {
    "raises when read": ("1/0", 2, "target.py:3: ZeroDivisionError: division by zero."),
    "is no Python": ("def log_density(:", 2, "target.py:3: SyntaxError: invalid syntax."),
    "has another name": ("def density(p, d): pass", 2, "target.py: has no function 'log_density', which target.function names."),
    "raises when called": (FUNCTION + "data['mu']", 2, "target.py:4: KeyError: 'mu'."),
    "leaves": (FUNCTION + "exit()", 2, "target.py:4: SystemExit."),
    "leaves when read": ("raise SystemExit(0)", 2, "target.py:3: SystemExit: 0."),
    "one number": (FUNCTION + "parameters['mu'].sum()", 2, "returned the shape () for 64 rows; it must be (64,)."),
    "a matrix": (FUNCTION + "parameters['theta']", 2, "returned the shape (64, 2) for 64 rows; it must be (64,)."),
    "no tensor": (FUNCTION + "0.0", 2, "returned float, not a tensor with one value for each row."),
    "whole numbers": (FUNCTION + "parameters['mu'].long()", 2, "returned int64 numbers; it must be floats."),
    "no gradient": (FUNCTION + "parameters['mu'].detach()", 2, "returned what autograd cannot follow back to the parameters."),
    "NaN": (FUNCTION + "parameters['mu'] * torch.nan", 4, "is finite at none of 64 starts;"),
    "infinite": (FUNCTION + "parameters['mu'] + torch.inf", 4, "is finite at none of 64 starts;"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_targets_end_in_a_sentence(what: str, tmp_path: Path) -> None:
    code, exit_code, expected = HOSTILE[what]
    write(tmp_path, IMPORTS + code + "\n")
    sentence = refused(tmp_path, exit_code, "fit", "recipe.yaml", "--allow-code", "-o", "run")
    assert expected in sentence
    assert "target.py" in sentence
    assert not (tmp_path / "run").exists()


RECIPES = {
    "data too": ("flow:", "data: {exclude: [a]}\nflow:", "a recipe has data or a target, not both."),
    "no parameters": ("parameters:\n  mu: real\n  theta: {shape: [2]}\n  rate: positive\n", "", "target and parameters go together."),
    "a wrong kind": ("rate: positive", "rate: positiv", "'positiv' is not one of real, positive, interval, simplex, ordered, correlation_cholesky. Did you mean positive?"),
    "no bounds": ("rate: positive", "rate: interval", "low and high go together with type: interval."),
    "bounds turned round": ("rate: positive", "rate: interval(2, 1)", "low must be below high."),
    "a simplex of one": ("rate: positive", "rate: {type: simplex, shape: [1]}", "simplex needs a shape whose last axis is 2 or more, as in shape: [3]."),
    "no square": ("rate: positive", "rate: {type: correlation_cholesky, shape: [3]}", "correlation_cholesky needs a shape that ends in a square, as in shape: [3, 3]."),
    "a taken name": ("rate: positive", "log_weight: positive", "'log_weight' cannot be a parameter's name; take letters, digits and _."),
    "a name with brackets": ("rate: positive", "rate[0]: positive", "'rate[0]' cannot be a parameter's name; take letters, digits and _."),
    "noise": ("epochs: 6", "noise: 0.1", "train.noise is for data, and this recipe has a target."),
}  # fmt: skip


@pytest.mark.parametrize("what", RECIPES)
def test_mistakes_in_a_recipe(what: str, tmp_path: Path) -> None:
    old, new, expected = RECIPES[what]
    assert old in RECIPE
    sentence = refused(write(tmp_path, recipe=RECIPE.replace(old, new)), 2, "validate", "recipe.yaml")
    assert sentence.endswith(expected)


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    fit = ("fit", "recipe.yaml", "--allow-code", "-o", "run")
    (tmp_path / "data.json").write_text("{")
    assert "data.json: not JSON: " in refused(tmp_path, 3, *fit)
    (tmp_path / "data.json").unlink()
    assert refused(tmp_path, 3, *fit) == "error: data.json: cannot be read: No such file or directory."
    write(tmp_path)
    (tmp_path / "target.py").unlink()
    assert "target.py: cannot be read" in refused(tmp_path, 2, *fit)


def test_what_is_for_data_is_refused(run: Path, tmp_path: Path) -> None:
    for words, option in (
        (["fit", "recipe.yaml", "data.json", "-o", "x"], "DATA"),
        (["fit", "recipe.yaml", "--resume", "-o", "x"], "--resume"),
        (["evaluate", "run", "data.json"], "DATA"),
        (["sample", "run", "-n", 1, "--given", "a=1"], "--given"),
        (["sample", "run", "-n", 1, "--latents"], "--latents"),
    ):
        assert refused(run, 2, *words) == f"error: {option}: is for data, and this is of a target."
    sentence = f"error: {Path('run') / 'model.safetensors'}: is of a target, not of data: `sample`, `evaluate`, `report` and `inspect` take it."
    assert refused(run, 5, "score", "run", "data.json") == sentence


def test_a_recipe_is_copied_with_its_targets_files(tmp_path: Path) -> None:
    succeed("recipe", "copy", "posterior", "mine.yaml", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "eight_schools.py", "eight_schools.json"}
    succeed("fit", "mine.yaml", "--allow-code", "--dry-run", cwd=tmp_path)
