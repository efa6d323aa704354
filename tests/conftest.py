"""One thread a process: tests run side by side, and small networks gain nothing from more."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from image_cases import make_world

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def sample_data() -> Path:
    return ROOT / "sample_data"


@pytest.fixture(scope="session")
def mixed() -> pd.DataFrame:
    """A table with a column of every kind, and dependence between them."""
    rng = np.random.default_rng(0)
    n = 1500
    x = 10 + 3 * rng.standard_normal(n)
    count = rng.poisson(np.exp(x / 10))
    site = np.where(x + rng.standard_normal(n) > 11, "north", rng.choice(["south", 'w"est, é'], n))
    y = x * 0.5 + count + 0.3 * rng.standard_normal(n)
    return pd.DataFrame(
        {"x": x, "count": count, "site": site, "flag": rng.random(n) < 0.3, "y": y.astype("float32"), "unit": "kg"}
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of pictures in every container, and a model of them."""
    return make_world(tmp_path_factory.mktemp("images"))
