"""`evaluate --copies`: a model that gives its training rows back is found out, and one that has learned is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command import flowcli, succeed

import flowcli as package
from flowcli.data.thin import Thinned
from flowcli.errors import DataError
from flowcli.model import Model
from flowcli.scoring import copies, draw_like
from flowcli.scoring.copies import _at_least

FLOW = {"type": "maf", "transform": "spline", "layers": 3, "hidden": [32, 32]}
TRAIN = {"epochs": 30, "patience": 5, "lr": 5e-3}


def bumps(n: int, seed: int) -> pd.DataFrame:
    """Eight bumps in the plane, a skew and a heavy-tailed column, and one of words."""
    rng = np.random.default_rng(seed)
    k = rng.integers(0, 8, n)
    return pd.DataFrame(
        {
            "a": np.cos(k) * 4 + rng.standard_normal(n) * 0.4,
            "b": np.sin(k) * 4 + rng.standard_normal(n) * 0.4,
            "c": rng.exponential(size=n),
            "d": rng.standard_t(3, n),
            "word": np.where(rng.random(n) < 0.1, "rare", np.where(k > 3, "high", "low")),
        }
    )


def few(n: int, seed: int) -> pd.DataFrame:
    """A table with so few different rows that most new ones are old."""
    rng = np.random.default_rng(seed)
    a = rng.poisson(3, n)
    return pd.DataFrame({"a": a, "b": rng.binomial(6, 0.3, n) + a // 3, "c": rng.choice(list("abcd"), n)})


def table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def fit(rows: pd.DataFrame, given: list[str] | None = None, **options: Any) -> Model:
    recipe = {"flow": FLOW, "train": TRAIN, "data": {"given": given or []}} | options
    return package.fit(recipe, rows)


@pytest.fixture(scope="module")
def learned() -> Model:
    return fit(bumps(12_000, 1))  # of 3000, draws lean to the rows that were learned from, and rightly so


def test_a_model_that_has_learned_does_not_copy(learned: Model) -> None:
    train, new = table(bumps(12_000, 1)), table(bumps(1000, 2))
    for seed in range(3):
        found = copies(learned, draw_like(learned, new, seed), new, train)
        assert (found.rows, found.rows_new, found.rows_train) == (1000, 1000, 12_000)
        assert found.identical == found.identical_new == 0
        assert found.near_new == pytest.approx(0.05, abs=0.002)
        assert not found.copied
        assert found.p_value > 0.01
        assert found.median == pytest.approx(found.median_new, rel=0.2)
        assert 0.4 < found.auroc < 0.55


def test_training_rows_are_copies(learned: Model) -> None:
    train, new = bumps(3000, 1), table(bumps(1000, 2))
    found = copies(learned, table(train[::3]), new, table(train))
    assert found.identical == found.near == 1
    assert found.median == found.low == 0
    assert found.auroc == 1
    assert found.copied


@pytest.mark.parametrize("blur", [0.0, 0.01])
def test_one_copy_in_twenty_is_found(learned: Model, blur: float) -> None:
    """Where neither the median nor the AUROC tells."""
    train, new = bumps(3000, 1), table(bumps(1000, 2))
    drawn = draw_like(learned, new).to_pandas()
    old = train[:50].copy()
    old[list("abcd")] += blur * np.random.default_rng(0).standard_normal((50, 4))
    found = copies(learned, table(pd.concat([old, drawn[50:]])), new, table(train))
    assert found.copied
    assert found.identical == (0.05 if blur == 0 else 0)
    assert found.auroc < 0.55


def test_a_flow_trained_far_too_long_copies(tmp_path: Path) -> None:
    """Forty rows, held out from themselves: nothing says when to stop."""
    train, new = bumps(40, 1).drop(columns="word"), table(bumps(400, 2))
    train.to_parquet(tmp_path / "t.parquet")
    model = fit(
        train, data={"validation": str(tmp_path / "t.parquet")}, train={"epochs": 500, "patience": 500, "lr": 5e-3}
    )
    found = copies(model, draw_like(model, new), new, table(train))
    assert found.copied
    assert found.identical == 0  # not one is exact
    assert found.median < 0.7 * found.median_new
    assert found.auroc > 0.7


def test_rows_identical_by_chance_are_no_copies() -> None:
    train, new = few(2000, 1), table(few(1000, 2))
    model = fit(train, train=TRAIN | {"epochs": 10})
    found = copies(model, draw_like(model, new), new, table(train))
    assert found.identical > 0.8
    assert found.identical_new > 0.8
    assert found.near_new == found.identical_new
    assert not found.copied
    assert copies(model, table(train[:1000]), new, table(train)).copied  # every one of them is


def test_identical_is_by_value(learned: Model) -> None:
    """Whole numbers that were never seen are not alike because they share a cell, and −0 is 0."""
    model = fit(few(2000, 1), train=TRAIN | {"epochs": 1})
    odd = table(pd.DataFrame({"a": [100, 101], "b": [1, 1], "c": ["a", "a"]}))
    found = copies(model, odd.slice(0, 1), odd.slice(1, 1), odd.slice(1, 1))
    assert (found.identical, found.identical_new) == (0, 1)
    zero = bumps(1, 1).assign(a=0.0)
    assert copies(learned, table(zero.assign(a=-0.0)), table(zero), table(zero)).identical == 1


def test_incomplete_rows_are_left_out(learned: Model) -> None:
    train, new = bumps(3000, 1), bumps(400, 2)
    new.loc[:99, "a"] = np.inf
    new.loc[100:149, "word"] = "unseen"
    drawn = draw_like(learned, table(new))
    found = copies(learned, drawn, table(new), table(train))
    assert (found.rows, found.rows_new) == (250, 250)
    with pytest.raises(DataError, match="no row of the data is complete"):
        draw_like(learned, table(new[:100]))
    with pytest.raises(DataError, match="of the training rows none is complete"):
        copies(learned, drawn, table(new), table(new[:100]))


def test_given_columns_are_those_of_the_new_rows() -> None:
    train, new = bumps(1500, 1), bumps(500, 2)
    new.loc[:9, "word"] = None
    model = fit(train, given=["word"], train=TRAIN | {"epochs": 10})
    drawn = draw_like(model, table(new))
    assert drawn.column("word").to_pylist() == new["word"].tolist()[10:]
    found = copies(model, drawn, table(new), table(train))
    assert not found.copied
    assert copies(model, table(train[:500]), table(new), table(train)).copied


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("rows", [5, 10, 11, 20, 21, 1000])
def test_thinned_rows_are_evenly_spread(rows: int, batch: int) -> None:
    kept = Thinned(10, ["x"])
    batches = table(pd.DataFrame({"x": range(rows), "y": 0})).to_batches(batch)
    assert sum(part.num_rows for part in kept.passing(batches)) == rows
    x = kept.table().column("x").to_pylist()
    assert kept.table().column_names == ["x"]
    assert len(x) == min(rows, 10)
    assert x[0] == 0
    steps = np.diff(x)
    assert steps.min() >= 1
    assert steps.max() <= 2 * steps.min()
    assert rows - 1 - x[-1] <= steps.max()
    with pytest.raises(DataError, match="the data: no rows"):
        Thinned(10, ["x"]).table()
    with pytest.raises(DataError, match="these has no column 'z'"):
        next(Thinned(10, ["z"], "these").passing(batches))


def test_thinned_levels_may_differ_between_batches() -> None:
    kept = Thinned(3, ["x"])
    for levels in (["a", "b"], ["c", "a"], ["b", "d"]):
        kept.add(pa.record_batch({"x": pa.array(levels).dictionary_encode()}))
    assert kept.table().column("x").to_pylist() == ["a", "c", "d"]


def test_the_p_value_is_fishers() -> None:
    for a, n, b, m in ((3, 10, 1, 12), (0, 5, 4, 6), (10, 10, 0, 10), (40, 300, 15, 280)):
        ways = [math.comb(n, k) * math.comb(m, a + b - k) for k in range(a, min(a + b, n) + 1)]
        assert _at_least(a, n, b, m) == pytest.approx(sum(ways) / math.comb(n + m, a + b), rel=1e-9)


def test_chance_is_rarely_called_a_copy(learned: Model) -> None:
    """Real rows in the place of draws: the p-value is below a tenth at most a tenth of the time."""
    train = table(bumps(500, 1))
    found = [copies(learned, table(bumps(200, 2 * i)), table(bumps(200, 2 * i + 1)), train) for i in range(1, 101)]
    assert np.mean([one.p_value < 0.1 for one in found]) < 0.2
    assert not any(one.copied for one in found)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, learned: Model) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    learned.save(folder / "model.safetensors")
    (folder / "train").mkdir()
    train = bumps(3000, 1)
    train[:1500].to_parquet(folder / "train" / "1.parquet")
    train[1500:].to_parquet(folder / "train" / "2.parquet")
    bumps(300, 2).assign(odd=[0, 1] * 150).to_csv(folder / "new.csv", index=False)
    train[:300].to_csv(folder / "old.csv", index=False)
    return folder


def test_the_command_says_it(folder: Path) -> None:
    parts = ("--copies", "train/1.parquet", "--copies", "train/2.parquet")
    found = [
        json.loads(succeed("evaluate", "model.safetensors", "new.csv", *asked, "--json", cwd=folder))
        for asked in (("--copies", "train"), ("--copies", "train/*.parquet"), parts, ("--copies", "train", "--seed", 1))
    ]
    assert found[0] == found[1] == found[2] != found[3]
    assert found[0].pop("copies")["rows_train"] == 3000
    assert found[0] == json.loads(succeed("evaluate", "model.safetensors", "new.csv", "--json", cwd=folder))
    text = succeed("evaluate", "model.safetensors", "new.csv", "--copies", "train", cwd=folder)
    assert "300 drawn and 300 new rows, against 3,000" in text
    assert "copies                no more than chance gives (p = " in text


def test_training_rows_are_not_new(folder: Path) -> None:
    done = flowcli("evaluate", "model.safetensors", "old.csv", "--copies", "train", cwd=folder)
    assert done.returncode == 0
    assert "every row of DATA is also a training row" in done.stderr


def test_new_rows_are_thinned(folder: Path) -> None:
    bumps(5001, 3).to_parquet(folder / "many.parquet")
    found = json.loads(
        succeed("evaluate", "model.safetensors", "many.parquet", "--copies", "old.csv", "--json", cwd=folder)
    )
    assert found["rows"] == 5001
    assert found["copies"]["rows"] == found["copies"]["rows_new"] == 5000


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (("new.csv", "--copies", "nowhere.csv"), 3, "nowhere.csv: no such file"),
        (("new.csv", "--copies", "train", "--label", "odd"), 2, "rows like the training rows"),
        (("-", "--copies", "-"), 2, "can be read only once"),
        (("new.csv", "--copies", "other.csv"), 3, "the training data has no column 'a'"),
    ],
)
def test_what_cannot_be(folder: Path, asked: tuple[str, ...], code: int, said: str) -> None:
    (folder / "other.csv").write_text("x\n1\n")
    done = flowcli("evaluate", "model.safetensors", *asked, cwd=folder)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""


def test_images_have_no_such_distance(world: Path) -> None:
    done = flowcli("evaluate", "run", "p", "--copies", "p", cwd=world)
    assert done.returncode == 2
    assert "--copies: is for tables, and this model is of images." in done.stderr
