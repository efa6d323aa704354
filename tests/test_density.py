"""The promise that matters most: model.log_prob integrates to 1 in the user's units, and sample draws from it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import flowcli
from flowcli.recipe import Score

FLOWS: dict[str, dict[str, Any]] = {
    "planar": {"type": "planar", "layers": 6},
    "radial": {"type": "radial", "layers": 6},
    "realnvp-affine": {"type": "realnvp", "layers": 4, "hidden": [32]},
    "realnvp-spline": {"type": "realnvp", "layers": 3, "hidden": [32], "transform": "spline"},
    "maf-affine": {"type": "maf", "layers": 3, "hidden": [32]},
    "maf-spline": {"type": "maf", "layers": 3, "hidden": [32], "transform": "spline"},
    "iaf-affine": {"type": "maf", "layers": 2, "hidden": [32], "direction": "iaf"},
}
BASES = {"radial": "student_t", "realnvp-affine": "mixture", "maf-affine": "uniform"}
DRAWS = 200_000


def tables() -> dict[str, pd.DataFrame]:
    """2-D tables in unlike units: two reals, a real and a category, an integer and a category."""
    rng = np.random.default_rng(0)
    n = 3000
    a = rng.standard_normal(n)
    b = np.sin(2 * a) + 0.4 * rng.standard_normal(n)
    kind = np.where(b + 0.3 * rng.standard_normal(n) > 0.5, "high", np.where(rng.random(n) < 0.4, "mid", "low"))
    count = rng.poisson(np.exp(1 + 0.5 * a))
    return {
        "real-real": pd.DataFrame({"metres": 1e6 + 250 * a, "grams": 1e-4 * b}),
        "real-category": pd.DataFrame({"metres": -40 + 1e3 * a, "kind": kind}),
        "integer-category": pd.DataFrame({"count": 2_000_000_000 + count, "kind": kind}),
    }


def cells(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Points that cover a column, with their weights: a fine grid, whole numbers, or levels and one never seen."""
    if column.dtype.kind == "f":
        centre, spread = column.median(), column.std()
        t = np.linspace(-6, 6, 601)
        return centre + spread * np.sinh(t), spread * np.cosh(t) * (t[1] - t[0])
    if column.dtype.kind == "i":
        grid = np.arange(column.min() - 120, column.max() + 120)
        return grid, np.ones(len(grid))
    levels = np.array([*sorted(column.unique()), "never seen"])
    return levels, np.ones(len(levels))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", tables())
def test_mass_is_one_and_samples_follow_it(flow: str, name: str) -> None:
    frame = tables()[name]
    recipe = {
        "flow": FLOWS[flow] | {"base": BASES.get(flow, "gaussian")},
        "train": {"epochs": 4, "ema": 0.9},
        # Far more points than a user needs: where the tails are heavier than the Gaussian's, the density in the outer
        # cells grows towards their ends, and the average over points settles slowly.
        "score": {"dequantization_samples": 1024},
    }
    model = flowcli.fit(recipe, frame)
    assert model.about["best_epoch"] > 0  # trained: not the Gaussian it starts from
    (xs, wx), (ys, wy) = (cells(frame[c]) for c in frame)
    grid = pd.DataFrame(list(itertools.product(xs, ys)), columns=frame.columns)
    mass = (np.exp(model.log_prob(grid)) * np.outer(wx, wy).ravel()).reshape(len(xs), len(ys))
    assert mass.sum() == pytest.approx(1, abs=0.005)
    usual = replace(model, recipe=model.recipe.model_copy(update={"score": Score()}))
    assert np.exp(usual.log_prob(grid)) @ np.outer(wx, wy).ravel() == pytest.approx(1, abs=0.005)

    drawn = model.sample(DRAWS)
    assert list(drawn.dtypes) == list(frame.dtypes)
    x_cell, y_cell = (
        coarse(points, frame[c], frame[c]) for points, c in ((xs, frame.columns[0]), (ys, frame.columns[1]))
    )
    expected = np.zeros((x_cell.max() + 1, y_cell.max() + 1))
    np.add.at(expected, (x_cell[:, None], y_cell[None, :]), mass)
    found = np.zeros_like(expected)
    np.add.at(found, tuple(coarse(drawn[c].to_numpy(), drawn[c], frame[c]) for c in frame), 1 / DRAWS)
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    # 5 standard errors over some 250 cells, and the grid's own error at the edge of a coarse cell.
    assert np.all(np.abs(found - expected) <= 5 * error + 0.004 * expected + 2e-4), np.abs(found - expected).max()


def coarse(values: np.ndarray, column: pd.Series, fitted: pd.Series) -> np.ndarray:
    """Cells for frequencies: eighths of the fitted column; or its levels, the unseen one going with the last, as
    ``sample`` writes it."""
    if fitted.dtype.kind in "fi":
        edges = np.quantile(fitted, np.linspace(0, 1, 9)[1:-1])
        if fitted.dtype.kind == "i":
            edges = np.unique(np.floor(edges)) + 0.5
        else:
            # On the grid's own cell borders, so that the grid sums exactly over each coarse cell.
            grid, _ = cells(fitted)
            borders = grid[:-1] + np.diff(grid) / 2
            edges = borders[np.searchsorted(borders, edges)]
        return np.searchsorted(edges, values)
    levels = sorted(fitted.unique())
    return np.minimum(np.searchsorted(levels, values), len(levels) - 1)


