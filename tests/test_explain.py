"""Which columns make a row odd."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import flowcli as command
from command import succeed

import flowcli
from flowcli.model import Model
from flowcli.scoring import Level, score_batch

N = 2000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(N)
    return pd.DataFrame(
        {
            "a": 100 + 10 * a,
            "b": a + 0.2 * rng.standard_normal(N),
            "k": rng.poisson(np.exp(1 + 0.4 * a)),
            "c": np.where(a + 0.3 * rng.standard_normal(N) > 0, "up", "down"),
            "unit": "kg",
        }
    )


@pytest.fixture(scope="module", params=["maf", "realnvp", "radial"])
def model(frame: pd.DataFrame, request: pytest.FixtureRequest) -> Model:
    small = {"type": request.param, "layers": 3, "hidden": [32]}
    return flowcli.fit({"flow": small, "train": {"epochs": 15}}, frame)


def explained(model: Model, frame: pd.DataFrame, most: int = 2, level: Level | None = None) -> pd.DataFrame:
    import pyarrow as pa

    return score_batch(model, pa.Table.from_pandas(frame, preserve_index=False), level, explain=most).to_pandas()


def test_what_was_planted_comes_first(model: Model, frame: pd.DataFrame) -> None:
    odd = frame.head(60).copy()
    odd.loc[0:9, "a"] += 60
    odd.loc[10:19, "b"] = -odd.loc[10:19, "b"] + 4 * np.sign(-odd.loc[10:19, "b"])
    odd.loc[20:29, "k"] = 60
    odd.loc[30:39, "c"] = "sideways"
    odd.loc[40:44, "unit"] = "lb"
    odd.loc[45:49, "a"] = np.inf
    found = explained(model, odd)
    for rows, column in ((range(10), "a"), (range(20, 30), "k"), (range(30, 40), "c"), (range(40, 45), "unit")):
        assert (found["reason_1"][rows] == column).mean() >= 0.9, column
    assert (found["reason_1"][10:20] == "b").mean() >= 0.8
    assert (found["reason_1"][45:50] == "a").all()
    assert np.isinf(found["nats_1"][40:50]).all()
    assert (found["nats_1"][:10] > 5).all()
    both = found[["nats_1", "nats_2"]].dropna()
    assert (both["nats_1"] >= both["nats_2"]).all()
    assert found["reason_2"][40:50].isna().all()  # beside what cannot be, nothing else is a reason


def test_usual_rows_have_no_great_reasons(model: Model, frame: pd.DataFrame) -> None:
    nats = explained(model, frame.head(300), 4)[[f"nats_{k}" for k in range(1, 5)]].to_numpy()
    assert np.isfinite(nats).all()
    assert np.abs(np.median(nats)) < 1
    assert np.quantile(nats[:, 0], 0.9) < 5


def test_units_do_not_matter(frame: pd.DataFrame) -> None:
    recipe = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}, "train": {"epochs": 5}}
    odd = frame.head(50).assign(a=lambda f: f["a"] + 50)
    before = explained(flowcli.fit(recipe, frame), odd)
    after = explained(flowcli.fit(recipe, frame.assign(a=frame["a"] * 1e-6)), odd.assign(a=odd["a"] * 1e-6))
    assert before["reason_1"].equals(after["reason_1"])
    assert np.allclose(before["nats_1"], after["nats_1"], atol=0.05)


def test_what_is_missing_is_no_reason_and_only_flagged_rows_are_explained(model: Model, frame: pd.DataFrame) -> None:
    odd = frame.head(40).copy()
    odd.loc[0, "b"] = np.nan
    odd.loc[0:4, "a"] += 80
    found = explained(model, odd, 9)
    listed = found.loc[0, [f"reason_{k}" for k in range(1, 10)]].dropna()
    assert set(listed) == {"a", "k", "c"}
    assert listed.iloc[0] == "a"
    flagged = explained(model, odd, 1, Level(alpha=0.01))
    assert (flagged["reason_1"].notna() == flagged["is_anomaly"]).all()
    assert flagged["reason_1"][flagged["is_anomaly"]].tolist()[:5] == ["a"] * 5


def test_on_the_command_line(model: Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    frame.head(30).assign(a=lambda f: f["a"].where(f.index != 3, 900.0)).to_csv(tmp_path / "t.csv", index=False)
    for level in (("--alpha", "0.01"), ("--fdr", "0.3")):
        out = succeed("score", "m.safetensors", "t.csv", *level, "--only-anomalies", "--explain", "2", cwd=tmp_path)
        found = pd.read_csv(io.StringIO(out))
        assert found.loc[found["row_id"] == 3, "reason_1"].tolist() == ["a"]
        assert list(found.columns)[-4:] == ["reason_1", "nats_1", "reason_2", "nats_2"]
    clash = command("score", "m.safetensors", "t.csv", "--explain", "-1", cwd=tmp_path)
    assert clash.returncode == 2
