"""The Python API and the model file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from command import flowcli as flowcli_command

import flowcli
from flowcli import tensorfile
from flowcli.errors import DataError, ModelFileError, UsageError
from flowcli.model import Model
from flowcli.scoring import evaluate, p_values
from flowcli.scoring.evaluate import ranking

SMALL = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}, "train": {"epochs": 4}}


@pytest.fixture(scope="module")
def model(mixed: pd.DataFrame) -> Model:
    return flowcli.fit(SMALL, mixed)


def test_a_saved_model_is_the_same_model(model: Model, mixed: pd.DataFrame, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    again = flowcli.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.log_prob(mixed), model.log_prob(mixed))
    assert again.sample(50).equals(model.sample(50))
    assert again.score(mixed).equals(model.score(mixed))
    again.save(tmp_path / "n.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


def test_scores_do_not_depend_on_the_rows_beside(model: Model, mixed: pd.DataFrame) -> None:
    whole = model.log_prob(mixed)
    assert np.allclose(model.log_prob(mixed.iloc[700:703]), whole[700:703], atol=1e-5)
    shuffled = np.random.default_rng(0).permutation(len(mixed))
    assert np.allclose(model.log_prob(mixed.iloc[shuffled]), whole[shuffled], atol=1e-5)


def test_arrow_and_pandas_are_the_same(model: Model, mixed: pd.DataFrame) -> None:
    assert np.array_equal(model.log_prob(pa.Table.from_pandas(mixed)), model.log_prob(mixed))


def test_sampling_is_a_prefix_of_more(model: Model) -> None:
    few, many = model.sample(10, seed=1), model.sample(20_000, seed=1)
    pd.testing.assert_frame_equal(few, many.head(10))
    assert not model.sample(10, seed=2).equals(few)
    # Levels and counted numbers keep their spread, and x its spread between them.
    cool = model.sample(20_000, temperature=0.1)
    within = [drawn.groupby(["count", "site"])["x"].std().median() for drawn in (cool, many)]
    assert within[0] < 0.5 * within[1]
    assert cool["count"].std() == pytest.approx(many["count"].std(), rel=0.05)


def test_fit_takes_a_name_a_dict_and_overrides(mixed: pd.DataFrame) -> None:
    model = flowcli.fit("maf-affine", mixed, overrides=["train.epochs=1", "flow.layers=1"])
    assert model.recipe.flow.layers == 1
    with pytest.raises(UsageError, match=r"train\.epochs"):
        flowcli.fit(SMALL | {"train": {"epochs": 0}}, mixed)
    with pytest.raises(UsageError, match="no data"):
        flowcli.fit(SMALL)


def test_fit_writes_a_run_that_loads(mixed: pd.DataFrame, tmp_path: Path) -> None:
    fitted = flowcli.fit(SMALL, mixed, run=tmp_path / "run")
    assert np.array_equal(flowcli.load(tmp_path / "run").log_prob(mixed), fitted.log_prob(mixed))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == []


def test_p_values_are_ranks_among_held_out_rows() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    score = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 4.0, np.inf])
    assert p_values(score, calibration).tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_p_values_are_uniform_on_new_rows(sample_data: Path) -> None:
    frame = pd.read_csv(sample_data / "spirals.csv").sample(frac=1, random_state=0)
    model = flowcli.fit(SMALL | {"data": {"validation": 0.3}}, frame.iloc[:2500])
    p = np.sort(model.score(frame.iloc[2500:])["p_value"])
    distance = np.abs(p - np.arange(1, len(p) + 1) / len(p)).max()
    assert distance < 1.63 * np.sqrt(1 / len(p) + 1 / 750)  # two-sample Kolmogorov–Smirnov at 1 %


@pytest.mark.parametrize("name", ["breast_cancer.csv", "wine.csv", "digits.parquet"])
def test_p_values_are_uniform_on_new_rows_of_real_tables(sample_data: Path, name: str) -> None:
    path = sample_data / name
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    frame = frame.drop(columns=[c for c in ("diagnosis", "cultivar", "digit") if c in frame])
    frame = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    known, new = frame.iloc[: len(frame) * 2 // 3], frame.iloc[len(frame) * 2 // 3 :]
    recipe = SMALL | {"data": {"validation": 0.5}, "score": {"dequantization_samples": 1}}
    model = flowcli.fit(recipe, known)
    scores = model.score(new, alpha=0.01)
    n, m = len(new), model.calibration.shape[1]
    p = np.sort(scores["p_value"])
    distance = np.abs(p - np.arange(1, n + 1) / n).max()
    assert distance < 1.63 * np.sqrt(1 / n + 1 / m)  # two-sample Kolmogorov–Smirnov at 1 %
    assert scores["is_anomaly"].sum() <= 0.01 * n + 3 * np.sqrt(0.01 * n * (1 + n / m))


def test_evaluate_agrees_with_score_and_with_numpy(model: Model, mixed: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(mixed)
    found = evaluate(model, table.to_batches(max_chunksize=400))
    log_prob = model.score(mixed)["log_prob"]
    assert found.log_prob == pytest.approx(log_prob.mean(), abs=1e-5)
    assert found.log_prob_error == pytest.approx(log_prob.sem(), rel=1e-4)
    assert found.gaussian_log_prob > found.diagonal_gaussian_log_prob
    assert found.statuses == {"ok": len(mixed)}


def test_the_gaussian_baseline_is_the_gaussian() -> None:
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([5, -300], [[4, 30], [30, 900]], 4000)
    frame = pd.DataFrame(x, columns=["a", "b"])
    model = flowcli.fit(SMALL, frame)
    found = evaluate(model, [pa.Table.from_pandas(frame)])
    centred = x - x.mean(0)
    covariance = np.cov(x.T)
    by_hand = -0.5 * np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    by_hand -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert found.gaussian_log_prob == pytest.approx(by_hand.mean(), abs=0.01)


def test_ranking_counts_ties_half() -> None:
    auroc, precision = ranking(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert auroc == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_given_columns_are_asked_for(mixed: pd.DataFrame) -> None:
    model = flowcli.fit(SMALL | {"data": {"given": ["site"]}}, mixed)
    with pytest.raises(UsageError, match="site"):
        model.sample(3)
    with pytest.raises(UsageError, match="sight"):
        model.sample(3, given={"sight": "south"})
    with pytest.raises(DataError, match="site"):
        model.sample(3, given={"site": None})
    drawn = model.sample(2, given=pd.DataFrame({"site": ["south", "north"]}))
    assert drawn["site"].tolist() == ["south", "south", "north", "north"]


# -- hostile files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(model: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return path.read_bytes()


def test_no_flipped_bit_and_no_cut_goes_unnoticed(content: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "m.safetensors"
    for trial in range(1000):
        damaged = bytearray(content)
        if trial % 2:
            place = int(rng.integers(len(damaged)))
            damaged[place] ^= 1 << int(rng.integers(8))
        else:
            damaged = damaged[: int(rng.integers(len(damaged)))]
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            Model.load(path)


def forged(content: bytes, tmp_path: Path, change) -> Path:
    """The model's file with its parts changed and a digest that fits again."""
    path = tmp_path / "forged.safetensors"
    path.write_bytes(content)
    tensors, about = tensorfile.read(path)
    change(tensors, about)
    tensorfile.write(path, tensors, about)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, a: t.pop("flow.bijection.layers.0.rest.layers.0.mean"), "layers.0.rest.layers.0.mean"),
        (lambda t, a: t.update(extra=torch.zeros(3)), "extra"),
        (lambda t, a: t.update({"baseline.mean": t["baseline.mean"].float()}), "baseline.mean"),
        (lambda t, a: t.update({"baseline.mean": torch.zeros(99, dtype=torch.float64)}), "baseline.mean"),
        (lambda t, a: t["flow.bijection.layers.0.rest.layers.0.mean"].fill_(float("nan")), "not finite"),
        (lambda t, a: a["recipe"]["flow"].update(layers=3), "layers"),
        (lambda t, a: a["recipe"]["flow"].update(type="evil"), "recipe"),
        (lambda t, a: a["codec"]["columns"][0].update(kind="evil"), "codec"),
        (lambda t, a: a.pop("codec"), "codec"),
        (lambda t, a: a.update(format=2), "newer"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(content: bytes, tmp_path: Path, change, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        Model.load(forged(content, tmp_path, change))


def test_masked_weights_of_a_file_stay_masked(content: bytes, tmp_path: Path, mixed: pd.DataFrame) -> None:
    def unmask(tensors, about) -> None:
        for name, tensor in tensors.items():
            if "net.layers" in name and name.endswith("weight"):
                tensor[tensor == 0] = 0.5

    honest = forged(content, tmp_path, lambda t, a: None)
    expected = Model.load(honest).log_prob(mixed.head(20))
    assert np.allclose(Model.load(forged(content, tmp_path, unmask)).log_prob(mixed.head(20)), expected)


def test_another_tools_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not one that flowcli wrote"):
        Model.load(path)


def test_a_lying_header_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lying.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little") + b"{" * 1000)
    with pytest.raises(ModelFileError, match="header"):
        Model.load(path)


def test_p_values_know_of_unseen_levels() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.standard_normal(6000), "c": rng.zipf(1.6, 6000).clip(max=10**6).astype(str)})
    recipe = {
        "flow": {"type": "maf", "layers": 1, "hidden": [8]},
        "data": {"validation": 0.5, "columns": {"c": "category"}},
        "train": {"epochs": 1},
    }
    scores = flowcli.fit(recipe, frame[:4000]).score(frame[4000:])
    assert (scores["status"] == "unseen_category").mean() > 0.02
    assert (scores["p_value"] <= 0.1).mean() == pytest.approx(0.1, abs=0.025)


def test_what_a_column_is_does_not_depend_on_the_split() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.standard_normal(400), "rare": np.zeros(400), "k": rng.integers(0, 9, 400) + 0.0})
    held_out = np.sort(np.random.default_rng(0).permutation(400)[:40])
    frame.loc[held_out[:3], "rare"] = 1.0
    frame.loc[held_out[3:6], "k"] = 0.5
    model = flowcli.fit({"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "train": {"epochs": 1}}, frame)
    assert {c.name: c.kind for c in model.codec.columns} == {"x": "real", "rare": "counted", "k": "gated"}
    assert (model.score(frame)["status"] == "ok").all()


def test_numbers_at_the_edge_of_their_types() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 50, 200)
    table = pa.table(
        {
            "u": pa.array([2**63 + int(v) for v in small], pa.uint64()),
            "i": pa.array([2**62 + int(v) for v in small], pa.int64()),
            "h": pa.array(rng.standard_normal(200).astype(np.float16)),
            "d": pa.array([int(v) for v in small]).cast(pa.decimal128(30, 2)),
        }
    )
    model = flowcli.fit({"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "train": {"epochs": 2}}, table)
    assert (model.score(table)["status"] == "ok").all()
    drawn = model.sample(300)
    assert str(drawn["u"].dtype) == "uint64"
    assert drawn["u"].min() >= 2**63 - 50
    assert drawn["i"].between(2**62 - 50, 2**62 + 100).all()


def test_categories_keep_the_order_of_their_levels() -> None:
    rng = np.random.default_rng(0)
    levels = pd.CategoricalDtype(["lo", "mid", "hi"], ordered=True)
    frame = pd.DataFrame({"c": pd.Categorical(rng.choice(["hi", "lo", "mid"], 200), dtype=levels)})
    frame["x"] = rng.standard_normal(200)
    model = flowcli.fit({"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "train": {"epochs": 1}}, frame)
    for seed in range(3):
        drawn = model.sample(20, seed=seed)["c"]
        assert list(drawn.cat.categories) == ["lo", "mid", "hi"]
        assert drawn.cat.ordered


def test_whole_numbers_under_a_logarithm_stay_in_its_domain() -> None:
    k = np.random.default_rng(0).geometric(0.3, 800)
    frame = pd.DataFrame({"k": k, "x": np.random.default_rng(1).standard_normal(800)})
    recipe = {
        "flow": {"type": "maf", "layers": 2, "hidden": [16]},
        "data": {"columns": {"k": {"transform": "log"}}},
        "train": {"epochs": 5},
    }
    model = flowcli.fit(recipe, frame)
    drawn = model.sample(2000)
    assert drawn["k"].min() >= 1
    assert (model.score(drawn)["status"] == "ok").all()


def test_a_frame_needs_no_files_of_the_recipe(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((100, 2)), columns=["a", "b"])
    recipe = {"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "data": {"files": ["gone.csv"]},
              "train": {"epochs": 1}}  # fmt: skip
    flowcli.fit(recipe, frame, run=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == []


@pytest.mark.parametrize(("error", "words"), [(0.5, "misses by up to 0.5"), (None, "misses by any amount"), (1e-6, "")])
def test_an_inverse_that_misses_is_said_before_its_draws_are_used(
    model: Model, tmp_path: Path, error: float | None, words: str
) -> None:
    measured = model.about["round_trip_error"]
    assert 0 < measured < 1e-3
    wrong = dataclasses.replace(model, about=model.about | {"round_trip_error": error})
    wrong.save(tmp_path / "m.safetensors")
    done = flowcli_command("sample", "m.safetensors", "-n", "3", cwd=tmp_path)
    assert done.returncode == 0
    assert words in done.stderr
    assert ("warning" in done.stderr) == bool(words)
    assert "round trip error" in flowcli_command("inspect", "m.safetensors", cwd=tmp_path).stdout


def test_held_out_rows_of_a_file_may_have_the_excluded_columns_or_not(mixed: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "v.parquet"
    data = {"exclude": ["site"], "validation": str(file)}
    recipe = SMALL | {"data": data, "train": {"epochs": 1}}
    for held_out in (mixed[1000:], mixed[1000:].drop(columns="site")):
        held_out.to_parquet(file, index=False)
        assert flowcli.fit(recipe, mixed[:1000]).about["held_out_rows"] == 500