@pytest.mark.parametrize("flow", ["maf-spline", "realnvp-affine", "radial"])
def test_a_table_of_every_kind_of_column_sums_to_one(flow: str) -> None:
    """Real, counted, categorical, boolean, and a column with a spike and gaps: the discrete part is enumerated, the
    continuous one integrated."""
    rng = np.random.default_rng(1)
    n = 2000
    x = rng.standard_normal(n)
    frame = pd.DataFrame(
        {
            "x": 300 + 20 * x,
            "k": rng.binomial(4, 1 / (1 + np.exp(-x))),
            "c": rng.choice(["a", "b"], n, p=[0.8, 0.2]),
            "b": rng.random(n) < 0.5 + 0.3 * np.tanh(x),
            "z": np.where(rng.random(n) < 0.3 + 0.2 * np.tanh(x), 0.0, np.exp(0.5 * x + 0.5 * rng.standard_normal(n))),
        }
    )
    frame.loc[rng.random(n) < 0.1, "z"] = np.nan
    model = flowcli.fit(
        {
            "flow": FLOWS[flow] | {"hidden": [32]},
            "train": {"epochs": 5},
            "data": {"columns": {"z": {"transform": "log", "missing": "indicator"}}},
        },
        frame,
    )  # fmt: skip
    assert [column.kind for column in model.codec.columns] == ["real", "counted", "category", "category", "gated"]
    xs, weights = cells(frame["x"])
    xs, weights = xs[::15], 15 * weights[::15]
    logs = np.linspace(-6, 6, 49)
    zs, z_weights = [*np.exp(logs), 0.0, np.nan], [*np.exp(logs) * 0.25, 1.0, 1.0]
    grid = pd.DataFrame(
        list(itertools.product(xs, range(-2, 8), ["a", "b", "?"], [False, True], zs)), columns=frame.columns
    )
    shape = (len(xs), 10 * 3 * 2, len(zs))
    mass = np.exp(model.log_prob(grid)).reshape(shape).sum(1)
    assert weights @ mass @ z_weights == pytest.approx(1, abs=0.01)
    drawn = model.sample(20_000)
    assert drawn["z"].isna().mean() == pytest.approx(weights @ mass[:, -1], abs=0.01)
    assert (drawn["z"] == 0).mean() == pytest.approx(weights @ mass[:, -2], abs=0.015)


def test_wide_integers_among_other_columns_sum_to_one() -> None:
    rng = np.random.default_rng(1)
    n = 2000
    x = rng.standard_normal(n)
    wide = rng.poisson(np.exp(5 + 0.3 * x))
    frame = pd.DataFrame({"wide": wide, "c": rng.choice(["a", "b"], n), "spiky": np.where(x > 0.5, 7, wide[::-1])})
    model = flowcli.fit({"flow": FLOWS["maf-affine"], "train": {"epochs": 5}}, frame)
    assert [column.kind for column in model.codec.columns] == ["integer", "category", "gated"]
    step = 6  # a sum over every sixth whole number, the function being smooth, and over the spike itself
    wides, spiky = np.arange(0, 900, step), np.arange(2, 900, step)
    grid = pd.DataFrame(list(itertools.product(wides, ["a", "b"], [*spiky, 7])), columns=frame.columns)
    mass = np.exp(model.log_prob(grid)).reshape(len(wides), 2, -1).sum((0, 1)) * step
    assert mass[:-1].sum() * step + mass[-1] == pytest.approx(1, abs=0.02)


def test_given_columns_make_a_conditional_density() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    site = rng.choice(["a", "b"], n)
    shift = rng.standard_normal(n)
    y = 50 + 10 * np.where(site == "a", shift + 0.3 * rng.standard_normal(n), -shift + rng.standard_normal(n))
    frame = pd.DataFrame({"site": site, "shift": shift, "y": y})
    model = flowcli.fit({"flow": {"type": "maf", "layers": 3}, "data": {"given": ["site", "shift"]}}, frame)
    grid, weight = cells(frame["y"])
    for where, by in (("a", 1.0), ("b", -1.0), ("a", -1.0)):
        at = pd.DataFrame({"site": where, "shift": by, "y": grid})
        density = np.exp(model.log_prob(at))
        assert density @ weight == pytest.approx(1, abs=0.005)
        mean = (density * grid) @ weight
        assert mean == pytest.approx(50 + 10 * by * (1 if where == "a" else -1), abs=1.5)
        drawn = model.sample(4000, given={"site": where, "shift": by})
        assert set(drawn["site"]) == {where}
        assert drawn["y"].mean() == pytest.approx(mean, abs=5 * drawn["y"].std() / 4000**0.5)
