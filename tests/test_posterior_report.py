"""What is said of a fitted posterior: its report, and what inspect, compare and tune make of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import chromium, opens_well
from command import flowcli, succeed
from test_posterior import TARGET, write
from test_report import FAST, bent, verdict

from flowcli.report.posterior import PosteriorEvidence, posterior_findings
from flowcli.variational.again import PastPosterior
from flowcli.variational.evaluate import Verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and the run of a fit."""
    folder = write(tmp_path_factory.mktemp("posterior-report"))
    succeed("fit", "recipe.yaml", "--allow-code", "-o", "run", cwd=folder)
    (folder / "ran").unlink()
    return folder


@pytest.fixture
def moved(folder: Path) -> Path:
    """The same folder; what a test writes over the target is undone."""
    before = {name: (folder / name).read_text() for name in ("target.py", "data.json")}
    yield folder
    for name, text in before.items():
        (folder / name).write_text(text)
    (folder / "ran").unlink(missing_ok=True)


def page(folder: Path, *arguments: object) -> str:
    """The page's text, which the command must write."""
    assert succeed("report", *arguments, "-o", "page.html", "--force", cwd=folder) == "page.html\n"
    return (folder / "page.html").read_text()


def test_a_posterior_whose_draws_need_their_weights(moved: Path) -> None:
    html = page(moved, "run", "--allow-code", "--pictures", "pictures")
    words = verdict(html)
    measured = json.loads(succeed("evaluate", "run", "--allow-code", "--json", cwd=moved))
    assert measured["k_hat"] < 0.5
    assert "Usable, with a reservation: use its draws with --resample or --weights." in words
    assert f"Can its draws be trusted? Y{measured['trust'][1:]}. K-hat is {measured['k_hat']:.2f}." in words
    assert "1 peak was found" in words
    cells = dict(re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", html[html.index("Against the target") :]))
    assert cells["effective sample size"] == f"{measured['effective_sample_size']:,.0f} of 20,000"
    assert cells["evidence"].startswith(f"{measured['evidence']:.4f} ± ")
    assert re.findall("<h2>(.*)</h2>", html) == [
        "Training",
        "The posterior",
        "Against the target",
        "What it was made of",
    ]
    assert "target.py" in html[html.index("run.json") :]
    assert {path.name for path in (moved / "pictures").iterdir()} == {"corner.png", "elbo.png"}
    assert "<script" not in html
    assert len(html) < 3e6


def test_its_numbers_are_the_posteriors(moved: Path) -> None:
    html = page(moved, "run", "--allow-code")
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([\d.-]+)</td><td>([\d.]+)</td><td>([\d.-]+) … ([\d.]+)</td>", html)
    found = {name: [float(value) for value in values] for name, *values in rows}
    assert list(found) == ["mu", "theta[0]", "theta[1]", "rate"]
    assert found["mu"] == pytest.approx([3, 1, 3 - 1.645, 3 + 1.645], abs=0.1)
    assert found["rate"] == pytest.approx([0.5, 0.5, 0.0256, 1.498], abs=0.1)


def test_without_leave_no_code_runs_and_the_page_says_so(folder: Path) -> None:
    html = page(folder, "run")
    assert not (folder / "ran").exists()
    words = verdict(html)
    assert "Usable, with a reservation: its draws were not set against the target" in words
    assert f"with --allow-code {folder / 'target.py'} is" in words
    assert "<h2>The posterior</h2>" in html
    assert "Against the target" not in html


def test_a_flow_that_is_beside_its_target(moved: Path) -> None:
    (moved / "data.json").write_text('{"at": 30.0}')
    words = verdict(page(moved, "run", "--allow-code"))
    assert re.search(r"Do not rely on this model yet: k-hat is \d+\.\d\d\.", words)
    assert "✗ bad Can its draws be trusted? No: k-hat is" in words
    assert "have changed since the fit" in words


@pytest.mark.parametrize(
    ("k_hat", "divergence", "finite", "tones"),
    [
        (0.3, 0.001, 1.0, ["good", "good"]),
        (0.3, 0.5, 1.0, ["good", "fair"]),
        (0.6, 0.001, 1.0, ["good", "fair"]),
        (0.8, 0.001, 1.0, ["good", "bad"]),
        (float("nan"), 0.001, 1.0, ["good", "bad"]),
        (0.3, 0.001, 0.9, ["good", "fair", "fair"]),
    ],
)
def test_tones(folder: Path, k_hat: float, divergence: float, finite: float, tones: list[str]) -> None:
    measured = Verdict(20_000, -divergence, 0.0, 0.0, 0.0, divergence, k_hat, 15_000, finite, "as it is")
    found = posterior_findings(PosteriorEvidence(PastPosterior.load(str(folder / "run")), {}, verdict=measured))
    assert [finding.tone for finding in found] == tones


def test_one_whose_draws_have_no_weight(moved: Path) -> None:
    (moved / "target.py").write_text(TARGET + "    return value.where(mu > 1e3, -torch.inf)\n")
    text = (moved / "target.py").read_text().replace("return value + ", "value = value + ")
    (moved / "target.py").write_text(text)
    words = verdict(page(moved, "run", "--allow-code"))
    assert "Do not rely on this model yet: the fit has failed." in words
    assert "only 0 of 20000 draws have a finite weight" in words


def test_one_that_ended_too_early(moved: Path) -> None:
    succeed("fit", "recipe.yaml", "--allow-code", "-o", "early", "-s", "train.epochs=1", cwd=moved)
    words = verdict(page(moved, "early"))
    assert "! look All of the epochs it was given went by, and the ELBO may still be rising: 1 epochs" in words


def test_several_side_by_side(folder: Path) -> None:
    bent(200)[["x", "y"]].to_csv(folder / "t.csv", index=False)
    succeed("fit", "maf-affine", "t.csv", "-o", "rows", *FAST, cwd=folder)
    html = page(folder, "run", "run/model.safetensors", "rows", "t.csv")
    assert html.count('<div class="verdict') == 3
    assert "Only the model file is here" in verdict(html)
    assert "The oddest of t.csv" in html


@pytest.mark.parametrize("manifest", ["{", "3", '{"seconds": 3}', '{"seconds": {"total": 1}, "target": [{"file": 1}]}'])
def test_a_damaged_run_folder(folder: Path, tmp_path: Path, manifest: str) -> None:
    for name in ("model.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((folder / "run" / name).read_bytes())
    (tmp_path / "run.json").write_text(manifest)
    for command in ("report", "inspect"):
        done = flowcli(command, ".", cwd=tmp_path)
        damaged = "error: .: its metrics.jsonl or run.json is damaged; name the model file in it.\n"
        assert (done.returncode, done.stderr) == (3, damaged)


def test_inspect_shows_the_flow_and_where_it_comes_from(folder: Path) -> None:
    text = succeed("inspect", "run", cwd=folder)
    assert "Coupling, affine" in text
    assert f"target 1  {folder / 'target.py'}, " in text
    assert "fit recipe.yaml --allow-code" in text
    assert json.loads(succeed("inspect", "run", "--json", cwd=folder))["provenance"]["sha256"]


TUNE = "`tune` searches by held-out rows; `flowcli evaluate RUN --allow-code` says what a fit is worth"
COMPARE = "`compare` is for runs of data; `flowcli report` shows posteriors side by side"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("compare", "run"), f"run: is of a target, and {COMPARE}."),
        (("tune", "recipe.yaml"), f"recipe.yaml: has a target, and {TUNE}."),
        (("report", "run", "data.csv", "-o", "never.html"), "DATA: is for data, and this is of a target."),
    ],
)
def test_what_is_for_data_is_refused(folder: Path, words: tuple[str, ...], sentence: str) -> None:
    done = flowcli(*words, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {sentence}\n")
    assert not (folder / "never.html").exists()


@pytest.mark.browser
def test_in_a_browser(moved: Path) -> None:
    with chromium() as browser:
        for words in (("run", "--allow-code"), ("run",), ("run", "run/model.safetensors", "--allow-code")):
            page(moved, *words)
            opens_well(browser, moved / "page.html")
