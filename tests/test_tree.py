"""Parents of discrete columns against counts by hand, and a fit that begins from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from flowcli.data.columns import Cells
from flowcli.flows.levels import Levels
from flowcli.recipe import from_dict
from flowcli.training.prepare import prepare
from flowcli.training.tree import parents

ENTROPY = 5.43  # of chain's rows, in nats; without the dependence it is 7.74


def cells_of(codes: torch.Tensor) -> list[Cells]:
    return [Cells(torch.bincount(column).double() / len(column), None) for column in codes.long().T]


def chain(n: int) -> torch.Tensor:
    """A column, its noisy double, one of the second, and one that goes with nothing."""
    rng = np.random.default_rng(0)
    a = rng.integers(4, size=n)
    b = np.where(rng.random(n) < 0.9, 2 * a + rng.integers(2, size=n), rng.integers(8, size=n))
    c = np.where(rng.random(n) < 0.8, b, rng.integers(8, size=n))
    return torch.from_numpy(np.stack([a, b, c, rng.integers(9, size=n)], 1)).double()


def test_the_parent_is_the_column_that_tells_most() -> None:
    codes = chain(20_000)
    found = parents(codes, None, cells_of(codes))
    assert {i: parent for i, (parent, _) in found.items()} == {1: 0, 2: 1}


def test_what_is_known_are_the_counts_but_for_a_few_rows_of_the_frequencies() -> None:
    codes = chain(20_000)
    columns = cells_of(codes)
    _, told = parents(codes, None, columns)[2]
    masses = columns[2].frequencies * told.exp()
    assert torch.allclose(masses.sum(1), torch.ones(8, dtype=torch.float64))
    counts = pd.crosstab(codes[:, 1].numpy(), codes[:, 2].numpy()).to_numpy(float)
    assert np.abs(masses.numpy() - counts / counts.sum(1, keepdims=True)).max() < 0.01


def test_pairs_that_never_occur_are_as_good_as_impossible() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(12, size=50_000)
    b = rng.integers(np.where(a == 1, 28, 31))
    codes = torch.from_numpy(np.stack([a, b], 1)).double()
    columns = cells_of(codes)
    parent, told = parents(codes, None, columns)[1]
    assert parent == 0
    assert (columns[1].frequencies * told.exp())[1, 28:].sum() < 1e-3


def test_columns_of_many_levels_do_not_find_each_other_by_chance() -> None:
    codes = torch.from_numpy(np.random.default_rng(2).integers(300, size=(3_000, 3))).double()
    assert parents(codes, None, cells_of(codes)) == {}


def test_missing_values_are_not_counted() -> None:
    codes = chain(20_000)
    columns = cells_of(codes)
    missing = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    spoilt = torch.where(missing, 0.0, codes)
    found = parents(spoilt, missing, columns)
    assert {i: parent for i, (parent, _) in found.items()} == {1: 0, 2: 1}
    whole = parents(codes, None, columns)
    assert (columns[1].frequencies * (found[1][1].exp() - whole[1][1].exp())).abs().max() < 0.05


def test_a_fit_begins_from_them() -> None:
    codes = chain(20_000).numpy().astype(int)
    frame = pd.DataFrame({name: codes[:, i].astype(str) for i, name in enumerate("abcd")})
    prepared = prepare(from_dict({"version": 1, "flow": {"type": "maf"}, "train": {"epochs": 1}}), frame)
    (levels,) = (module for module in prepared.flow.modules() if isinstance(module, Levels))
    names = [column.name for column in prepared.codec.columns]
    assert [levels.parents[names.index(name)] for name in "abc"] != [None] * 3
    y, log_det = prepared.codec.encode(prepared.held_out.raw, torch.full(prepared.held_out.raw.shape, 0.5))
    at_start = float((prepared.flow.log_prob(y.float()) + log_det).detach().mean())
    assert at_start == pytest.approx(-ENTROPY, abs=0.15)
