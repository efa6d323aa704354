"""The pages beside the README do what they say, and every block of code is run by a test or says why not."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pages import ROOT, blocks, languages, shell
from shard_cases import make_lake

# By whom: test_readme.py, and the tests below. The tests of another page name it in their own file.
RUN = {
    "README.md": {"sh", "yaml", "python"},
    "conditional.md": {"sh", "python"},
    "posterior.md": {"sh", "yaml", "python"},
    "scoring_at_scale.md": {"sh", "python"},
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    found = languages(page.read_text())
    if page.name not in RUN:
        others = (path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
        assert not found or any(page.name in text for text in others)
        return
    assert found == RUN[page.name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_has_its_script(page: Path) -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text()):
        picture = (page.parent / name).resolve()
        assert picture.exists()
        assert picture.with_suffix(".py").exists()


def test_the_posteriors_page(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "posterior.md").read_text()
    (recipe,), (commands,) = blocks(text, "yaml"), blocks(text, "sh")
    for name in ("eight_schools.py", "eight_schools.json"):
        shutil.copy(ROOT / "recipes" / name, tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe.replace("patience: 3", "epochs: 1"))
    done = shell(commands.replace("fit posterior", "fit posterior -s train.epochs=1"), tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("drawn", "resampled", "weighted"):
        assert pq.read_metadata(tmp_path / f"{name}.parquet").num_rows == 10_000
    in_arviz, from_python = blocks(text, "python")
    (tmp_path / "in_arviz.py").write_text(f"{in_arviz}\nassert dict(posterior['posterior'].sizes)['draw'] == 10_000\n")
    from_python = from_python.replace('"posterior"', '"mine.yaml"')
    (tmp_path / "from_python.py").write_text(f"{from_python}\nnext(batches)\n")
    done = shell("python in_arviz.py && python from_python.py", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A folder with ``lake`` and ``run``."""
    make_lake(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "run" / "model.safetensors")
    return tmp_path


AT_SCALE = (ROOT / "recipes" / "scoring_at_scale.md").read_text()


def test_shards_by_hand_and_by_torchrun(lake: Path) -> None:
    by_hand, by_torchrun = blocks(AT_SCALE, "sh")
    for commands in (by_hand, by_torchrun):
        done = shell(commands, lake)
        assert done.returncode == 0, done.stderr
        assert (lake / "scores" / "_SUCCESS.json").exists()
        shutil.rmtree(lake / "scores")


@pytest.mark.spark
def test_the_script_for_spark(lake: Path) -> None:
    pytest.importorskip("pyspark")
    script, _ = blocks(AT_SCALE, "python")
    (lake / "score.py").write_text(script)
    done = shell(f'PYSPARK_PYTHON="{sys.executable}" SPARK_LOCAL_IP=127.0.0.1 python score.py run lake scores', lake)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(lake / "scores").num_rows == pq.read_table(lake / "lake").num_rows


@pytest.mark.slow
def test_the_script_for_ray(lake: Path) -> None:
    """With one worker, as this machine may have no more cores than two."""
    pytest.importorskip("ray")
    _, script = blocks(AT_SCALE, "python")
    assert "concurrency=6" in script
    (lake / "score.py").write_text(script.replace("concurrency=6", "concurrency=1"))
    done = shell("RAY_USAGE_STATS_ENABLED=0 python score.py", lake)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(lake / "scores").num_rows == pq.read_table(lake / "lake").num_rows
