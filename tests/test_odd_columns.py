"""Columns as they come: signed zeros, sentinels, views, dictionaries of anything, and cells that do not fit."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import succeed

import flowcli
from flowcli import tensorfile
from flowcli.data.table import TableCodec
from flowcli.errors import DataError, ModelFileError
from flowcli.model import Model
from flowcli.recipe import Column, Data

N = 400
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal(N)
QUICK = {"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "train": {"epochs": 2}}


def fit(columns: dict[str, Any] | pa.Table, **options: Any) -> tuple[Model, pa.Table]:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns | {"noise": NOISE})
    return flowcli.fit(QUICK | {"data": {"columns": options}}, table), table


def codes(*levels: Any) -> np.ndarray:
    return np.array(levels, object)[RNG.integers(0, len(levels), N)]


HOURS = pa.array(np.arange(N) % 5 * 3_600, pa.int64()).cast(pa.timestamp("s"))
COLUMNS: dict[str, Any] = {
    "signed zeros": np.where(RNG.random(N) < 0.5, np.where(RNG.random(N) < 0.5, -0.0, 0.0), np.round(NOISE, 1)),
    "a sentinel": np.where(RNG.random(N) < 0.2, np.iinfo(np.int64).max, RNG.integers(-(2**60), 2**60, N)),
    "unsigned": pa.array([2**64 - 1 if RNG.random() < 0.2 else int(v) for v in RNG.integers(0, 2**60, N)], pa.uint64()),
    "single precision": pa.array(np.where(RNG.random(N) < 0.3, 0.1, NOISE), pa.float32()),
    "views": pa.array(codes("a", "b"), pa.string_view()),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([150, N], pa.int32()), pa.array([1.5, 2.5])),
    "whole levels": pa.array(codes(1, 5, 7)).dictionary_encode(),
    "moment levels": HOURS.dictionary_encode(),
    "zoned levels": HOURS.cast(pa.timestamp("us", "Europe/Berlin")).dictionary_encode(),
    "money levels": pa.array(codes(1, 2)).cast(pa.decimal128(30, 2)).dictionary_encode(),
    "one date": pa.array([datetime.date(2024, 2, 29)] * N).dictionary_encode(),
    "one number": pa.array([2**60 + 1] * N).dictionary_encode(),
    "days": pa.array(np.arange(N), pa.int32()).cast(pa.date32()),
    "decades": pa.array(codes(*(datetime.date(1000 * y, 1, 1) for y in range(1, 10))), pa.date32()),
    "holes": pa.array([None if i % 3 else "there" for i in range(N)]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_any_column_is_learned_scored_drawn_and_kept(name: str, tmp_path: Path) -> None:
    options = {"missing": "indicator"} if name == "holes" else {}
    model, table = fit({"c": COLUMNS[name]}, c=options)
    scores = model.score(table)
    assert (scores["status"] == "ok").all()
    assert np.isfinite(scores["log_prob"]).all()
    model.save(tmp_path / "m.safetensors")
    again = flowcli.load(tmp_path / "m.safetensors")
    assert again.score(table).equals(scores)
    drawn = pa.Table.from_batches(list(again.sample_batches(300)))
    assert (again.score(drawn)["status"] == "ok").all()
    if pa.types.is_dictionary(drawn.schema.field("c").type):
        plain = drawn["c"].combine_chunks().dictionary_decode()
        assert set(plain.to_pylist()) <= set(pa.array(COLUMNS[name]).dictionary_decode().to_pylist())


def test_a_sentinel_stays_what_it_is() -> None:
    for name, sentinel in (("a sentinel", 2**63 - 1), ("unsigned", 2**64 - 1)):
        model, _ = fit({"c": COLUMNS[name]})
        assert model.codec.column("c").atoms == (sentinel,)
        drawn = model.sample(500)["c"]
        assert (drawn == sentinel).mean() == pytest.approx(0.2, abs=0.08)


def test_a_spike_is_one_whatever_the_precision() -> None:
    model, table = fit({"c": COLUMNS["single precision"]})
    assert len(model.codec.column("c").atoms) == 1
    wide = table.set_column(0, "c", table["c"].cast(pa.float64()))
    rounded = table.set_column(0, "c", pa.array(np.where(np.isclose(wide["c"], 0.1), 0.1, wide["c"])))
    for other in (wide, rounded):
        assert np.allclose(model.log_prob(other), model.log_prob(table))


@pytest.mark.parametrize(
    ("values", "atoms"), [(np.arange(N), [0.5]), (pa.array(RNG.integers(0, 99, N), pa.int8()), [300])], ids=str
)
def test_atoms_that_a_column_cannot_have_are_refused(values: Any, atoms: list[float]) -> None:
    with pytest.raises(DataError, match=r"data\.columns\.c\.atoms"):
        fit({"c": values}, c={"type": "real" if atoms == [0.5] else "auto", "atoms": atoms})


def test_a_cell_that_does_not_fit_marks_its_row(tmp_path: Path) -> None:
    big = 2**60
    k = RNG.integers(0, 4, N)
    table = pa.table(
        {"k": pa.array(k, pa.int8()), "told": k * 3 + big, "one": np.full(N, 7), "level": k + big, "noise": NOISE}
    )
    model, _ = fit(table, told={"by": ["k"]}, level="category")
    model.save(tmp_path / "m.safetensors")
    first = f"{k[0]},{k[0] * 3 + big},7,{k[0] + big},0.5"
    rows = [
        first,
        first.replace(",7,", ",7.5,"),
        first.replace(",7,", ",1e30,"),
        f"{k[0]},{k[0] * 3 + big + 1},7,{k[0] + big},0.5",
        f"{k[0]},{k[0] * 3 + big},7,{big + 99},0.5",
        f"99,5,7,{k[0] + big},0.5",
    ]
    for text, statuses in (
        (rows[:1], ["ok"]),
        (rows[:3], ["ok", "constant_violated", "constant_violated"]),
        ([rows[0], rows[3], rows[4], rows[5]], ["ok", "constant_violated", "unseen_category", "ok"]),
    ):
        (tmp_path / "t.csv").write_text("\n".join(["k,told,one,level,noise", *text]) + "\n")
        found = pd.read_csv(io.StringIO(succeed("score", "m.safetensors", "t.csv", cwd=tmp_path)))
        assert found["status"].tolist() == statuses


def test_given_dates_go_on_after_the_last_one() -> None:
    when = pa.array(np.arange(N) * 3_600 + 1_704_067_200, pa.int64()).cast(pa.timestamp("s"))
    table = pa.table({"when": when, "noise": NOISE})
    model = flowcli.fit(QUICK | {"data": {"given": ["when"]}}, table)
    later = pa.array(np.arange(0, 86_400, 14_400) + 1_800_000_000, pa.int64()).cast(pa.timestamp("s"))
    context = model.codec.read_given(pa.table({"when": later})).numpy()
    hours = np.arctan2(context[:, 1], context[:, 2]) / (2 * np.pi) * 24 % 24
    assert np.allclose(hours, np.arange(8, 32, 4) % 24)


def test_dates_go_through_every_text_format(tmp_path: Path) -> None:
    days = pa.array(np.arange(N) % 60, pa.int32()).cast(pa.date32())
    model, table = fit({"day": days, "at": pa.array(np.arange(N) * 60_000, pa.int64()).cast(pa.timestamp("ms", "UTC"))})
    model.save(tmp_path / "m.safetensors")
    pq.write_table(table, tmp_path / "t.parquet")
    expected = model.log_prob(table)
    for format in ("csv", "tsv", "jsonl", "arrow"):
        succeed("sample", "m.safetensors", "-n", "50", "-o", f"drawn.{format}", cwd=tmp_path)
        drawn = pd.read_csv(io.StringIO(succeed("score", "m.safetensors", f"drawn.{format}", cwd=tmp_path)))
        assert (drawn["status"] == "ok").all(), format
    text = table.to_pandas()
    text.to_csv(tmp_path / "t.csv", index=False)
    found = pd.read_csv(io.StringIO(succeed("score", "m.safetensors", "t.csv", cwd=tmp_path)))
    assert np.allclose(found["log_prob"], expected)


def test_times_of_other_units_are_the_same_moments() -> None:
    minutes = pa.array(np.arange(N) * 60, pa.int64()).cast(pa.timestamp("s"))
    model, _ = fit({"t": minutes})
    for unit in ("ms", "us", "ns"):
        table = pa.table({"t": minutes.cast(pa.timestamp(unit)), "noise": NOISE})
        assert (model.score(table)["status"] == "ok").all()
    half = pa.array([60_500, 60_000], pa.int64()).cast(pa.timestamp("ms"))
    assert model.score(pa.table({"t": half, "noise": [0.0, 0.0]}))["status"].tolist() == ["nonfinite", "ok"]
    fine, _ = fit({"t": minutes.cast(pa.timestamp("ns"))})
    far = pa.array([253_402_300_740, 60], pa.int64()).cast(pa.timestamp("s"))  # the year 9999
    assert fine.score(pa.table({"t": far, "noise": [0.0, 0.0]}))["status"].tolist()[1] == "ok"


def forged(model: Model, folder: Path, column: int, change: dict[str, Any], value: bool = False) -> Path:
    model.save(folder / "m.safetensors")
    tensors, about = tensorfile.read(folder / "m.safetensors")
    about = json.loads(json.dumps(about))
    entry = about["codec"]["columns"][column]
    (entry["value"] if value else entry).update(change)
    tensorfile.write(folder / "m.safetensors", tensors, about)
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("c", {"counts": [10**400, 1]}),
        ("c", {"counts": [10**20, 1]}),
        ("k", {"missing": -5}),
        ("k", {"levels": [0, 10**6, 2 * 10**6]}),
        ("t", {"step": 10**30}),
        ("t", {"arrow_type": "double"}),
        ("z", {"atoms": ["x"]}),
        ("z", {"counts": [1]}),
        ("told", {"types": ["string"]}),
        ("told", {"by": ["nothing"]}),
        ("told", {"by": ["told"]}),
        ("told", {"values": [1]}),
    ],
    ids=str,
)
def test_a_forged_column_is_refused(column: str, change: dict[str, Any], tmp_path: Path) -> None:
    k = RNG.integers(0, 3, N)
    columns = {
        "c": codes("a", "b"),
        "k": pa.array(k, pa.int16()),
        "t": pa.array(np.arange(N) * 3_600, pa.int64()).cast(pa.timestamp("s", "UTC")),
        "z": np.where(k == 0, 0.0, NOISE),
        "told": k * 2.5,
    }
    model, _ = fit(columns, told={"by": ["k"]})
    place = [*columns].index(column)
    with pytest.raises(ModelFileError):
        Model.load(forged(model, tmp_path, place, change))


def test_a_column_that_varies_in_held_out_rows_alone_has_their_scale() -> None:
    whole = pa.table({"x": np.random.default_rng(0).normal(size=100), "rare": [5.0] * 99 + [7.0]})
    data = Data(columns={"rare": Column(type="real", atoms=[])})
    codec = TableCodec.fit(whole.slice(0, 99), data, whole)
    rows = codec.read(whole)
    y, _ = codec.encode(rows.raw, torch.full_like(rows.raw, 0.5))
    at = [column.name for column in codec.columns].index("rare")
    assert 1 < y[99, at] - y[0, at] < 100
