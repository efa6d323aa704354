"""The report: the right verdict in words, a page that needs nothing else, and pictures of what is there."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import chromium, opens_well
from command import ENVIRONMENT, flowcli, succeed
from image_cases import QUICK

from flowcli.errors import TrainingError
from flowcli.recipe import from_dict
from flowcli.report.columns import kolmogorov, mutual_information, variation
from flowcli.scoring.score import p_values, threshold
from flowcli.training.fit import train
from flowcli.training.group import Group
from flowcli.training.prepare import prepare

FAST = ("-s", "flow.layers=2", "-s", "flow.hidden=[32]", "-s", "train.epochs=15", "-s", "data.validation=0.2")
ODD_NAMES = {"x": "$x_{1}$ <b>bold</b>", "y": "y & co"}


def bent(n: int, seed: int = 0) -> pd.DataFrame:
    """Two columns that no Gaussian fits, and three of other kinds."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return pd.DataFrame(
        {
            "x": x,
            "y": x**2 + 0.3 * rng.standard_normal(n),
            "site": np.where(x > 0.5, "north", rng.choice(["south", "west"], n)),
            "count": rng.poisson(np.exp(1 + 0.3 * x)),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 30, n), unit="D"),
            "hole": np.where(rng.random(n) < 0.1, np.nan, x + rng.standard_normal(n)),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that went well, over-fitted, diverged, and put a density on a discrete column."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    bent(1500).to_parquet(folder / "bent.parquet", index=False)
    bent(300, 1).assign(x=lambda f: f["x"].where(f.index > 9, 9.0).where(f.index != 5, np.inf)).to_parquet(
        folder / "new.parquet", index=False
    )
    pd.DataFrame(rng.standard_normal((80, 6)), columns=list("abcdef")).to_csv(folder / "few.csv", index=False)
    x = rng.standard_normal((1500, 2)) @ [[1, 0.5], [0, 1]]
    plain = pd.DataFrame(x, columns=list("ab"))
    plain.to_csv(folder / "plain.csv", index=False)
    plain.assign(k=rng.integers(0, 6, len(x))).to_csv(folder / "discrete.csv", index=False)
    bent(1500)[["x", "y"]].rename(columns=ODD_NAMES).to_csv(folder / "names.csv", index=False)
    holes = "data.columns={hole: {missing: indicator}}"
    succeed("fit", "maf-spline", "bent.parquet", "-o", "good", "-s", holes, *FAST, cwd=folder)
    heart = ("-s", "train.epochs=80", "-s", "train.patience=1000")
    succeed("fit", "maf-affine", "few.csv", "-o", "over", *heart, cwd=folder)
    wild = ("-s", "train.lr=1", "-s", "train.clip=1e9", "-s", "train.epochs=8")
    succeed("fit", "maf-affine", "plain.csv", "-o", "diverged", *wild, cwd=folder)
    density = "data.columns={k: {type: real, atoms: []}}"
    succeed("fit", "maf-affine", "discrete.csv", "-o", "discrete", "-s", density, *FAST, cwd=folder)
    succeed("fit", "maf-affine", "discrete.csv", "-o", "counted", *FAST, cwd=folder)
    succeed("fit", "maf-spline", "names.csv", "-o", "names", *FAST, cwd=folder)
    return folder


@functools.cache
def page(folder: Path, *arguments: object) -> str:
    """The page's text, which the command must write."""
    assert succeed("report", *arguments, "-o", "page.html", "--force", cwd=folder) == "page.html\n"
    return (folder / "page.html").read_text()


def verdict(html: str) -> str:
    """The words that the page opens with."""
    opening = html[html.index('<div class="verdict') : html.index("<section>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", opening)).replace("&#39;", "'")


# -- the verdict ---------------------------------------------------------------------------------------------------


def test_a_run_that_went_well(folder: Path) -> None:
    words = verdict(page(folder, "good"))
    assert "Nothing found here speaks against this model" in words, words
    assert re.search(r"Better than a Gaussian: \+\d\.\d\d ± 0\.\d\d nats", words)
    assert "Trained to the end: 15 of 15 epochs" in words
    assert "Not over-fitted" in words
    assert "Discrete values have probabilities of their own (site, count, day, hole)" in words
    assert "Each of 6 columns is drawn as the data have it" in words


