"""The codec: exact both ways, with the exact Jacobian, and honest about what it cannot read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcli.data.columns import (
    Category,
    Constant,
    Counted,
    Gated,
    Integer,
    Moment,
    Real,
    Told,
    arrow_type,
    from_dict,
    robust_scale,
)  # fmt: skip
from flowcli.data.columns.gated import student_t4
from flowcli.data.noise import lattice, uniforms
from flowcli.data.status import MISSING, NONFINITE, OK, UNSEEN, VIOLATED
from flowcli.data.table import TableCodec
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
    assert raw[:, 0].tolist() == [v - low for v in near]
    y, _ = column.encode(torch.from_numpy(raw), middle(torch.from_numpy(raw)))
    assert column.write(column.decode(y).numpy()).to_pylist() == near


@pytest.mark.parametrize(
    ("transform", "values", "bounds"),
    [
        ("none", [1e12 + i for i in range(20)], {}),
        ("log", [10.0**i for i in range(-10, 10)], {}),
        ("asinh", [math.sinh(i) for i in range(-10, 11)], {}),
        ("logit", [2 + 3 * i / 21 for i in range(1, 21)], {"low": 2.0, "high": 5.0}),
        ("quantile", [1e6 + math.exp(i / 20) for i in range(-50, 90)], {}),
        ("quantile", [-5.0, *(i / 7 for i in range(40)), 1e7], {}),
    ],
)
def test_real_transforms_have_their_derivative(transform: str, values: list[float], bounds: dict[str, float]) -> None:
    column = Real.fit("x", pa.array(values), transform, bounds.get("low"), bounds.get("high"))
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y, log_det = column.encode(x[:, None], middle(x[:, None]))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert log_det.detach().numpy() == pytest.approx(slope.log().numpy(), abs=1e-9)
    assert column.decode(y.detach()).numpy()[:, 0] == pytest.approx(np.array(values), rel=1e-9)
    assert y.abs().max() < 5


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=300), st.lists(finite, min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_quantile_curves_rise_for_ever_and_have_an_inverse(values: list[float], far: list[float]) -> None:
    column = Real.fit("x", pa.array(values), "quantile", None, None)
    assert column.curve is not None
    column.check()
    x = torch.tensor(sorted({*values, *(v * 1e-290 for v in far)}), dtype=torch.float64)[:, None]
    y, log_det = column.encode(x, middle(x))
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()
    assert (y.diff(dim=0) >= -1e-12).all()
    spread = max(max(map(abs, values)), 1e-3)
    assert ((column.decode(y) - x).abs() <= 1e-8 * (spread + x.abs())).all()
    out = torch.tensor([[-1e9], [1e9], [1e30]], dtype=torch.float64)
    assert len(column.encode(out, middle(out))[0].unique()) == 3  # 10⁹ and 10³⁰ are not one


def test_a_quantile_curve_makes_any_shape_gaussian() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-5, 0.1, 2000), rng.normal(3, 1, 6000), rng.exponential(20, 2000)])
    column = Real.fit("x", pa.array(values), "quantile", None, None)
    y, _ = column.encode(torch.from_numpy(values)[:, None], torch.zeros(len(values), 1))
    z = np.sort(y[:, 0].numpy())
    assert np.abs(torch.special.ndtr(torch.from_numpy(z)).numpy() - np.arange(1, 10001) / 10000).max() < 0.02


@given(st.lists(st.integers(1, 500), min_size=2, max_size=12), st.floats(0, 0.999999))
@settings(max_examples=100, deadline=None)
def test_categories_are_cells(counts: list[int], u: float) -> None:
    levels = [f"level {i:02d}" for i in range(len(counts))]
    values = pa.array([level for level, n in zip(levels, counts, strict=True) for _ in range(n)])
    column = Category.fit("c", values, asked=True, missing=3)
    raw, status = column.read(pa.array([*levels, "new", None]))
    assert status.tolist() == [*[OK] * len(levels), UNSEEN, OK]
    y, log_det = column.encode(torch.from_numpy(raw), torch.full((len(raw), 1), u, dtype=torch.float64))
    assert (y.float().floor() == torch.from_numpy(raw)).all()
    assert (log_det == 0).all()
    assert column.write(column.decode(y).numpy()).to_pylist() == [*levels, levels[int(np.argmax(counts))], None]
    frequencies = column.cells.frequencies
    assert frequencies.sum().item() == pytest.approx(1, abs=1e-12)
    total = sum(counts) + len(counts) + 1 + 4
    assert (frequencies * total).tolist() == pytest.approx([*(n + 1 for n in counts), 1, 4])


@pytest.mark.parametrize("levels", [[0, 1, 2, 3], [-7, 0, 5, 1000], [3]])
def test_counted_numbers_have_a_law_for_all_others(levels: list[int]) -> None:
    """Under the cells' frequencies the masses of all whole numbers sum to 1, and fall with the distance."""
    column = Counted.fit("k", pa.array(np.repeat(levels, 50)))
    x = np.arange(levels[0] - 200_000, levels[-1] + 200_001)
    raw, status = column.read(pa.array(x))
    assert (status == OK).all()
    y, log_law = column.encode(torch.from_numpy(raw), middle(torch.from_numpy(raw)))
    code = y.floor().long()[:, 0]
    mass = (column.cells.frequencies[code].log() + log_law).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-5 * float(column.cells.frequencies[len(levels)]) + 1e-9)
    above = mass[x > levels[-1]]
    assert (above.diff() < 0).all()
    assert column.write(column.decode(y).numpy())[int(np.flatnonzero(x == levels[-1])[0])].as_py() == levels[-1]
    assert column.read(pa.array([0.5, np.nan, np.inf]))[1].tolist() == [NONFINITE, MISSING, NONFINITE]


