"""Scores by neighbours, numbers taken for real ones, and noise with the data's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import flowcli, succeed

import flowcli as library
from flowcli import Model, tensorfile
from flowcli.baseline import Baseline
from flowcli.errors import ModelFileError, UsageError
from flowcli.flows.levels import Cells
from flowcli.neighbours import FIGURES, NEAREST, Neighbours, Reference
from flowcli.scoring import score_batch
from flowcli.scoring.evaluate import ranking
from flowcli.scoring.method import _surprise, oddness
from flowcli.scoring.score import p_values

QUICK = ["train.epochs=15", "flow.hidden=[32, 32]"]
SAMPLES = Path(__file__).parents[1] / "sample_data"


def rows(n: int, seed: int, correlation: float = 0.95) -> dict[str, Any]:
    """Two correlated columns, one skewed, one of whole numbers and one of levels."""
    rng = np.random.default_rng(seed)
    a, noise = rng.normal(size=(2, n))
    return {
        "a": a,
        "b": correlation * a + np.sqrt(1 - correlation**2) * noise,
        "c": rng.lognormal(size=n),
        "count": rng.integers(0, 4, n),
        "level": rng.choice(["x", "y"], n),
    }


@pytest.fixture(scope="module")
def model() -> Model:
    return library.fit("anomaly", pa.table(rows(1200, 0)), overrides=QUICK)


def test_every_number_is_real_and_without_spikes(model: Model) -> None:
    columns = model.recipe.data.columns
    assert {name: columns[name].type for name in ("a", "c", "count", "level")} == {
        "a": "real", "c": "real", "count": "real", "level": "category",
    }  # fmt: skip
    again = library.fit(model.recipe, pa.table(rows(1200, 0)), overrides=["train.epochs=1"])
    assert again.codec == model.codec  # the resolved recipe says all of it


def test_p_values_are_uniform_on_rows_like_the_training_rows(model: Model) -> None:
    p = np.sort(model.score(pa.table(rows(4000, 1))).p_value.to_numpy())
    # Of 180 held-out rows and 4000 others: Kolmogorov–Smirnov's distance is below 0.14 with probability 0.999.
    assert np.abs(p - (np.arange(len(p)) + 0.5) / len(p)).max() < 0.14


def test_p_values_are_not_too_small_where_few_rows_are_held_out() -> None:
    k = sum(FIGURES)
    rng, mixing = np.random.default_rng(0), np.linalg.cholesky(np.full((k, k), 0.6) + 0.4 * np.eye(k))
    flagged = []
    for _ in range(1000):
        held_out, others = (mixing @ rng.standard_normal((k, n)) for n in (20, 20))
        usual = np.sort(oddness(held_out, held_out, own=True))
        flagged.append((p_values(oddness(others, held_out), usual) <= 1 / 21).mean())
    # As many are guaranteed; without leaving each held-out row out of its own comparison they are 0.1.
    assert np.mean(flagged) < 1 / 21


@pytest.mark.parametrize("m", [3, 5, 9, 20])
def test_however_few_rows_are_held_out(m: int) -> None:
    k, rng, least = sum(FIGURES), np.random.default_rng(1), []
    for _ in range(2000):
        held_out, others = rng.standard_normal((2, k, m))
        usual = np.sort(oddness(held_out, held_out, own=True))
        least.append((p_values(oddness(others, held_out), usual) <= 1 / (m + 1)).mean())
    assert np.mean(least) < 1.05 / (m + 1)


def test_rows_that_the_model_has_seen_are_not_odd() -> None:
    table = pa.table({name: np.round(np.asarray(c), 1) for name, c in rows(1200, 9).items() if name != "level"})
    model = library.fit("anomaly", table, overrides=QUICK)
    seen = model.score(table)
    assert (seen.p_value < 0.05).mean() < 0.05
    assert (seen.p_value > 0.5).mean() > 0.4


def test_rows_that_break_what_holds_the_columns_together_are_found(model: Model) -> None:
    normal, odd = rows(500, 2), rows(500, 3, correlation=-0.95)
    scores = [model.score(pa.table(part)).score.to_numpy() for part in (normal, odd)]
    auroc, _ = ranking(np.concatenate(scores), np.repeat([False, True], 500))
    assert auroc > 0.75  # by the columns alone it is 0.5


def test_further_is_odder_and_always_finite(model: Model) -> None:
    far = [10.0**k for k in range(1, 31, 3)]
    table = pa.table({k: v[:1].repeat(len(far)) for k, v in rows(1, 4).items()}).set_column(0, "a", pa.array(far))
    score = model.score(table).score.to_numpy()
    assert np.isfinite(score[:3]).all()
    assert (np.diff(score[:3]) > 0).all()
    assert not np.isnan(score).any()


def test_distances_are_those_to_the_nearest_training_rows(model: Model) -> None:
    y = torch.randn(7, model.codec.features, dtype=torch.float64)
    y[:, 0] = y[:, 0].gt(0).double() + 0.5  # the level
    near = model.neighbours
    assert near is not None
    assert model.reference is not None
    reference = torch.cat(model.reference)
    assert len(reference) == 1200
    found = near.log_distances(y).exp()
    assert found.shape == (sum(FIGURES), 7)
    for i, (view, norm) in enumerate(((near._columns, 1), (near._ranks, 2))):
        brute = torch.linalg.vector_norm(view(y)[:, None] - view(reference)[None], norm, 2).sort(1).values
        for j, k in enumerate(NEAREST):
            assert torch.allclose(found[2 * i + j], brute[:, k - 1], rtol=1e-6, atol=2e-6)
    z, _ = model.flow.bijection(y.float())
    assert torch.allclose(found[-1], z[:, 1:].double().square().sum(1).sqrt(), rtol=1e-6)


def test_held_out_rows_are_compared_with_all_but_themselves(model: Model) -> None:
    near = model.neighbours
    assert near is not None
    training, held_out = near.reference
    found = near.log_distances(held_out, own=True)
    for i in (0, 7, len(held_out) - 1):
        others = torch.cat([held_out[:i], held_out[i + 1 :]])
        without = Neighbours(Reference(training, others), near.baseline, near.flow)
        assert torch.allclose(without.log_distances(held_out[i : i + 1])[:, 0], found[:, i], rtol=1e-6)
    assert torch.allclose(found, model.calibration[1:, : len(held_out)], rtol=1e-6)


def test_held_out_rows_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowcli.training.prepare.MOST", 300)
    few = library.fit("anomaly", pa.table(rows(400, 8)), overrides=[*QUICK, "train.epochs=1"])
    assert few.reference is not None
    assert [len(part) for part in few.reference] == [300, 0]
    near = few.neighbours
    assert near is not None
    some = few.reference.training[:9] + 0.1
    assert torch.equal(near.log_distances(some, own=True), near.log_distances(some))


def test_what_one_view_sees_counts_for_more_than_what_all_see(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    usual = np.repeat(rng.standard_normal(500) + 0.3 * rng.standard_normal((3, 500)), FIGURES, axis=0)
    by_all = np.full((sum(FIGURES), 1), 2.5)
    by_one = np.where(np.arange(sum(FIGURES)) < FIGURES[0], 2.5, 0.0)[:, None]

    def ratio() -> float:
        return float(oddness(by_one, usual)[0] / oddness(by_all, usual)[0])

    with_it = ratio()
    monkeypatch.setattr("flowcli.scoring.method.EXPECTED", 0.0)
    assert with_it > 1.1 * ratio()


@pytest.mark.parametrize("n", [25, 100, 5_000])
def test_surprise_goes_on_beyond_the_held_out_rows_in_nats(n: int) -> None:
    # Of exponential numbers a share e^−v is above v.
    held_out = -np.log1p(-(np.arange(n) + 0.5) / n)
    values = np.array([0.3, 1.0, 2.0, 8.0, 30.0])
    assert _surprise(values, held_out, False) == pytest.approx(values, rel=0.06, abs=0.05)
    finer = np.linspace(0, 10, 2_001)
    steps = np.diff(_surprise(finer, held_out, False))
    assert (steps >= 0).all()


def test_ranks_do_not_change_with_a_columns_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    flow = torch.nn.Module()
    near, bent = (
        Neighbours(Reference(t, t[:0]), Baseline.of(t, None), flow)  # type: ignore[arg-type]
        for t in (x, x.exp())
    )
    inside = x[:200].clamp(-1.5, 1.5)
    assert torch.allclose(near._ranks(inside), bent._ranks(inside.exp()))


def test_a_file_has_it_all_and_is_checked(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model.safetensors")
    again, some = Model.load(tmp_path / "model.safetensors"), pa.table(rows(300, 5))
    assert score_batch(again, some).equals(score_batch(model, some))
    Model(*(getattr(model, name) for name in ("recipe", "codec", "flow", "baseline", "calibration"))).save(
        tmp_path / "without.safetensors"
    )
    with pytest.raises(ModelFileError, match="the tensor reference"):
        Model.load(tmp_path / "without.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("reference.training", torch.tensor(1.0, dtype=torch.float64), "the tensor reference"),
        ("reference.training", torch.zeros(0, 5, dtype=torch.float64), "the tensor reference"),
        ("reference.held_out", torch.zeros(30_000, 5, dtype=torch.float64), "the tensor reference"),
        ("calibration", torch.full((1 + sum(FIGURES), 20), 1e308, dtype=torch.float64), "the tensor calibration"),
    ],
)
def test_a_file_with_impossible_rows_is_refused(
    model: Model, tmp_path: Path, name: str, tensor: torch.Tensor, words: str
) -> None:
    model.save(tmp_path / "good.safetensors")
    tensors, about = tensorfile.read(tmp_path / "good.safetensors")
    tensorfile.write(tmp_path / "bad.safetensors", tensors | {name: tensor}, about)
    with pytest.raises(ModelFileError, match=words):
        Model.load(tmp_path / "bad.safetensors")


def test_a_row_with_holes_has_a_score() -> None:
    table = pa.table(rows(600, 6)).drop_columns("level")
    holes = table.set_column(
        0, "a", pa.array([None if i % 5 == 0 else v for i, v in enumerate(table["a"].to_pylist())])
    )
    model = library.fit("anomaly", holes, overrides=[*QUICK, "data.columns.a.missing=marginalise"])
    scores = model.score(holes)
    assert np.isfinite(scores.score).all()
    assert scores.status.isin(["ok", "missing"]).all()


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    table = pa.table(rows(200, 7))
    with pytest.raises(UsageError, match="without given columns"):
        library.fit("anomaly", table, overrides=["data.given=[level]", "train.epochs=1"])
    pq.write_table(table, tmp_path / "t.parquet")
    succeed("fit", "maf-affine", "t.parquet", "-o", "run", "-s", "train.epochs=1", cwd=tmp_path)
    done = flowcli("score", "run", "t.parquet", "--method", "neighbours", cwd=tmp_path)
    assert done.returncode == 2
    assert "this model keeps none" in done.stderr


def test_init_writes_such_a_recipe(tmp_path: Path) -> None:
    pq.write_table(pa.table(rows(300, 8)), tmp_path / "t.parquet")
    succeed("init", "t.parquet", "--task", "anomaly", "-o", "r.yaml", cwd=tmp_path)
    assert (tmp_path / "r.yaml").read_text().count("{type: real, atoms: []}") == 4
    succeed("fit", "r.yaml", "-o", "run", "-s", "train.epochs=2", cwd=tmp_path)
    flagged = flowcli("score", "run", "t.parquet", "--alpha", "0.05", "--explain", "2", cwd=tmp_path)
    assert flagged.returncode == 0
    assert "reason_1" in flagged.stdout.splitlines()[0]
    for wrong, sentence in (
        (["--task", "odd"], "not one of density, anomaly"),
        (["--given", "a"], "compares whole rows"),
    ):
        done = flowcli("init", "t.parquet", "--task", "anomaly", *wrong, cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_noise_has_the_datas_covariance_and_leaves_codes_alone() -> None:
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 2] = 3 * x[:, 1] + 0.1 * x[:, 2]
    x[:, 0] = x[:, 0].gt(0).double() + 0.5
    shares = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for missing in (None, torch.zeros(5000, 3, dtype=torch.bool)):
        baseline = Baseline.of(x, missing, [Cells(shares)])
        root, factors = baseline.spread(shaped=True), baseline.spread(shaped=False)
        assert factors.tolist() == [0, 1, 1]
        assert torch.allclose((root.T @ root)[1:, 1:], baseline.covariance[1:, 1:], rtol=1e-3, atol=1e-3)
        assert not root[0].any()
        assert not root[:, 0].any()
    diagonal = Baseline(torch.zeros(2), torch.tensor([4.0, 9.0], dtype=torch.float64)).spread(shaped=True)
    assert diagonal.tolist() == [2, 3]
