"""Rows that lack values: what is there is scored as the density of what is there, and training bears them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import flowcli
from flowcli.baseline import Baseline, scores, unscored
from flowcli.data.columns import Cells
from flowcli.errors import DataError
from flowcli.model import Model

RECIPE = {"flow": {"type": "maf", "layers": 2, "hidden": [32]}, "train": {"epochs": 8}}


def gaussian_log_prob(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The closed form."""
    gap = x - mean
    squares = gap @ np.linalg.solve(covariance, gap)
    return -0.5 * (squares + np.linalg.slogdet(covariance)[1] + len(x) * np.log(2 * np.pi))


def test_the_marginal_of_a_gaussian_is_its_marginal() -> None:
    """A flow that is a Gaussian, as all begin: the marginals have a closed form."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    x = rng.normal(size=(3000, 5)) @ mix + 7
    frame = pd.DataFrame(x, columns=list("abcde"))
    model = flowcli.fit({"flow": RECIPE["flow"] | {"base": "gaussian"}, "train": {"epochs": 1, "lr": 1e-9}}, frame)
    mean, covariance = x.mean(0), np.cov(x.T)
    some = x[:200].copy()
    holes = rng.random(some.shape) < 0.4
    holes[holes.all(1), 0] = False
    exact = np.array(
        [gaussian_log_prob(row[~h], mean[~h], covariance[np.ix_(~h, ~h)]) for row, h in zip(some, holes, strict=True)]
    )
    some[holes] = np.nan
    found = model.score(pd.DataFrame(some, columns=frame.columns))
    assert np.abs(found["log_prob"] - exact).max() < 0.2  # the held-out tenth moves the Gaussian a little
    assert np.corrcoef(found["log_prob"].rank(), pd.Series(exact).rank())[0, 1] > 0.995
    assert (found["status"] == np.where(holes.any(1), "missing", "ok")).all()
    assert (found["log_prob_error"].isna() == ~holes.any(1)).all()
    assert found["log_prob_error"].max() < 0.2
    # As if complete: rows that lack values score like the others, not by how much they lack.
    nothing = model.score(pd.DataFrame(np.full((1, 5), np.nan), columns=frame.columns))
    assert nothing["log_prob"][0] == pytest.approx(0, abs=0.05)
    assert nothing["score"][0] == pytest.approx(-model.about["held_out_log_prob"], abs=0.3)


@pytest.fixture(scope="module")
def mixed_model() -> Model:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    frame = pd.DataFrame(
        {
            "x": 50 + 10 * x,
            "c": np.where(x + rng.standard_normal(3000) > 0.5, "a", rng.choice(["b", "c"], 3000)),
            "k": rng.poisson(np.exp(1 + 0.5 * x)),
            "z": np.where(rng.random(3000) < 0.3, 0.0, np.exp(x + 0.5 * rng.standard_normal(3000))),
        }
    )
    return flowcli.fit(RECIPE | {"data": {"columns": {"z": {"transform": "log"}}}}, frame)


@pytest.mark.parametrize("row", [(60.0, "b", 2, 1.5), (38.0, "a", 1, 0.0), (45.0, "c", 4, 0.3)])
def test_marginals_are_sums_and_integrals_of_the_density(mixed_model: Model, row: tuple) -> None:
    x, c, k, z = row
    lacking = pa.table(
        {
            "x": [None, x, x, x],
            "c": [c, None, c, c],
            "k": pa.array([k, k, None, k], pa.int64()),
            "z": [z, z, z, None],
        }
    )
    found = mixed_model.score(lacking)
    xs = np.linspace(-50, 150, 801)
    logs = np.linspace(-8, 8, 801)
    over = {
        "x": (pd.DataFrame({"x": xs, "c": c, "k": k, "z": z}), np.full(801, xs[1] - xs[0])),
        "c": (pd.DataFrame({"x": x, "c": ["a", "b", "c", "?"], "k": k, "z": z}), np.ones(4)),
        "k": (pd.DataFrame({"x": x, "c": c, "k": np.arange(-5, 60), "z": z}), np.ones(65)),
        "z": (
            pd.DataFrame({"x": x, "c": c, "k": k, "z": [*np.exp(logs), 0.0]}),
            np.append(np.exp(logs) * (logs[1] - logs[0]), 1.0),
        ),
    }
    for i, (grid, weights) in enumerate(over.values()):
        exact = np.log(np.exp(mixed_model.log_prob(grid)) @ weights)
        assert found["log_prob"][i] == pytest.approx(exact, abs=max(0.02, 4 * found["log_prob_error"][i]))


def test_training_bears_missing_values() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4000)
    frame = pd.DataFrame({"x": x, "y": x + 0.3 * rng.standard_normal(4000), "k": rng.poisson(np.exp(x))})
    holes = frame.mask(pd.DataFrame(rng.random(frame.shape) < 0.2, columns=list(frame)))
    columns = {name: {"missing": "marginalise"} for name in frame}
    whole = flowcli.fit(RECIPE | {"train": {"epochs": 20}}, frame)
    model = flowcli.fit(RECIPE | {"train": {"epochs": 20}, "data": {"columns": columns}}, holes)
    assert model.about["rows"] == 3600  # none is left out
    fresh = pd.DataFrame({"x": x[:500]}).assign(y=lambda f: f["x"] + 0.3 * rng.standard_normal(500), k=2)
    assert model.log_prob(fresh).mean() > whole.log_prob(fresh).mean() - 0.15
    assert model.sample(2000)[["x", "y"]].corr().iloc[0, 1] == pytest.approx(0.96, abs=0.03)
    assert not model.sample(100).isna().any(axis=None)


def test_an_imputed_value_is_the_usual_one() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": 5 + rng.standard_normal(500), "c": rng.choice(["a", "b"], 500, p=[0.8, 0.2])})
    frame.loc[:50, "x"] = np.nan
    frame.loc[40:60, "c"] = None
    columns = {"x": {"missing": "impute"}, "c": {"missing": "impute"}}
    model = flowcli.fit(RECIPE | {"data": {"columns": columns}}, frame)
    x = model.codec.column("x").usual()[0]
    assert x == pytest.approx(5, abs=0.1)
    found = model.score(pd.DataFrame({"x": [np.nan, x], "c": [None, "a"]}))
    assert found["log_prob"][0] == found["log_prob"][1]
    assert found["status"].tolist() == ["ok", "ok"]


def test_given_values_must_be_there_or_imputed() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(500)
    frame = pd.DataFrame({"x": x, "y": x + rng.standard_normal(500)})
    model = flowcli.fit(RECIPE | {"data": {"given": ["x"]}}, frame)
    found = model.score(pd.DataFrame({"x": [np.nan, 1.0], "y": [0.0, np.nan]}))
    assert found["log_prob"].isna().tolist() == [True, False]
    assert found["status"].tolist() == ["missing", "missing"]
    frame.loc[:9, "x"] = np.nan
    with pytest.raises(DataError, match=r"'x'.*missing"):
        flowcli.fit(RECIPE | {"data": {"given": ["x"], "columns": {"x": {"missing": "indicator"}}}}, frame)
    imputing = flowcli.fit(RECIPE | {"data": {"given": ["x"], "columns": {"x": {"missing": "impute"}}}}, frame)
    assert imputing.score(frame.head(20))["log_prob"].notna().all()


def test_moments_of_rows_with_holes_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    x = torch.from_numpy(rng.normal(size=(8000, 4)) @ mix)
    holes = torch.from_numpy(rng.random((8000, 4)) < 0.25)
    found = Baseline.of(torch.where(holes, 0.0, x), holes)
    whole = Baseline.of(x, None)
    assert (found.mean - whole.mean).abs().max() < 0.06
    scale = whole.covariance.diagonal().sqrt()
    assert ((found.covariance - whole.covariance) / scale / scale[:, None]).abs().max() < 0.05


def test_draws_for_holes_have_the_density_they_are_said_to() -> None:
    """E_q[f(m)/q(m)] over the draws is ∫ f, for a Gaussian f beside the proposal, whatever else is missing."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 3)))
    cells = (Cells(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), None),)
    codes = torch.from_numpy(rng.choice(3, 2000, p=[0.2, 0.5, 0.3])).double()[:, None]
    y = torch.cat([codes + 0.5, x], 1)
    base = Baseline.of(torch.cat([codes + torch.from_numpy(rng.random((2000, 1))), x], 1), None, cells)
    n = 20_000
    rows = y[:1].expand(n, 4).clone()
    missing = torch.tensor([True, False, True, True]).expand(n, 4)
    total = 0.0
    for spread in (1.0, 2.0):
        drawn, log_q = base.completed(rows, missing, torch.from_numpy(rng.standard_normal((n, 4))), spread)
        assert torch.equal(drawn[:, 1], rows[:, 1])
        assert ((drawn[:, 0] >= 0) & (drawn[:, 0] < 3)).all()
        centre = torch.tensor([0.3, -0.2], dtype=torch.float64)
        log_f = -0.5 * ((drawn[:, 2:] - centre) / 0.8).square().sum(1) - 2 * np.log(0.8) - np.log(2 * np.pi) - np.log(3)
        total += float((log_f - log_q).exp().mean()) / 2
    assert total == pytest.approx(1, abs=0.05)


def test_scores_have_an_inverse_and_their_slope() -> None:
    cells = (Cells(torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64), None),)
    y = torch.tensor([[0.3, 1.0], [1.9, 2.0], [2.01, -1.0]], dtype=torch.float64, requires_grad=True)
    g, log_slope = scores(y, cells)
    (slope,) = torch.autograd.grad(g[:, 0].sum(), y)
    assert torch.allclose(slope[:, 0].log(), log_slope)
    back, again = unscored(g, cells, torch.ones(3, 2, dtype=torch.bool))
    assert torch.allclose(back, y, atol=1e-9)
    assert torch.allclose(again, log_slope)