def test_a_gate_makes_a_spike_a_probability() -> None:
    """Averaged over places, a closed gate's density integrates the number behind it out, whatever the density is."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(1000) < 0.4, 0.0, rng.exponential(5, 1000))
    codec = fit({"x": [*x, None], "y": [*x, 1.0]}, columns={"x": Column(missing="indicator"), "y": Column(atoms=[])})
    column = codec.columns[0]
    assert isinstance(column, Gated)
    assert column.atoms == (0.0,)
    assert codec.columns[1].kind == "real"
    assert sum(column.counts) == 1001
    assert column.counts[2] == 1
    rows = codec.read(pa.table({"x": [0.0, None, 2.5], "y": [1.0, 2.0, 3.0]}))
    assert rows.status.tolist() == [OK, OK, OK]
    assert rows.raw[:, 0].tolist() == [1, 2, 0]
    total = torch.zeros(3, dtype=torch.float64)
    for place in lattice(4096, 3):
        y, log_det = codec.encode(rows.raw, place.expand(3, 3))
        own = -0.5 * ((y[:, 1] - 0.7) / 0.5).square() - math.log(0.5) - 0.5 * math.log(2 * math.pi)
        slope = log_det - codec.columns[1].encode(rows.raw[:, 2:], place[2:].expand(3, 1))[1]
        total += (own + slope).exp() / 4096
    assert total[:2].tolist() == pytest.approx([1, 1], abs=2e-3)  # any density of y₁ integrates to one
    assert column.write(rows.raw[:, :2].numpy()).to_pylist() == [0.0, None, 2.5]


def test_the_filler_behind_a_gate_is_students_t() -> None:
    u = torch.linspace(1e-6, 1 - 1e-6, 1000, dtype=torch.float64, requires_grad=True)
    y, log_density = student_t4(u)
    assert torch.allclose(log_density, torch.distributions.StudentT(4.0).log_prob(y), atol=1e-9)
    (slope,) = torch.autograd.grad(y.sum(), u)
    assert torch.allclose(slope.log(), -log_density, atol=1e-6)
    assert student_t4(torch.tensor([0.5, 0.975]))[0].tolist() == pytest.approx([0, 2.776445], abs=1e-3)


@pytest.mark.parametrize(
    ("type_", "values", "step"),
    [
        (pa.timestamp("ns"), np.arange(500) * 3_600_000_000_000, 3_600_000_000_000),
        (pa.timestamp("us", "Europe/Berlin"), np.arange(500) * 60_000_000 + 1_700_000_040_000_000, 60_000_000),
        (pa.timestamp("s"), np.arange(500) * 7 + 1_700_000_000, 1),
        (pa.timestamp("ms"), np.arange(500) * 17, 1),
        (pa.date32(), np.arange(500) - 100, 86_400),
        (pa.date64(), np.arange(500) * 86_400_000, 86_400_000),
    ],
    ids=str,
)
def test_moments_are_whole_numbers_of_their_step(type_: pa.DataType, values: np.ndarray, step: int) -> None:
    moments = pa.array(values, pa.int32() if pa.types.is_date32(type_) else pa.int64()).cast(type_)
    column = Moment.fit("t", moments)
    assert column.step == step
    assert from_dict(column.to_dict()) == column
    raw, status = column.read(moments)
    assert (status == OK).all()
    y, _ = column.encode(torch.from_numpy(raw), middle(torch.from_numpy(raw)))
    assert column.write(column.decode(y).numpy()).equals(moments)
    context = column.embed(torch.from_numpy(raw))
    assert context.shape == (500, column.context_width)
    assert (context[:, 1:].abs() <= 1).all()
    assert column.read(pa.nulls(3, type_))[1].tolist() == [MISSING] * 3


def test_moments_off_the_lattice_are_impossible() -> None:
    days = pa.array(np.arange(100) * 86_400, pa.int64()).cast(pa.timestamp("s"))
    column = Moment.fit("t", days)
    assert column.read(pa.array([86_400, 86_401], pa.int64()).cast(pa.timestamp("s")))[1].tolist() == [OK, NONFINITE]


def test_decimals_are_kept() -> None:
    prices = np.round(np.random.default_rng(0).lognormal(1, 1, 200), 2)
    for values in (pa.array(prices), pa.array(prices.astype(np.float32))):
        column = Real.fit("price", values, "log", None, None)
        assert column.decimals == 2
        drawn = column.write(column.decode(torch.randn(1000, 1, dtype=torch.float64) * 3).numpy()).to_numpy()
        assert (drawn > 0).all()  # none is rounded out of the transform's domain
        big = drawn[drawn > 0.02]
        assert np.allclose(np.round(big, 2), big, rtol=1e-6)
    assert Real.fit("x", pa.array(prices * math.pi), "none", None, None).decimals is None


def test_whole_numbers_are_drawn_within_their_range() -> None:
    column = Integer.fit("k", pa.array(np.arange(5, 400)))
    drawn = column.write(column.decode(torch.linspace(-9, 9, 99, dtype=torch.float64)[:, None]).numpy()).to_numpy()
    assert 5 <= drawn.min() < 10
    assert 390 < drawn.max() <= 399
    # Mirrored at the ends, not heaped on them.
    column = Integer.fit("k", pa.array(np.random.default_rng(0).geometric(0.1, 5000) - 1))
    ends = column.decode(torch.randn(20_000, 1, dtype=torch.float64))
    assert (ends == 0).double().mean() < 0.08


def test_a_column_that_others_tell_is_looked_up() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 500), rng.choice(["x", "y", "z"], 500)
    told = pa.array((a * 10 + (b == "y")).astype(float))
    frame = {"a": a, "b": b, "far": told, "further": pc.multiply(told, 2.0), "w": rng.normal(size=500)}
    codec = fit(frame, columns={"far": Column(by=["a", "b"]), "further": Column(by=["far"])})
    far = codec.columns[2]
    assert isinstance(far, Told)
    assert codec.features == 3
    assert TableCodec.from_dict(codec.to_dict()) == codec
    rows = codec.read(pa.table(frame))
    assert (rows.status == OK).all()
    y, _ = codec.encode(rows.raw, middle(rows.raw))
    assert codec.decode(y).column(2).equals(told)
    assert codec.decode(y).column(3).equals(frame["further"])
    odd = pa.table(
        {
            "a": [0, 0, 9, 0],
            "b": ["y", "y", "y", "?"],
            "far": [1.0, 2.0, 5.0, 5.0],
            "further": [2.0, 4.0, 7.0, 7.0],
            "w": [0.0] * 4,
        }
    )
    assert codec.read(odd).status.tolist() == [OK, VIOLATED, OK, UNSEEN]
    with pytest.raises(DataError, match=r"'far'.*go with several"):
        fit(frame | {"far": rng.normal(size=500)}, columns={"far": Column(by=["a", "b"])})


def test_missing_values_as_the_recipe_says(mixed: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    holes = mixed.mask(pd.DataFrame(rng.random(mixed.shape) < 0.1, columns=mixed.columns))
    holes["unit"] = mixed["unit"]
    table = pa.Table.from_pandas(holes, preserve_index=False)
    names = [name for name in mixed if name != "unit"]
    with pytest.raises(DataError, match="missing=indicator"):
        fit(holes)
    indicated = fit(holes, columns={name: Column(missing="indicator") for name in names})
    rows = indicated.read(table)
    assert (rows.status == OK).all()
    assert rows.missing is None
    y, _ = indicated.encode(rows.raw, uniforms(0, 0, 0, *rows.raw.shape))
    back = pa.Table.from_batches([indicated.decode(y)])
    for name in names:
        assert back[name].is_null().equals(table[name].is_null())
    imputed = fit(holes, columns={name: Column(missing="impute") for name in names})
    assert (imputed.read(table).status == OK).all()
    marginal = fit(holes, columns={name: Column(missing="marginalise") for name in names})
    rows = marginal.read(table)
    assert rows.missing is not None
    assert rows.missing.any(1).sum() == (rows.status == MISSING).sum() == holes.isna().any(axis=1).sum()
    assert not rows.lost.any()


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
        "x": "real", "count": "counted", "site": "category", "flag": "category", "y": "real", "unit": "constant",
        "whole": "counted",
    }  # fmt: skip
    assert codec.features == 6
    assert len(codec.cells) == 4
    assert codec.slots == [[4], [2], [1], [0], [5], [], [3]]  # the flag has the fewest cells
    assert not codec.dequantised  # counted numbers have their masses from the flow


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
        ({"x": pa.array(range(20), pa.time32("s"))}, {}, ["'x'", "time32", "exclude"]),
        ({"x": [1.5, 2.5] * 10}, {"columns": {"x": Column(type="datetime")}}, ["'x'", "double", "datetime"]),
        ({"x": [None, None] * 10}, {"columns": {"x": Column(missing="impute")}}, ["'x'", "no values"]),
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
