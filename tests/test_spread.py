"""How wide a conditional flow's densities are, set by rows that it has not learned from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import flowcli
from flowcli.flows.base import Gaussian, StudentT
from flowcli.flows.flow import Flow
from flowcli.flows.levels import Cells
from flowcli.flows.outline import outline
from flowcli.flows.registry import build
from flowcli.flows.spread import CHOICES, Spread, widest_as_good
from flowcli.model import Model


def conditional(discrete: int, continuous: int) -> Flow:
    """A flow off its start, given two numbers."""
    torch.manual_seed(0)
    cells = [Cells(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)) for _ in range(discrete)]
    flow = build(
        "maf", discrete + continuous, 2, cells=cells, base="student_t", components=1, whiten=True, layers=2, hidden=[8],
        transform="affine", bins=8, order="reverse", direction="maf",
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def rows(n: int, discrete: int, continuous: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    codes = torch.randint(3, (n, discrete), generator=rng) + 0.5
    real = torch.randn(n, continuous, generator=rng, dtype=torch.float64)
    return torch.cat([codes.double(), real], 1), torch.randn(n, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("narrow", [Gaussian(1), StudentT(1)])
def test_a_spread_density_integrates_to_one_and_is_what_is_drawn(narrow: Gaussian | StudentT) -> None:
    base = Spread(narrow).double()
    base.log_spread.fill_(0.7)
    z = torch.linspace(-400, 400, 800_001, dtype=torch.float64)[:, None]
    density = base.log_prob(z).exp()
    assert float(torch.trapezoid(density, z[:, 0]).detach()) == pytest.approx(1, abs=1e-3)
    drawn = base.sample(100_000, torch.Generator().manual_seed(0)).detach()
    plain = narrow.sample(100_000, torch.Generator().manual_seed(0)).detach()
    torch.testing.assert_close(drawn, math.exp(0.7) * plain)
    below = float(density[z[:, 0] < 1].sum().detach()) * 1e-3
    assert float((drawn < 1).double().mean()) == pytest.approx(below, abs=0.01)


@pytest.mark.parametrize(("discrete", "continuous"), [(0, 2), (2, 0), (2, 2)])
def test_choices_are_tried_as_the_density_has_them(discrete: int, continuous: int) -> None:
    flow, (x, context) = conditional(discrete, continuous), rows(50, discrete, continuous)
    assert len(flow.spreads) == (discrete > 0) + (continuous > 0)
    for spread in flow.spreads:
        spread.zero_()
    plain = flow.log_prob(x, context)
    tried = flow.under_choices(x, context).split(len(CHOICES))
    for spread in flow.spreads:
        spread.zero_()
    at_zero = int(CHOICES.abs().argmin())
    for spread, under in zip(flow.spreads, tried, strict=True):
        for k in (0, 7, 33):
            spread.fill_(CHOICES[k])
            torch.testing.assert_close(flow.log_prob(x, context) - plain, under[k] - under[at_zero])
        spread.zero_()


def test_discrete_masses_sum_to_one_under_any_spread_and_tend_to_the_frequencies() -> None:
    flow = conditional(1, 0)
    _, context = rows(20, 1, 0)
    masses = {}
    for choice in (-1.0, 0.0, 20.0):
        flow.spreads[0].fill_(choice)
        logs = [flow.log_prob(torch.full((20, 1), code + 0.5, dtype=torch.float64), context) for code in range(3)]
        masses[choice] = torch.stack(logs, 1).exp()
        torch.testing.assert_close(masses[choice].sum(1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(masses[20.0], torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).expand(20, 3))
    assert (masses[-1.0] - masses[0.0]).abs().max() > 0.01


def test_the_widest_as_good_is_taken() -> None:
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * math.exp(0.3)
    log_probs = torch.stack([-0.5 * (z * torch.exp(-s)) ** 2 - s for s in CHOICES])
    assert float(widest_as_good(log_probs)) == pytest.approx(0.3, abs=0.051)
    few = log_probs[:, :50]
    likeliest = few.mean(1).argmax()
    chosen = int((widest_as_good(few) == CHOICES).nonzero())
    assert chosen > likeliest
    loss = few[likeliest] - few  # the next wider one would be too unlikely
    short = loss.mean(1) > loss.std(1) / math.sqrt(50)
    assert not short[chosen]
    assert short[chosen + 1]
    assert float(widest_as_good(log_probs[:, :1])) == 0.0
    assert float(widest_as_good(log_probs[:, :0])) == 0.0


RECIPE: dict[str, Any] = {
    "data": {"given": ["x"], "numbers": "real"},
    "flow": {"type": "maf", "layers": 1, "hidden": [16], "transform": "spline"},
    "train": {"epochs": 30, "patience": 30, "noise": 0.5, "ema": 0.9},
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, 2000)
    return pd.DataFrame({"x": x, "y": x + 0.1 * rng.standard_normal(2000)})


def test_noise_does_not_widen_what_is_predicted(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = flowcli.fit(RECIPE, frame[:1500], run=tmp_path / "run")
    (spread,) = model.flow.spreads
    assert float(spread) < -0.5
    assert outline(model.flow).parts[-1].name == f"base StudentT, {math.exp(float(spread)):.2f} times as wide"
    test = frame[1500:]
    narrow = model.log_prob(test).mean()
    assert Model.load(tmp_path / "run").log_prob(test).mean() == pytest.approx(narrow, abs=1e-9)
    assert model.about["held_out_log_prob"] == pytest.approx(narrow, abs=0.2)
    spread.zero_()
    assert model.log_prob(test).mean() < narrow - 0.3


def test_rows_without_a_context_have_no_spread(frame: pd.DataFrame) -> None:
    model = flowcli.fit({"flow": RECIPE["flow"], "train": {"epochs": 1}}, frame)
    assert model.flow.spreads == []
    assert not any("log_spread" in name for name in model.flow.state_dict())
