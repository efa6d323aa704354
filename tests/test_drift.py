"""New data that are not as the old: named, and handled, never taken for something else in silence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import flowcli, succeed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    frame = pd.DataFrame({"x": x, "k": rng.poisson(3, 300), "site": rng.choice(["a", "b"], 300), "on": x > 0})
    frame.to_parquet(folder / "t.parquet", index=False)
    settings = ("-s", "train.epochs=1", "-s", "flow.layers=1", "-s", "flow.hidden=[4]")
    succeed("fit", "quickstart", "t.parquet", "-o", "run", *settings, cwd=folder)
    return folder


def scored(folder: Path, frame: pd.DataFrame | pa.Table, *options: str) -> pd.DataFrame:
    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, folder / "new.parquet")
    return pd.read_csv(io.StringIO(succeed("score", "run", "new.parquet", *options, cwd=folder)))


def test_order_and_extra_columns_change_nothing(folder: Path) -> None:
    frame = pd.read_parquet(folder / "t.parquet")
    before = scored(folder, frame)
    assert scored(folder, frame[["on", "site", "k", "x"]].assign(new="?", when=pd.Timestamp(0))).equals(before)


def test_types_that_hold_the_same_values_are_read(folder: Path) -> None:
    frame = pd.read_parquet(folder / "t.parquet")
    before = scored(folder, frame)
    other = frame.assign(k=frame["k"].astype("int8"), site=frame["site"].astype("category"))
    assert scored(folder, other).equals(before)
    assert scored(folder, frame.assign(k=frame["k"].astype(float))).equals(before)


def test_a_new_category_is_marked_and_scored(folder: Path) -> None:
    frame = pd.read_parquet(folder / "t.parquet")
    found = scored(folder, frame.assign(site=["new", *frame["site"][1:]]))
    assert found["status"].tolist() == ["unseen_category", *["ok"] * 299]
    assert np.isfinite(found["score"]).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda frame: frame.drop(columns=["k"]), "the data has no column 'k'"),
        (lambda frame: frame.rename(columns={"site": "sites"}), "no column 'site'. Did you mean 'sites'?"),
        (lambda frame: frame.assign(x="1.5"), "column 'x': holds "),
        (lambda frame: frame.assign(site=3), "column 'site': holds int64, and the model was fitted on "),
        (lambda frame: frame.assign(on="yes"), "column 'on': holds "),
        (lambda frame: frame.assign(x=pd.Timestamp(0)), "column 'x': holds timestamp"),
    ],
)
def test_what_cannot_be_read_as_it_was_is_named(folder: Path, change, sentence: str) -> None:
    change(pd.read_parquet(folder / "t.parquet")).to_parquet(folder / "changed.parquet", index=False)
    done = flowcli("score", "run", "changed.parquet", "-o", "s.csv", cwd=folder)
    assert (done.returncode, done.stdout) == (3, "")
    assert sentence in done.stderr
    assert not (folder / "s.csv").exists()
