"""Random numbers as functions of their place, not of a generator that everyone shares."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniforms(seed: int, epoch: int, start: int, rows: int, columns: int) -> Tensor:
    """``(rows, columns)`` float64 draws from (0, 1) for the rows from ``start`` on, in an epoch.

    Philox is counter-based (Salmon et al. 2011): row r's draws depend on (seed, epoch, r) alone, so batches, shards
    and a resumed run all see the same numbers. One step of its counter gives four draws; rows are padded to that.
    """
    padded = -(-columns // 4) * 4
    generator = np.random.Philox(key=[seed, epoch])
    generator.advance(start * padded // 4)
    draws = np.random.Generator(generator).random((rows, padded))[:, :columns]
    return torch.from_numpy(np.clip(draws, 2.0**-54, None))


def lattice(points: int, columns: int) -> Tensor:
    """``(points, columns)``: points of (0, 1)^columns spread evenly, the same on every machine.

    A Kronecker lattice on the powers of the generalised golden ratio (Roberts 2018), centred: one point is the middle.
    """
    ratio = 2.0
    for _ in range(64):  # the root of g^(d+1) = g + 1
        ratio = (1 + ratio) ** (1 / (columns + 1))
    steps = ratio ** -torch.arange(1, columns + 1, dtype=torch.float64)
    k = torch.arange(points, dtype=torch.float64)[:, None] - (points - 1) / 2
    return (0.5 + k * steps).remainder(1.0).clamp(1e-9, 1 - 1e-9)
