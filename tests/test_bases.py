"""Bases: densities that integrate to one and samplers that draw from them."""

from __future__ import annotations

import pytest
import torch

from flowcli.flows.base import BASES, StudentT


def make(name: str) -> torch.nn.Module:
    base = BASES[name](1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if name == "student_t":
            base.raw.fill_(1.0)
    return base.double()


@pytest.mark.parametrize("name", BASES)
def test_samples_follow_the_density(name: str) -> None:
    base = make(name)
    t = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    grid, weight = torch.sinh(t), torch.cosh(t) * (t[1] - t[0])
    with torch.no_grad():
        cdf = (base.log_prob(grid[:, None]).exp() * weight).cumsum(0)
        assert cdf[-1] == pytest.approx(1, abs=1e-3)
        draws = base.sample(200_000, torch.Generator().manual_seed(0))[:, 0]
    for quantile in (0.001, 0.05, 0.3, 0.5, 0.8, 0.99):
        point = grid[torch.searchsorted(cdf, torch.tensor(quantile, dtype=torch.float64))]
        share = (draws <= point).double().mean()
        error = (quantile * (1 - quantile) / 200_000) ** 0.5
        assert abs(share - quantile) < 4.5 * error + 2e-3 * quantile, (name, quantile)


@pytest.mark.parametrize("name", BASES)
def test_samples_are_finite_and_seeded(name: str) -> None:
    base = make(name).float()
    a, b = (base.sample(50_000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.isfinite(a).all()
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", BASES)
def test_temperature_zero_is_one_point_or_the_components_centres(name: str) -> None:
    draws = make(name).sample(1000, torch.Generator().manual_seed(0), temperature=0.0)
    assert len(draws.unique()) <= 8


def test_student_t_is_torchs() -> None:
    base = StudentT(3).double()
    z = torch.tensor([[0.1, -2.0, 1e6], [3.0, 0.0, -1e150]], dtype=torch.float64)
    theirs = torch.distributions.StudentT(base.degrees_of_freedom()).log_prob(z[:1]).sum(-1)
    ours = base.log_prob(z)
    assert ours[0].item() == pytest.approx(theirs.item(), rel=1e-10)
    assert torch.isfinite(ours).all()
