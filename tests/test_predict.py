"""Predictions of a column from given ones: what measures them, and that they are right where the truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command import flowcli, succeed
from pages import ROOT, blocks, shell
from scipy import stats

from flowcli.errors import UsageError
from flowcli.model import Model
from flowcli.scoring import Predictor, evaluate
from flowcli.scoring.predict import crps, ranks
from flowcli.training import fit

SMALL = {"layers": 1, "hidden": [32, 32], "base": "gaussian"}


def gaussian(n: int, seed: int) -> pd.DataFrame:
    """y ~ N(3 + 2x, 0.5 + |x|), known for every x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return pd.DataFrame({"x": x, "y": 3 + 2 * x + (0.5 + np.abs(x)) * rng.standard_normal(n)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 4,000 rows, in a folder with tables to use it on."""
    folder = tmp_path_factory.mktemp("predict")
    recipe = {"data": {"given": ["x"]}, "flow": {"type": "maf", **SMALL}, "train": {"epochs": 30, "batch_size": 128}}
    fit(recipe, gaussian(4000, 0), run=folder / "run")
    gaussian(2000, 1).to_parquet(folder / "new.parquet", index=False)
    pd.DataFrame({"x": [0.5, None, -0.5], "id": ["a", "b", "c"]}).to_csv(folder / "given.csv", index=False)
    pd.DataFrame({"z": [1.0]}).to_csv(folder / "other.csv", index=False)
    return folder


def test_crps_is_the_gaussians() -> None:
    """In closed form σ·(z(2Φ(z) − 1) + 2φ(z) − 1/√π) (Gneiting & Raftery 2007, equation 5); offsets do no harm."""
    rng = np.random.default_rng(0)
    y, sigma = rng.normal(size=4000), 2.0
    true = sigma * ((y / sigma) * (2 * stats.norm.cdf(y / sigma) - 1) + 2 * stats.norm.pdf(y / sigma) - math.pi**-0.5)
    for m in (2, 16):  # unbiased for few draws too
        drawn = sigma * rng.standard_normal((4000, m))
        found = crps(drawn, y)
        error = (found - true).std() / math.sqrt(len(y))
        assert abs((found - true).mean()) < 4 * error < 0.15
        assert crps(drawn + 1e9, y + 1e9) == pytest.approx(found, abs=1e-5)
    assert crps(np.array([[1.0, 1.0, 4.0]]), np.array([1.0])) == pytest.approx([1.0 - 1.0])


def test_ranks_are_uniform_for_whole_numbers_too() -> None:
    rng = np.random.default_rng(0)
    for draw in (lambda *size: rng.normal(size=size), lambda *size: rng.poisson(1.5, size)):
        found = ranks(draw(20_000, 9).astype(float), draw(20_000).astype(float), rng.random(20_000))
        assert stats.kstest(found, "uniform").pvalue > 0.001


def test_evaluate_measures_what_is_true(run: Path) -> None:
    """The true law's own CRPS is σ/√π on average, and no other law's is smaller."""
    new = gaussian(2000, 1)
    found = json.loads(succeed("evaluate", "run", "new.parquet", "--json", cwd=run))
    best = float(((0.5 + np.abs(new["x"])) / math.sqrt(math.pi)).mean())
    assert 0.96 * best < found["crps"] < 1.05 * best
    assert found["rows_predicted"] == 2000
    assert [*found["coverage"]] == ["50", "80", "90", "95"]
    for level, share in found["coverage"].items():
        assert abs(share - float(level) / 100) < 0.04
    text = succeed("evaluate", "run", "new.parquet", cwd=run)
    assert f"CRPS                  {found['crps']:.4g}" in text
    assert "within 90 % interval" in text


def test_a_model_that_is_too_sure_covers_too_little(run: Path) -> None:
    """Coverage can fail: the same model, asked about rows that scatter three times as much."""
    new = gaussian(1000, 2)
    new["y"] = 3 + 2 * new["x"] + 3 * (new["y"] - 3 - 2 * new["x"])
    found = evaluate(Model.load(run / "run"), [pa.Table.from_pandas(new, preserve_index=False)])
    assert found.coverage is not None
    assert found.coverage["90"] < 0.6


def test_predicted_quantiles_are_the_true_ones(run: Path) -> None:
    succeed("predict", "run", "new.parquet", "--quantiles", "0.1,0.9", "--keep", "x", "-o", "p.parquet", cwd=run)
    found = pd.read_parquet(run / "p.parquet")
    assert [*found] == ["row_id", "source", "x", "mean", "median", "q0.1", "q0.9", "status"]
    assert (found["row_id"] == np.arange(2000)).all()
    middle, spread = 3 + 2 * found["x"], 0.5 + found["x"].abs()
    for name, q in {"mean": 0.5, "median": 0.5, "q0.1": 0.1, "q0.9": 0.9}.items():
        away = (found[name] - middle) / spread - stats.norm.ppf(q)
        assert away.abs().mean() < 0.12
        assert abs(away.mean()) < 0.1


def test_predict_needs_no_more_than_what_is_given(run: Path) -> None:
    """One row out for each row in, with empty figures where a given value is missing; from standard input as well."""
    given = (run / "given.csv").read_bytes()
    found = succeed("predict", "run", "-", "--format", "csv", "--keep-all", stdin=given, cwd=run).splitlines()
    assert found[0].replace('"', "") == "row_id,source,x,id,mean,median,q0.05,q0.95,status"
    assert [line.rsplit(",", 1)[1] for line in found[1:]] == ['"ok"', '"missing"', '"ok"']
    assert found[2].endswith(',"b",,,,,"missing"')


def test_whole_numbers_are_predicted_and_covered() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 1500)
    frame = pd.DataFrame({"x": x, "n": rng.binomial(4, 0.2 + 0.6 * x)})
    recipe = {"data": {"given": ["x"]}, "flow": {"type": "maf", **SMALL}, "train": {"epochs": 30}}
    found = evaluate(fit(recipe, frame[:1000]), [pa.Table.from_pandas(frame[1000:], preserve_index=False)])
    assert found.coverage is not None
    assert abs(found.coverage["90"] - 0.9) < 0.05  # whole intervals would hold more


def test_it_says_what_it_cannot_predict(run: Path, tmp_path: Path) -> None:
    for arguments, code, word in (
        (["run", "other.csv"], 3, "no column 'x'"),
        (["run", "given.csv", "--quantiles", "0.1,2"], 2, "'2' is not a number between 0 and 1"),
        (["run", "given.csv", "--quantiles", "low"], 2, "'low'"),
        (["run", "new.parquet", "--keep", "nothing"], 3, "no column 'nothing'"),
    ):
        done = flowcli("predict", *arguments, cwd=run)
        assert (done.returncode, done.stdout) == (code, "")
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1
    frame = gaussian(200, 3).assign(w=1.5 * gaussian(200, 4)["y"])
    two = fit({"data": {"given": ["x"]}, "flow": {"type": "maf", **SMALL}, "train": {"epochs": 1}}, frame)
    with pytest.raises(UsageError, match="this one is of y, w: `flowcli sample"):
        Predictor(two)
    none = fit({"flow": {"type": "maf", **SMALL}, "train": {"epochs": 1}}, frame)
    with pytest.raises(UsageError, match="without given columns"):
        Predictor(none)
    rows = [pa.Table.from_pandas(frame, preserve_index=False)]
    assert evaluate(two, rows).crps is None
    assert evaluate(none, rows).coverage is None


def test_its_page(tmp_path: Path) -> None:
    """The commands and the Python of recipes/conditional.md, on a table such as they name."""
    text = (ROOT / "recipes" / "conditional.md").read_text()
    (commands,), (code,) = blocks(text, "sh"), blocks(text, "python")
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, 200)
    price = np.exp(age / 30 + rng.standard_normal(200))
    frame = pd.DataFrame({"id": np.arange(200), "age": age, "price": price, "site": rng.choice(["a", "b"], 200)})
    for name in ("train", "test"):
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    frame[:20].drop(columns="price").to_parquet(tmp_path / "new.parquet", index=False)
    done = shell(commands.replace("fit conditional", "fit conditional -s train.epochs=2"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "within 95 % interval" in done.stdout
    assert len(pd.read_csv(tmp_path / "predicted.csv")) == 20
    assert len(pd.read_parquet(tmp_path / "drawn.parquet")) == 2000
    few = code.replace("overrides=[", 'overrides=["train.epochs=2", ')
    read = "import pandas; frame = pandas.read_parquet('train.parquet')\n"
    (tmp_path / "from_python.py").write_text(f"{read}{few}\nassert len(predicted) == 200\n")
    done = shell("python from_python.py", tmp_path)
    assert done.returncode == 0, done.stderr
