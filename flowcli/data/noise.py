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
    """``(points, columns)``: places in (0, 1)^columns spread evenly, the same on every machine; one is the middle.

    A scrambled Sobol sequence (Owen 1998): with a power of two of points, each column has one in each of that many
    equal parts.
    """
    if points == 1:
        return torch.full((1, columns), 0.5, dtype=torch.float64)
    draws = torch.quasirandom.SobolEngine(columns, scramble=True, seed=0).draw(points, dtype=torch.float64)
    return draws.clamp(1e-9, 1 - 1e-9)
