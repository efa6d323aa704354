"""Rows that are left out before anything is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command import flowcli as command
from command import succeed

import flowcli
from flowcli.errors import UsageError
from flowcli.recipe import from_dict
from flowcli.training.prepare import prepare
from flowcli.training.trim import trimmed

N, ODD = 570, 30


def rows(odd: int = ODD) -> pd.DataFrame:
    """Rows about two centres, a third of them at the lesser, and a cluster of odd ones last, with a gap and a level."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 2)) + np.where(rng.random((N, 1)) < 1 / 3, 4.0, 0.0)
    far = [-8.0, 8.0] + 0.1 * rng.standard_normal((odd, 2))
    frame = pd.DataFrame(np.concatenate([x, far]), columns=["x", "y"])
    frame["kind"] = rng.choice(["a", "b"], len(frame))
    frame.loc[3, "y"] = np.nan
    return frame


def recipe(trim: float, **data: object) -> dict:
    data = {"trim": trim, "columns": {"y": {"missing": "marginalise"}}, **data}
    return {"data": data, "flow": {"type": "maf", "layers": 1, "hidden": [16]}, "train": {"epochs": 8}}


def test_a_cluster_of_odd_rows_is_left_out_and_the_lesser_of_two_centres_is_not() -> None:
    frame = rows().sample(frac=1, random_state=1)
    kept = trimmed(pa.Table.from_pandas(frame, preserve_index=False), from_dict(recipe(ODD / len(frame)))).to_pandas()
    assert len(kept) == N
    assert kept["x"].min() > -5
    expected = frame[frame["x"] > -5]
    assert (kept["x"].to_numpy() == expected["x"].to_numpy()).all()  # in order


def test_what_was_left_out_is_found_odd() -> None:
    frame = rows()
    p = {trim: flowcli.fit(recipe(trim), frame).score(frame)["p_value"][N:] for trim in (0.0, 0.06)}
    assert p[0.0].median() > 0.03
    assert p[0.06].max() < 0.03


def test_the_command_says_how_many_and_resumes(tmp_path: Path) -> None:
    rows().drop(3).to_csv(tmp_path / "t.csv", index=False)
    options = ("fit", "quickstart", "t.csv", "-o", "run", "-s", "data.trim=0.05", "-s", "train.epochs=2")
    done = command(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.trim: 30 of 599 rows are left out, the furthest from the others" in done.stderr
    assert "512 rows to learn from, 57 held out" in done.stderr
    succeed(*options, "--resume", cwd=tmp_path)
    again = command(*options[:-3], "0.1", "-s", "train.epochs=2", "--resume", cwd=tmp_path)
    assert again.returncode == 2


@pytest.mark.parametrize(("share", "words"), [(0.6, "at most 0.5"), (-0.1, "at least 0")])
def test_shares_that_make_no_sense(share: float, words: str, tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "t.csv", index=False)
    done = command("fit", "quickstart", "t.csv", "-o", "run", "-s", f"data.trim={share}", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_what_is_streamed_is_not_compared(tmp_path: Path) -> None:
    rows().to_parquet(tmp_path / "t.parquet")
    asked = recipe(0.05, files=[str(tmp_path / "t.parquet")])
    with pytest.raises(UsageError, match=r"data\.trim: compares all rows"):
        prepare(from_dict(asked | {"train": {"stream": True}}))
