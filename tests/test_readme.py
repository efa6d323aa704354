"""The README does what it says: every command of its tour, every recipe and its Python, in order, in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import ENVIRONMENT, succeed

from flowcli.recipe import shipped

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FEW_EPOCHS = ("-s", "train.epochs=2")


def blocks(language: str) -> list[str]:
    """The code blocks of the tour."""
    tour = README[README.index("## The tour") :]
    return re.findall(rf"```{language}\n(.*?)```", tour, flags=re.DOTALL)


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


def test_the_tours_commands(folder: Path) -> None:
    lines = "\n".join(blocks("sh")).replace("fit glow-digits", "fit glow-digits -s train.epochs=2")
    lines = lines.replace("fit posterior", "fit posterior -s train.epochs=2")
    lines = lines.replace("--trials 20", "--trials 2 -s train.epochs=2 -s data.validation=0.5")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    assert lines.count("flowcli ") > 10
    functions = "\n".join(
        f'{name}() {{ "{sys.executable}" -m {module} "$@"; }}'
        for name, module in (("flowcli", "flowcli"), ("torchrun", "torch.distributed.run"))
    )
    script = f"set -euo pipefail\n{functions}\n{lines}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
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
