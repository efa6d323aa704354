"""Spark scores as the command does. Needs the `spark` extra and Java 17: `pytest -m spark`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import flowcli, succeed
from shard_cases import make_lake, table

from flowcli.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
FILES, ROWS = 10, 100_000


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    sql = pytest.importorskip("pyspark.sql")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a million rows, of which some lack a value, and the command's scores of it."""
    folder = make_lake(tmp_path_factory.mktemp("spark"))
    (folder / "million").mkdir()
    for i in range(FILES):
        pq.write_table(table(ROWS, i), folder / "million" / f"{i}.parquet")
    command = ("score", "model.safetensors", "million", "-o", "scores.parquet", "--keep-all", "--alpha", "0.01")
    succeed(*command, cwd=folder)
    return folder


def test_a_million_rows_have_the_commands_scores(spark: SparkSession, lake: Path) -> None:
    import flowcli.spark

    rows = spark.read.parquet(str(lake / "million"))
    scores = flowcli.spark.score(lake / "model.safetensors", rows, alpha=0.01)
    scores.write.parquet(str(lake / "by-spark"))
    theirs = pq.read_table(lake / "by-spark").sort_by("id")
    ours = pq.read_table(lake / "scores.parquet").sort_by("id")
    assert theirs.num_rows == ours.num_rows == FILES * ROWS
    assert theirs.column_names == [name for name in ours.column_names if name not in ("row_id", "source")]
    sides = [{name: side[name].to_numpy() for name in theirs.column_names} for side in (theirs, ours)]
    for name in ("log_prob", "score", "log_prob_error"):
        a, b = (side[name] for side in sides)
        assert np.array_equal(np.isnan(a), np.isnan(b))
        near = np.abs(a - b) <= 1e-6 * np.maximum(1, np.abs(b))
        assert near[~np.isnan(b)].all(), name
    same = sides[0]["score"] == sides[1]["score"]  # to the bit: ranks and flags follow from them
    assert same.mean() > 0.5
    for name in ("x", "site", "p_value", "is_anomaly", "status"):
        assert (sides[0][name] == sides[1][name])[same].all(), name


def test_the_drivers_mistakes_are_sentences(spark: SparkSession, lake: Path) -> None:
    import flowcli.spark

    rows = spark.read.parquet(str(lake / "million"))
    with pytest.raises(UsageError, match="'score' is also the name of a score column"):
        flowcli.spark.score(lake / "model.safetensors", rows.withColumnRenamed("id", "score"))
    with pytest.raises(ModelFileError, match="no such file"):
        flowcli.spark.score(lake / "none.safetensors", rows)


def test_a_shard_reads_what_spark_wrote(spark: SparkSession, lake: Path) -> None:
    spark.read.parquet(str(lake / "lake")).repartition(3).write.parquet(str(lake / "written"))
    done = flowcli("score", "model.safetensors", "written", "-o", "sharded", "--shard", "0/1", cwd=lake)
    assert done.returncode == 0, done.stderr
    read = spark.read.parquet(str(lake / "sharded"))
    assert read.count() == pq.read_table(lake / "sharded").num_rows > 0
