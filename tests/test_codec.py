"""The codec: exact both ways, with the exact Jacobian, and honest about what it cannot read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcli.data.codec import TableCodec
from flowcli.data.columns import Category, Constant, Integer, Real, arrow_type, from_dict, robust_scale
from flowcli.data.noise import lattice, uniforms
from flowcli.data.status import MISSING, NONFINITE, OK, UNSEEN, VIOLATED
from flowcli.errors import DataError
from flowcli.recipe import Column, Data

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


def fit(frame: dict[str, Any] | pd.DataFrame, **data: Any) -> TableCodec:
    table = pa.table(frame) if isinstance(frame, dict) else pa.Table.from_pandas(frame, preserve_index=False)
    return TableCodec.fit(table.select(TableCodec.used(table.schema, Data(**data))), Data(**data))


def middle(raw: torch.Tensor) -> torch.Tensor:
    return torch.full_like(raw, 0.5)


@given(st.lists(finite, min_size=8, max_size=50, unique=True))
@settings(max_examples=200, deadline=None)
def test_real_columns_round_trip(values: list[float]) -> None:
    column = Real.fit("x", pa.array(values), "none", None, None)
    raw, status = column.read(pa.array(values))
    assert (status == OK).all()
    y, log_det = column.encode(torch.from_numpy(raw), middle(torch.from_numpy(raw)))
    back = column.write(column.decode(y).numpy()).to_numpy()
    spread = max(map(abs, values)) + abs(column.centre)
    assert np.abs(back - np.array(values)).max() <= 1e-12 * spread
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=50, unique=True))
@settings(max_examples=200, deadline=None)
def test_integer_columns_near_each_other_are_exact_at_any_offset(values: list[int]) -> None:
    low = min(values)
    near = sorted({min(low + v % 1000, 2**63 - 1) for v in values} | {low})
    column = Integer.fit("k", pa.array(near, pa.int64()))
    raw, _ = column.read(pa.array(near, pa.int64()))
    assert raw.tolist() == [v - low for v in near]
    y, _ = column.encode(torch.from_numpy(raw), middle(torch.from_numpy(raw)))
    assert column.write(column.decode(y).numpy()).to_pylist() == near


@pytest.mark.parametrize(
    ("transform", "values", "bounds"),
    [
        ("none", [1e12 + i for i in range(20)], {}),
        ("log", [10.0**i for i in range(-10, 10)], {}),
        ("asinh", [math.sinh(i) for i in range(-10, 11)], {}),
        ("logit", [2 + 3 * i / 21 for i in range(1, 21)], {"low": 2.0, "high": 5.0}),
    ],
)
def test_real_transforms_have_their_derivative(transform: str, values: list[float], bounds: dict[str, float]) -> None:
    column = Real.fit("x", pa.array(values), transform, bounds.get("low"), bounds.get("high"))
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y, log_det = column.encode(x, middle(x))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert log_det.detach().numpy() == pytest.approx(slope.log().numpy(), abs=1e-9)
    assert column.decode(y.detach()).numpy() == pytest.approx(np.array(values), rel=1e-9)
    assert y.abs().max() < 5


@given(st.lists(st.integers(1, 500), min_size=2, max_size=12), st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_categories_are_cells_of_the_gaussian(counts: list[int], u: float) -> None:
    levels = [f"level {i:02d}" for i in range(len(counts))]
    values = pa.array([level for level, n in zip(levels, counts, strict=True) for _ in range(n)])
    column = Category.fit("c", values, asked=True)
    codes = torch.arange(len(levels) + 1, dtype=torch.float64)
    y, _ = column.encode(codes, torch.full_like(codes, u))
    assert column.decode(y[:-1]).tolist() == codes[:-1].tolist()
    # Under the standard Gaussian the cells' masses are the smoothed frequencies, for any u: log φ(y) + log|dy/du|.
    y, log_det = column.encode(codes, torch.full_like(codes, u))
    mass = (log_det - 0.5 * y**2 - 0.5 * math.log(2 * math.pi)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    assert mass[0].item() == pytest.approx((counts[0] + 1) / (sum(counts) + len(counts) + 1), rel=1e-6)


def test_one_giant_does_not_squash_the_others() -> None:
    values = np.append(np.random.default_rng(0).normal(5, 2, 9_999), 1e12)
    centre, scale = robust_scale(values)
    assert centre == pytest.approx(5, abs=0.1)
    assert scale == pytest.approx(2, rel=0.05)


def test_an_hour_of_epoch_seconds_keeps_its_values() -> None:
    seconds = np.arange(1_700_000_000, 1_700_003_600)
    codec = fit({"t": seconds, "x": np.random.default_rng(0).normal(size=3600)})
    rows = codec.read(pa.table({"t": seconds, "x": np.zeros(3600)}))
    y, _ = codec.encode(rows.raw, middle(rows.raw))
    assert len(np.unique(y[:, 0].float().numpy())) == 3600


def test_types_are_found(mixed: pd.DataFrame) -> None:
    codec = fit(mixed.assign(whole=mixed["count"].astype(float)))
    assert {c.name: c.kind for c in codec.columns} == {
        "x": "real", "count": "integer", "site": "category", "flag": "category", "y": "real", "unit": "constant",
        "whole": "integer",
    }  # fmt: skip
    assert codec.features == 6
    assert codec.discrete


def test_a_table_round_trips_in_its_own_types(mixed: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(mixed.astype({"site": "category"}), preserve_index=False)
    codec = TableCodec.fit(table, Data())
    rows = codec.read(table)
    y, _ = codec.encode(rows.raw, uniforms(0, 0, 0, *rows.raw.shape))
    back = pa.Table.from_batches([codec.decode(y)])
    assert back.schema.types == table.schema.types
    for name in ("count", "site", "flag", "unit"):
        assert back[name].to_pylist() == table[name].to_pylist()
    assert np.allclose(back["x"].to_numpy(), table["x"].to_numpy(), rtol=1e-12)


def test_a_codec_survives_json(mixed: pd.DataFrame) -> None:
    import json

    codec = fit(mixed, given=["site"])
    again = TableCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert again == codec
    assert again.types == codec.types


@pytest.mark.parametrize(
    "type_",
    [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(),
     pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string(), ordered=True)],
    ids=str,
)  # fmt: skip
def test_arrow_types_are_remembered(type_: pa.DataType) -> None:
    assert arrow_type(str(type_)) == type_


def test_statuses(mixed: pd.DataFrame) -> None:
    codec = fit(mixed)
    odd = mixed.head(7).copy()
    odd["unit"] = odd["unit"].astype(object)
    odd.loc[1, "x"] = np.nan
    odd.loc[2, "x"] = np.inf
    odd.loc[3, "site"] = "nowhere"
    odd.loc[4, "unit"] = "lb"
    odd.loc[5, "site"] = None
    odd.loc[6, ["x", "unit"]] = [np.inf, "lb"]
    status = codec.read(pa.Table.from_pandas(odd, preserve_index=False)).status
    assert status.tolist() == [OK, MISSING, NONFINITE, UNSEEN, VIOLATED, MISSING, VIOLATED]


@pytest.mark.parametrize(
    ("columns", "data", "words"),
    [
        ({"x": [1.5, None] * 10}, {}, ["'x'", "10 of 20", "missing"]),
        ({"x": [1.5, float("nan")] * 10}, {}, ["'x'", "10 of 20", "missing"]),
        ({"x": [1.5, float("inf")] * 10}, {}, ["'x'", "infinite"]),
        ({"x": [0.5, -1.0] * 10}, {"columns": {"x": Column(transform="log")}}, ["'x'", "above 0", "10"]),
        ({"x": [f"row {i}" for i in range(100)]}, {}, ["'x'", "100 different", "id"]),
        ({"x": [1.25, 2.5] * 10}, {"columns": {"x": Column(type="integer")}}, ["'x'", "not whole"]),
        ({"x": ["a", "b"] * 10}, {"columns": {"x": Column(type="real")}}, ["'x'", "string", "real"]),
        ({"x": [1.0] * 10}, {}, ["no column", "constant"]),
        ({"x": [[1], [2]] * 10}, {}, ["'x'", "list", "exclude"]),
        ({"x": pa.array(range(20), pa.timestamp("s"))}, {}, ["'x'", "timestamp", "exclude"]),
        ({"xs": [1.0, 2.5] * 10}, {"exclude": ["xss"]}, ["'xss'", "Did you mean 'xs'"]),
        ({"x": [1.0, 2.5] * 10}, {"given": ["x"]}, ["no column is left"]),
    ],
)
def test_what_cannot_be_fitted_is_said(columns: dict[str, Any], data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as error:
        fit(columns, **data)
    assert all(word in str(error.value) for word in words), error.value


def test_columns_of_another_type_at_score_time() -> None:
    codec = fit({"x": [1.0, 2.5] * 10, "c": ["a", "b"] * 10})
    assert codec.read(pa.table({"x": pa.array([1, 2]), "c": ["a", "b"]})).status.tolist() == [OK, OK]
    with pytest.raises(DataError, match=r"'x'.*string.*double"):
        codec.read(pa.table({"x": ["1", "2"], "c": ["a", "b"]}))
    with pytest.raises(DataError, match="no column 'c'"):
        codec.read(pa.table({"x": [1.0]}))


def test_context_is_embedded(mixed: pd.DataFrame) -> None:
    codec = fit(mixed, given=["site", "x", "unit"])
    assert codec.context == 3 + 1 + 0
    rows = codec.read(pa.Table.from_pandas(mixed, preserve_index=False))
    assert rows.context is not None
    assert (rows.context[:, :3].sum(1) == 1).all()
    assert rows.context[:, 3].std().item() == pytest.approx(1, rel=0.1)


def test_constant_and_real_describe_themselves() -> None:
    for column in (Constant("a", "int64", 3), Real("b", "double", "log", 0.1, 2.0)):
        assert from_dict(column.to_dict()) == column


def test_noise_depends_on_its_place_alone() -> None:
    whole = uniforms(3, 5, 0, 1000, 7)
    assert torch.equal(uniforms(3, 5, 400, 100, 7), whole[400:500])
    assert not torch.equal(uniforms(3, 6, 0, 1000, 7), whole)
    assert not torch.equal(uniforms(4, 5, 0, 1000, 7), whole)
    assert whole.mean().item() == pytest.approx(0.5, abs=0.02)
    assert ((whole > 0) & (whole < 1)).all()


@pytest.mark.parametrize("columns", [1, 2, 5, 30])
def test_lattice_is_even(columns: int) -> None:
    assert torch.equal(lattice(1, columns), torch.full((1, columns), 0.5, dtype=torch.float64))
    points = lattice(64, columns)
    parts = (points * 64).long().sort(0).values
    assert torch.equal(parts, torch.arange(64)[:, None].expand(64, columns))
