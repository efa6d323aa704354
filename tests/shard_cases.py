"""A small lake of parquet and a model for it, for tests of shards, stores and engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import flowcli

FILES = 9
SMALL = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}, "train": {"epochs": 2}, "data": {"exclude": ["id"]}}


def table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(rows)
    y = pa.array(x * rng.standard_normal(rows), mask=rng.random(rows) < 0.005)
    return pa.table({"id": np.arange(rows) + 10**6 * seed, "x": x, "y": y, "site": rng.choice(["a", "b"], rows)})


def make_lake(folder: Path, rows: int = 300) -> Path:
    """``lake`` (files of several row groups, one of them empty) and ``model.safetensors`` in the folder."""
    (folder / "lake").mkdir(parents=True)
    for i in range(FILES):
        pq.write_table(table(rows + 17 * i, i), folder / "lake" / f"{i}.parquet", row_group_size=100)
    pq.write_table(table(0), folder / "lake" / "empty.parquet")
    complete = table(400, 99).filter(pa.compute.field("y").is_valid())
    flowcli.fit(SMALL, complete).save(folder / "model.safetensors")
    return folder
