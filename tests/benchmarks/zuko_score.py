"""The scoring of a parquet file as one writes it with pyarrow and zuko: what ``pipeline.py`` measures against.

    python -m tests.benchmarks.zuko_score WEIGHTS DATA OUT

WEIGHTS is what ``torch.save`` wrote: the flow's activation and state, and the columns' means and deviations.
"""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zuko

LAYERS, HIDDEN, CHUNK = 5, (128, 128), 8192


def new_flow(columns: int, activation: str) -> zuko.flows.MAF:
    """An affine MAF of the size of flowcli's ``maf-affine``, with ``ReLU``, as zuko has it by itself, or ``SiLU``."""
    return zuko.flows.MAF(columns, transforms=LAYERS, hidden_features=HIDDEN, activation=getattr(torch.nn, activation))


def main(weights: str, data: str, out: str) -> None:
    stored = torch.load(weights, weights_only=True)
    flow = new_flow(len(stored["mean"]), stored["activation"])
    flow.load_state_dict(stored["flow"])
    table = pq.read_table(data)
    rows = torch.stack([torch.tensor(column.to_numpy(), dtype=torch.float32) for column in table.columns], 1)
    rows = (rows - stored["mean"]) / stored["deviation"]
    with torch.no_grad():
        log_prob = torch.cat([flow().log_prob(chunk) for chunk in rows.split(CHUNK)])
    log_prob -= stored["deviation"].log().sum()
    pq.write_table(pa.table({"log_prob": log_prob.numpy()}), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
