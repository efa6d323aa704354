"""The README does what it says: every command of its tour, every recipe and its Python, in order, in one folder."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pandas as pd
import pytest
from command import ENVIRONMENT, succeed

from flowcli.recipe import shipped

ROOT = pages.ROOT
README = (ROOT / "README.md").read_text()
FEW_EPOCHS = ("-s", "train.epochs=2")


def blocks(language: str) -> list[str]:
    """The code blocks of the tour, and of all that comes after it."""
    return pages.blocks(README[README.index("## The tour") :], language)


def table(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    age = rng.integers(18, 90, n)
    return pd.DataFrame(
        {
            "id": np.arange(n),
            "age": age,
            "price": np.exp(age / 30 + rng.standard_normal(n)),
            "site": rng.choice(["north", "south"], n),
            "is_fraud": rng.random(n) < 0.1,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader of the tour has: tables of the names it uses."""
    (tmp_path / "data").mkdir()
    table(300).to_parquet(tmp_path / "train.parquet", index=False)
    table(301).to_csv(tmp_path / "data" / "one.csv", index=False)
    for name in ("new", "test"):
        table(50).to_parquet(tmp_path / f"{name}.parquet", index=False)
    table(50).to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path


def test_the_first_command(tmp_path: Path) -> None:
    command, _ = pages.blocks(README[: README.index("## The tour")], "sh")
    install = "python3 -m venv .venv && .venv/bin/pip install -q . && "
    assert command.startswith(install)
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    script = (
        command.removeprefix(install)
        .replace(".venv/bin/", "")
        .replace("fit quickstart", "fit quickstart -s train.epochs=2")
    )
    rows = [line.split(",") for line in pages.shell(script, tmp_path).stdout.splitlines()]
    scores = [float(row[4]) for row in rows[1:]]  # after the run's path
    assert len(scores) >= 9
    assert scores == sorted(scores, reverse=True)


def test_your_own_table(tmp_path: Path) -> None:
    """Five commands with the installation, and each names the one that follows."""
    _, block = pages.blocks(README[: README.index("## The tour")], "sh")
    name = "my table.csv"  # which a shell reads as one only where it is quoted
    table(300).to_csv(tmp_path / name, index=False)
    commands = block.replace("train.csv", f"'{name}'").splitlines()
    assert len(commands) == 4
    for command, after in itertools.pairwise(commands):
        done = pages.shell(command.replace("flowcli fit", "flowcli fit -s train.epochs=2"), tmp_path)
        assert done.returncode == 0, done.stderr
        hint = done.stderr.splitlines()[-1].removeprefix("Next: ").removeprefix("read train.yaml, and ")
        assert after.startswith(hint.split("; ")[0])
    ranked = [line.split(",") for line in pages.shell(commands[-1], tmp_path).stdout.splitlines()]
    scores = [float(row[3]) for row in ranked]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pd.read_csv(tmp_path / "scores.csv")["score"].max()


def test_the_tours_commands(folder: Path) -> None:
    lines = "\n".join(blocks("sh")).replace("fit glow-digits", "fit glow-digits -s train.epochs=2")
    lines = lines.replace("fit posterior", "fit posterior -s train.epochs=2")
    lines = lines.replace("--trials 20", "--trials 2 -s train.epochs=2 -s data.validation=0.5")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    assert lines.count("flowcli ") > 10
    done = pages.shell(lines, folder)
    assert done.returncode == 0, done.stderr
    assert {
        "mine.yaml",
        "run",
        "by-site",
        "scores.parquet",
        "drawn.parquet",
        "threes.png",
        "way.png",
        "odd.parquet",
    } <= {path.name for path in folder.iterdir()}


def test_the_tours_recipes(folder: Path) -> None:
    for i, recipe in enumerate(blocks("yaml")):
        (folder / "r.yaml").write_text(recipe)
        succeed("fit", "r.yaml", "train.parquet", "-o", f"run-{i}", *FEW_EPOCHS, cwd=folder)
    assert i == 1


def test_the_tours_python(folder: Path) -> None:
    (code,) = blocks("python")
    read = "import pandas; frame = pandas.read_parquet('train.parquet').drop(columns='id')\n"
    subprocess.run([sys.executable, "-c", read + code], cwd=folder, env=ENVIRONMENT, check=True, timeout=300)
    assert (folder / "model.safetensors").exists()


def test_the_page_of_conditional_densities(folder: Path) -> None:
    page = (ROOT / "recipes" / "conditional.md").read_text()
    (commands,), (code,) = pages.blocks(page, "sh"), pages.blocks(page, "python")
    done = pages.shell(commands.replace("fit conditional", "fit conditional -s train.epochs=2"), folder)
    assert done.returncode == 0, done.stderr
    read = "import pandas; frame = pandas.read_parquet('train.parquet')[['price', 'age', 'site']]\n"
    code = code.replace("overrides=[", "overrides=['train.epochs=2', ")
    (folder / "from_python.py").write_text(f"{read}{code}\nassert len(predicted) == 300\n")
    done = pages.shell("python from_python.py", folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_recipe_runs(name: str, folder: Path) -> None:
    if "target:" in shipped.path(name).read_text():
        succeed("fit", name, "--allow-code", "-o", "run", *FEW_EPOCHS, cwd=folder)
        assert len(succeed("sample", "run", "-n", "5", cwd=folder).splitlines()) == 6
        return
    if "pictures" in shipped.path(name).read_text():
        digits = ROOT / "sample_data" / "digits.zip"
        small = ("-s", "flow.layers=2", "-s", "flow.levels=2", "-s", "flow.hidden=[16, 16]")
        succeed("fit", name, digits, "-o", "run", *FEW_EPOCHS, *small, cwd=folder)
        assert len(succeed("score", "run", digits, cwd=folder).splitlines()) == 1798
        given = ("--given", "label=3") if "given:" in shipped.path(name).read_text() else ()
        succeed("sample", "run", "-n", "5", *given, "-o", "sheet.png", cwd=folder)
        return
    succeed("fit", name, "train.parquet", "-o", "run", "-s", "data.exclude=[id]", *FEW_EPOCHS, cwd=folder)
    assert len(succeed("score", "run", "new.parquet", cwd=folder).splitlines()) == 51
    assert len(succeed("sample", "run", "-n", "5", cwd=folder).splitlines()) == 6
