"""Scores of Spark's DataFrames. Needs the ``spark`` extra, and flowcli on every executor.

scores = flowcli.spark.score("run", spark.read.parquet("lake/"), alpha=0.01)
scores.write.parquet("scores/")
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from pyspark import Broadcast
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from flowcli import tensorfile
from flowcli.model import Model, model_file
from flowcli.recipe import MethodName
from flowcli.scoring import Level, Scorer


def score(
    model: str | pathlib.Path,
    dataframe: DataFrame,
    alpha: float | None = None,
    threshold: float | None = None,
    method: MethodName | None = None,
    samples: int | None = None,
    explain: int = 0,
) -> DataFrame:
    """The DataFrame with the scores of each row beside its own columns, as ``flowcli score --keep-all`` has them. Rows
    have no number and no file here: keep a key.

    ``model`` is a run folder or a model file, on a disk or in a store. The driver reads it, and its bytes are broadcast
    once to each executor. The options are those of :func:`flowcli.scoring.score_batch`.

    Raises ModelFileError, and UsageError when a column is called as one of the scores is. Rows that cannot be scored
    raise DataError when they are computed.
    """
    file = model_file(model)
    content = tensorfile.contents(file)
    parsed = Model.parse(content, file)
    shared = dataframe.sparkSession.sparkContext.broadcast(content)
    job = _Job(shared, str(file), parsed.digest, Level(alpha, threshold), method, samples, explain)
    scorer = job.scorer_of(parsed)
    scorer.check_names(dataframe.columns)
    schema = StructType([*dataframe.schema.fields, *from_arrow_schema(scorer.schema).fields])

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return map(_scorer(job).beside, batches)

    return dataframe.mapInArrow(scored, schema)


@dataclass(frozen=True)
class _Job:
    """What a worker needs; equal for the same model and options, whichever way it came."""

    shared: Broadcast[bytes] = field(compare=False)
    file: str
    digest: str
    level: Level
    method: MethodName | None
    samples: int | None
    explain: int

    def scorer_of(self, model: Model) -> Scorer:
        return Scorer(model, self.level, self.method, self.samples, self.explain)


@functools.lru_cache(maxsize=1)
def _scorer(job: _Job) -> Scorer:
    """The scorer of a worker, a process that Spark keeps from task to task. Its task has one core."""
    torch.set_num_threads(1)
    return job.scorer_of(Model.parse(job.shared.value, job.file))
