"""What one would write with zuko to fit a table: the peer of ``flowcli fit`` in ``race.py``.

    python -m tests.benchmarks.zuko_fit train.parquet held_out.parquet --epochs 30 [--cosine]

Prints a line of JSON for each epoch: seconds since the process began, and the held-out log-likelihood in the data's
units.
"""

from __future__ import annotations

import argparse
import json
import math
import time

BEGAN = time.monotonic()

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
import zuko  # noqa: E402


def rows(path: str) -> torch.Tensor:
    table = pq.read_table(path)
    return torch.from_numpy(np.stack([column.to_numpy() for column in table.columns], 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--cosine", action="store_true", help="let the rate fall to zero")
    options = parser.parse_args()
    torch.manual_seed(0)
    train, held_out = rows(options.train), rows(options.held_out)
    mean, scale = train.mean(0), train.std(0)
    log_det = -float(scale.log().sum())
    train, held_out = ((part - mean).div(scale).float() for part in (train, held_out))
    flow = zuko.flows.MAF(train.shape[1], transforms=options.layers, hidden_features=[options.hidden] * 2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.lr)
    steps = len(train) // options.batch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: 0.5 * (1 + math.cos(math.pi * step / (steps * options.epochs))) if options.cosine else 1.0,
    )
    for epoch in range(options.epochs):
        for batch in torch.randperm(len(train))[: steps * options.batch].split(options.batch):
            loss = -flow().log_prob(train[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = torch.cat([flow().log_prob(part) for part in held_out.split(8192)])
        line = {"epoch": epoch + 1, "seconds": time.monotonic() - BEGAN, "held_out": float(found.mean()) + log_det}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