def test_one_that_over_fitted(folder: Path) -> None:
    words = verdict(page(folder, "over"))
    assert "Training over-fitted: after epoch" in words
    assert "flow.hidden" in words
    assert "diverged" not in words
    best = json.loads((folder / "over" / "metrics.jsonl").read_text().splitlines()[-1])["best_epoch"]
    assert f"the model kept is that of epoch {best}." in words


def test_one_that_diverged(folder: Path) -> None:
    words = verdict(page(folder, "diverged"))
    assert "Do not rely on this model yet: training diverged" in words
    assert "Try a smaller train.lr than 1" in words
    assert "✗ bad Training diverged: the training rows' own log-likelihood fell from" in words
    assert "Training over-fitted" not in words


def test_a_density_on_discrete_values(folder: Path) -> None:
    words = verdict(page(folder, "discrete"))
    assert "Do not rely on this model yet: a density is put on discrete values (k)" in words
    assert "'k' has 6 different values in 1,500 rows" in words
    right = verdict(page(folder, "counted"))
    assert "Discrete values have probabilities of their own (k)" in right
    assert "a density is put" not in right


def test_the_density_of_a_model_that_scores_by_neighbours_is_no_verdict(folder: Path) -> None:
    quick = ("-s", "train.epochs=15", "-s", "flow.hidden=[32, 32]")
    succeed("fit", "anomaly", "discrete.csv", "-o", "odd", *quick, cwd=folder)
    html = page(folder, "odd")
    words = verdict(html)
    assert "a density is put" not in words
    assert "badly fitted columns" not in words
    assert "Of its density: The log-likelihood means nothing: 'k' has 6 different values" in words
    assert re.search("Of its density: (Fits badly|Each of 3 columns)", words), words
    assert "p-value, training rows" not in html
    assert "p-value, discrete.csv" in page(folder, "odd", "discrete.csv")


def test_one_that_gave_up_says_why_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bent(200)[["x", "y"]].to_csv(tmp_path / "t.csv", index=False)
    data, settings = {"files": [str(tmp_path / "t.csv")]}, {"epochs": 3, "batch_size": 16}
    recipe = from_dict({"flow": {"type": "maf", "layers": 1, "hidden": [8]}, "data": data, "train": settings})
    steps = itertools.count()
    bad = lambda self, loss, *_: (loss * (math.nan if next(steps) > 4 else 1.0), False)  # noqa: E731
    monkeypatch.setattr(Group, "mean", bad)
    with pytest.raises(TrainingError):
        train(prepare(recipe), tmp_path / "run")
    monkeypatch.undo()
    words = verdict(page(tmp_path, "run"))
    assert "Training diverged: training gave up at epoch" in words
    train(prepare(recipe), tmp_path / "run", resume=True)
    assert "failed" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert "Trained to the end" in verdict(page(tmp_path, tmp_path / "run"))


def test_one_that_was_interrupted(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "metrics.jsonl", "recipe.yaml"):
        (tmp_path / name).write_bytes((folder / "good" / name).read_bytes())
    assert "Training was interrupted after epoch 15 of 15" in verdict(page(tmp_path, tmp_path))


# -- the page ------------------------------------------------------------------------------------------------------


def test_it_needs_nothing_else(folder: Path) -> None:
    html = page(folder, "names", "--pictures", "pictures")
    assert len(html) < 3e6
    loaded = re.findall(r"""(?:src|href)=["']([^"']*)""", html)
    assert {link[:5] for link in loaded if not link.startswith("#")} <= {"data:"}
    assert "<script" not in html
    assert "url(http" not in html
    assert "<b>bold" not in html  # a column's name is text
    assert "$x_{1}$ &lt;b&gt;bold&lt;/b&gt;" in html
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {"training.png", "pit.png", "p_values.png", "scores.png", "column-y-co.png"} <= pictures
    assert len(pictures) == html.count("<figure>")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "pictures").iterdir())


