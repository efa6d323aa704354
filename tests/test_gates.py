"""What is flagged, and what a nightly job does about it: --alpha, --fdr, --threshold, --fail-over."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import flowcli, succeed
from hypothesis import given
from hypothesis import strategies as st

from flowcli.scoring import FalseDiscoveries

N, ODD = 600, 30


def benjamini_hochberg(p: np.ndarray, q: float) -> np.ndarray:
    """The procedure as it is written: reject the k smallest, for the largest k with p_(k) ≤ q k / n."""
    order = np.argsort(p)
    passing = np.flatnonzero(p[order] <= q * np.arange(1, len(p) + 1) / len(p))
    rejected = np.zeros(len(p), bool)
    if len(passing):
        rejected[order[: passing[-1] + 1]] = True
    return rejected


def as_among_half(p: np.ndarray) -> np.ndarray:
    """P-values to a power, of which a quarter is above one half: half of those of normal rows, half of all."""
    quartile = np.sort(p)[::-1][int(np.ceil(len(p) / 4)) - 1]
    return p ** (np.log(0.5) / np.log(quartile)) if len(p) >= 100 and quartile <= 0.5 else p


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.sampled_from([0.01, 0.1, 0.25, 0.5]))
def test_false_discoveries_are_benjamini_and_hochbergs(ranks: list[int], q: float) -> None:
    p = np.array(ranks) / 50
    found = FalseDiscoveries(q)
    for part in np.array_split(p, 3):
        found.add(np.append(part, np.nan))
    assert np.array_equal(found.level().flags(p, p), benjamini_hochberg(as_among_half(p), q))


def test_where_all_rows_seem_odd_what_stands_out_from_them_is_flagged() -> None:
    rng = np.random.default_rng(0)
    odd = np.arange(4_000) >= 2_000
    for power in (1, 3, 5):  # how much odder normal rows have become
        p = np.append(rng.random(2_000) ** power, rng.random(2_000) * 1e-15)
        found = FalseDiscoveries(0.1)
        found.add(p)
        flagged = found.level().flags(p, p)
        assert flagged[odd].all()
        assert 0.03 < (flagged & ~odd).sum() / flagged.sum() < 0.07  # q times the normal rows' share
    assert (benjamini_hochberg(p, 0.1) & ~odd).sum() > 1_000  # without


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000 + N, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    frame = pd.DataFrame(x, columns=["a", "b"])
    frame[:2000].to_csv(folder / "train.csv", index=False)
    new = frame[2000:].reset_index(drop=True)
    new.loc[: ODD - 1, "a"] += 12
    new.loc[ODD, "b"] = np.nan
    new.to_csv(folder / "new.csv", index=False)
    settings = ("-s", "train.epochs=5", "-s", "flow.layers=1", "-s", "data.validation=0.4")
    succeed("fit", "quickstart", "train.csv", "-o", "run", *settings, cwd=folder)
    return folder


def scores(folder: Path, *options: object) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(succeed("score", "run", "new.csv", *options, cwd=folder)))


def test_fdr_flags_what_the_procedure_says(folder: Path) -> None:
    found = scores(folder, "--fdr", "0.1")
    has = found["p_value"].notna()
    assert list(found.columns)[-3:] == ["is_anomaly", "status", "log_prob_error"]
    assert (found["is_anomaly"].isna() == ~has).all()
    flags = found.loc[has, "is_anomaly"].astype(bool).to_numpy()
    assert np.array_equal(flags, benjamini_hochberg(found.loc[has, "p_value"].to_numpy(), 0.1))
    assert flags[:ODD].all()
    assert flags[ODD:].sum() < 10
    only = scores(folder, "--fdr", "0.1", "--only-anomalies")
    assert only["row_id"].tolist() == found.loc[has, "row_id"][flags].tolist()
    assert not scores(folder, "--fdr", "0").dropna()["is_anomaly"].any()


def test_a_level_that_no_p_value_reaches_is_said(folder: Path) -> None:
    least = 1 / 801  # of 800 held-out rows
    for option in ("--alpha", "--fdr"):
        for level, told in ((0.999 * least, True), (1.001 * least, False)):
            done = flowcli("score", "run", "new.csv", option, level, "-o", "-", cwd=folder)
            assert done.returncode == 0
            assert ("flags no row: beside 800 held-out rows no p-value is below 0.00125" in done.stderr) == told
    assert not scores(folder, "--alpha", 0.999 * least)["is_anomaly"].dropna().any()


def test_rows_of_another_kind_are_said(folder: Path) -> None:
    new = pd.read_csv(folder / "new.csv")
    for shift, words in ((0.0, None), (0.5, None), (2.5, "of another kind than the rows of the fit")):
        (new + shift * np.array([1, -1])).to_parquet(folder / "shifted.parquet", index=False)
        for output in (("scores.csv", "--force"), (f"scores-{shift}", "--shard", "0/1")):
            done = flowcli("score", "run", "shifted.parquet", "-o", *output, cwd=folder)
            assert done.returncode == 0
            assert (words in done.stderr) if words else ("kind" not in done.stderr)


def test_a_gate_trips_where_fdr_cannot_tell_new_from_odd(folder: Path) -> None:
    new = pd.read_csv(folder / "new.csv")
    for shift, code, words in ((0.0, 0, "anomalies"), (6.0, 10, "of another kind than those of the fit")):
        (new + shift * np.array([1, -1])).to_csv(folder / "strange.csv", index=False)
        gate = ("--fdr", "0.1", "--fail-over", "0.1", "-o", "strange.scores.csv", "--force")
        done = flowcli("score", "run", "strange.csv", *gate, cwd=folder)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert ("stands out from these" in done.stderr) == bool(code)
        assert len(pd.read_csv(folder / "strange.scores.csv")) == N


def test_a_gate_trips_after_the_result_is_written(folder: Path) -> None:
    share, score = ODD / N, scores(folder)["score"]
    assert score[:ODD].min() > score[ODD:].max() + 1
    command = ("score", "run", "new.csv", "--threshold", score[:ODD].min() - 0.5)
    done = flowcli(*command, "-o", "s.csv", "--fail-over", share / 2, cwd=folder)
    assert done.returncode == 10
    assert f"{ODD} of {N} rows are flagged, more than a share of {share / 2:g}" in done.stderr
    assert len(pd.read_csv(folder / "s.csv")) == N
    done = flowcli(*command, "-o", "-", "--fail-over", share, cwd=folder)
    assert done.returncode == 0, done.stderr
    done = flowcli(*command, "--only-anomalies", "--fail-over", "0", cwd=folder)
    assert (done.returncode, len(done.stdout.splitlines())) == (10, 1 + ODD)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fail-over", "0.1"), "--fail-over: needs --alpha, --fdr or --threshold"),
        (("--only-anomalies",), "--only-anomalies: needs"),
        (("--alpha", "0.1", "--fdr", "0.1"), "--alpha and --fdr: give one of them"),
        (("--fdr", "1.5"), "less than or equal to 1"),
    ],
)
def test_gates_that_make_no_sense(folder: Path, options: tuple[str, ...], words: str) -> None:
    done = flowcli("score", "run", "new.csv", *options, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