def test_labels_on_axes_are_what_they_were(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 2)) * 1e-3
    pd.DataFrame(x, columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    succeed("fit", "maf-affine", "t.csv", "-o", "run", *FAST, cwd=tmp_path)
    labels = set(re.findall(r"<text[^>]*>([^<]*)</text>", page(tmp_path, "run")))
    assert any(re.fullmatch(r"0\.00[1-9]\d*", label) for label in labels)


def test_data_of_its_own(folder: Path) -> None:
    html = page(folder, "good", "new.parquet")
    assert "The oddest of new.parquet" in html
    assert "flagged of new.parquet" in html
    flagged = re.search(r"<td>5.0%</td><td>[^<]*</td><td>([\d.]+)%", html)
    scored = succeed("score", "good", "new.parquet", "--alpha", "0.05", "--format", "jsonl", cwd=folder).splitlines()
    assert flagged
    assert float(flagged[1]) == pytest.approx(
        100 * np.mean([json.loads(line)["is_anomaly"] for line in scored]), abs=0.01
    )
    table = html[html.index("The oddest") :]
    rows = re.findall(r"<tr><td>(\d+)</td><td>([\d.]+|inf)</td><td>[\d.]+</td><td>(.*?)</td>", table)
    assert rows[0] == ("5", "inf", "x = inf (+inf) [nonfinite]")
    assert {int(row[0]) for row in rows[1:5]} <= set(range(10))
    assert rows[1][2].startswith("x = 9 (")


def test_several_runs_and_model_files_side_by_side(folder: Path) -> None:
    html = page(folder, "discrete", "counted", "counted/model.safetensors")
    assert html.count('<div class="verdict') == 3
    assert "repeat(3, minmax(0, 1fr))" in html
    assert "Only the model file is here" in verdict(html)


def test_data_that_changed_are_not_taken_for_the_runs(folder: Path, tmp_path: Path) -> None:
    bent(200)[["x", "y"]].to_csv(tmp_path / "t.csv", index=False)
    succeed("fit", "maf-affine", "t.csv", "-o", "run", *FAST, cwd=tmp_path)
    bent(200, 5)[["x", "y"]].to_csv(tmp_path / "t.csv", index=False)
    html = page(tmp_path, "run")
    assert "has changed since run was fitted" in verdict(html)
    assert "<h2>Columns</h2>" not in html
    assert "Better than a Gaussian" in verdict(html)


def test_given_columns_and_one_column(folder: Path) -> None:
    given = ("-s", "data.given=[site]", "-s", "data.exclude=[count, day, hole, y]")
    succeed("fit", "maf-affine", "bent.parquet", "-o", "given", *given, *FAST, cwd=folder)
    html = page(folder, "given")
    assert "x: distance" in html
    assert "most dependent pairs" not in html


def test_images(world: Path) -> None:
    html = page(world, "run", "--pictures", "shown")
    assert {"images-drawn.png", "images-data.png", "images-oddest.png", "images-most-typical.png"} <= {
        path.name for path in (world / "shown").iterdir()
    }
    assert html.count("data:image/png;base64,") == 4
    succeed("fit", "glow.yaml", "p", "-o", "plain", "-s", "data.given=[]", *QUICK, cwd=world)
    assert page(world, "plain/model.safetensors").count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing",), 2, "none of these is a run folder or a model file"),
        (("good", "absent.csv"), 3, "absent.csv: no such file"),
        (("good", "plain.csv"), 3, "no column"),
        (("good", "counted", "-"), 2, "standard input"),
        (("bad.safetensors",), 5, "bad.safetensors"),
    ],
)
def test_what_cannot_be_told_of(folder: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    (folder / "bad.safetensors").write_bytes(b"no model")
    done = flowcli("report", *arguments, "-o", "never.html", cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert not (folder / "never.html").exists()


@pytest.mark.parametrize("manifest", ["{", "3", '{"seconds": 3}', '{"seconds": {"total": 1, "training": "x"}}'])
def test_a_damaged_run_folder(folder: Path, tmp_path: Path, manifest: str) -> None:
    for name in ("model.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((folder / "counted" / name).read_bytes())
    (tmp_path / "run.json").write_text(manifest)
    refused_as_damaged(tmp_path)


def test_damaged_metrics(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "run.json"):
        (tmp_path / name).write_bytes((folder / "counted" / name).read_bytes())
    whole = (folder / "counted" / "metrics.jsonl").read_text()
    text_for_number = json.dumps(json.loads(whole.splitlines()[-1]) | {"step": "many"})
    for line in ("3", "[3]", "{}", text_for_number):
        (tmp_path / "metrics.jsonl").write_text(f"{whole}{line}\n")
        refused_as_damaged(tmp_path)


def refused_as_damaged(run: Path) -> None:
    for command in ("report", "inspect", "compare"):
        done = flowcli(command, ".", cwd=run)
        damaged = "error: .: its metrics.jsonl or run.json is damaged; name the model file in it.\n"
        assert (done.returncode, done.stderr) == (3, damaged)


def test_a_page_is_not_overwritten_unasked(folder: Path) -> None:
    (folder / "mine.html").write_text("mine")
    assert flowcli("report", "good", "-o", "mine.html", cwd=folder).returncode == 2
    assert (folder / "mine.html").read_text() == "mine"


def test_pictures_are_not_overwritten_unasked(folder: Path) -> None:
    mine = folder / "album" / "training.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    for place, words in (("album", "holds PNG files already"), ("album/training.png", "is no folder")):
        done = flowcli("report", "good", "-o", "never.html", "--pictures", place, cwd=folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert not (folder / "never.html").exists()
    assert mine.read_text() == "mine"


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys\nfrom flowcli.cli import main\nsys.modules['matplotlib'] = None\n"
        "sys.argv = ['flowcli', 'report', 'run']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr == "error: flowcli report needs matplotlib: pip install 'flowcli[report]'.\n"


@pytest.mark.browser
def test_in_a_browser(folder: Path, world: Path) -> None:
    with chromium() as browser:
        for where, runs in ((folder, ("good", "new.parquet")), (folder, ("good", "discrete")), (world, ("run",))):
            page(where, *runs)
            opens_well(browser, where / "page.html")


# -- what is measured ----------------------------------------------------------------------------------------------


def test_distances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(300), rng.standard_normal(200) + 1
    places = np.concatenate([x, y])
    brute = max(abs((x <= p).mean() - (y <= p).mean()) for p in places)
    assert kolmogorov(x, y)[0] == pytest.approx(brute)
    a, b = np.array(["u"] * 3 + ["v"], object), np.array(["v", "w"], object)
    assert variation(a, b)[0] == pytest.approx(0.75)


@pytest.mark.parametrize("measure", [kolmogorov, variation])
def test_chance_is_seldom_exceeded(measure: object) -> None:
    rng = np.random.default_rng(0)
    over = 0
    for _ in range(300):
        x, y = rng.integers(0, 12, 150), rng.integers(0, 12, 400)
        if measure is variation:
            x, y = x.astype(str).astype(object), y.astype(str).astype(object)
        distance, chance = measure(x, y)  # type: ignore[operator]
        over += distance > chance
    assert over <= 3


def test_mutual_information() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 5000), rng.integers(0, 8, 5000)
    assert mutual_information(a, b) < 0.01
    assert mutual_information(a, a) == pytest.approx(np.log(8), abs=0.01)
    assert mutual_information(a, (a - 4) ** 2) > 1


def test_a_threshold_flags_what_its_level_flags() -> None:
    rng = np.random.default_rng(0)
    for n in (10, 57, 1000):
        held_out = np.sort(np.round(rng.standard_normal(n), 1))  # with ties
        score = np.concatenate([held_out, rng.standard_normal(500), [np.inf, -np.inf]])
        for alpha in (0.001, 0.01, 0.05, 0.5):
            limit = threshold(held_out, alpha)
            assert np.array_equal(score >= limit, p_values(score, held_out) <= alpha) or limit == np.inf
            assert (limit == np.inf) == (n < 1 / alpha - 1)
