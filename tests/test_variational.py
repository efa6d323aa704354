"""Variational inference inside: estimators, starts, weights; small targets whose answer is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm
from test_constraints import space_of
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from flowcli.errors import UsageError
from flowcli.flows.base import Gaussian
from flowcli.flows.flow import Flow
from flowcli.flows.linear import ActNorm
from flowcli.recipe import Target, from_dict
from flowcli.variational.ascent import Ascent, Plan
from flowcli.variational.evaluate import Verdict, evaluate
from flowcli.variational.fit import fitted
from flowcli.variational.posterior import Posterior, seeded
from flowcli.variational.start import find
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import evenly, plain_draws, smoothed, truncated

Function = Callable[[dict[str, Tensor], object], Tensor]
TARGET = {"file": "target.py"}


def density_of(function: Function, **parameters: object) -> LogDensity:
    return LogDensity(Target(**TARGET), space_of(**parameters), function, None)


def fit_to(
    function: Function, epochs: int, base: str = "student_t", **parameters: object
) -> tuple[Posterior, LogDensity, Verdict]:
    """A small flow fitted to a function, and what is thought of it."""
    flow = {"type": "realnvp", "layers": 4, "hidden": [32], "base": base}
    train = {"epochs": epochs, "patience": 3, "precision": "float64", "batch_size": 256}
    recipe = from_dict({"target": TARGET, "parameters": dict(parameters), "flow": flow, "train": train})
    density = density_of(function, **parameters)
    posterior, _ = fitted(recipe, density, "")
    return posterior, density, evaluate(posterior, density)


# -- the target ---------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_computed_have_no_density_and_the_others_keep_theirs() -> None:
    def function(parameters: dict[str, Tensor], data: object) -> Tensor:
        x = parameters["x"]
        if (x > 2).any():
            raise ValueError("too far")
        return torch.where(x < -2, torch.nan, -x.square())

    u = torch.tensor([[0.0], [3.0], [-3.0], [1.0], [5.0]], dtype=torch.float64)
    value, slope = density_of(function, x="real").slope(u)
    assert value.tolist() == [0.0, -math.inf, -math.inf, -1.0, -math.inf]
    assert slope[:, 0].tolist() == [0.0, 0.0, 0.0, -2.0, 0.0]


def test_a_target_that_raises_everywhere_is_a_mistake() -> None:
    def function(parameters: dict[str, Tensor], data: object) -> Tensor:
        raise ValueError("no\nsecond line")

    with pytest.raises(UsageError, match=r"^target.py: ValueError: no\.$"):
        density_of(function, x="real")(torch.zeros(4, 1, dtype=torch.float64))


def test_data_keep_all_their_digits() -> None:
    def function(parameters: dict[str, Tensor], data: object) -> Tensor:
        return parameters["x"] - torch.tensor(0.1)

    assert torch.get_default_dtype() == torch.float32
    value = density_of(function, x="real")(torch.full((1,), 0.1, dtype=torch.float64)[:, None])
    assert value.item() == 0.0
    assert torch.get_default_dtype() == torch.float32


# -- the estimator ------------------------------------------------------------------------------------------------


def ascent_from(mean: float, forward: float, draws: int) -> tuple[Ascent, ActNorm]:
    """A Gaussian flow N(mean, 1) on its way to N(0, 1)."""
    density = density_of(lambda p, _: Normal(0.0, 1.0).log_prob(p["x"]), x="real")
    layer = ActNorm(1)
    torch.nn.init.constant_(layer.mean, mean)
    plan = Plan(draws=draws, lr=0.0, clip=1e9, patience=1, epochs=1, forward=forward)
    return Ascent(Flow([layer], Gaussian(1)).double(), density, plan, seeded(0, 0)), layer


@pytest.mark.parametrize("forward", [0.0, 0.5, 1.0])
def test_there_is_no_noise_where_the_flow_is_the_target(forward: float) -> None:
    ascent, layer = ascent_from(0.0, forward, draws=16)
    ascent._step()
    assert layer.mean.grad is not None
    assert layer.log_scale.grad is not None
    assert layer.mean.grad.abs().item() < 1e-12
    assert layer.log_scale.grad.abs().item() < 1e-12


@pytest.mark.parametrize(("forward", "slope"), [(0.0, 0.2), (1.0, 0.2)])
def test_both_divergences_have_their_gradient(forward: float, slope: float) -> None:
    # KL(N(m, 1) ‖ N(0, 1)) = KL(N(0, 1) ‖ N(m, 1)) = m²/2.
    ascent, layer = ascent_from(0.2, forward, draws=200_000)
    ascent._step()
    assert layer.mean.grad is not None
    assert layer.mean.grad.item() == pytest.approx(slope, rel=0.1)


# -- weights ------------------------------------------------------------------------------------------------------


def test_k_hat_tells_a_proposal_whose_tails_are_too_light() -> None:
    # Weights of N(0, 1) under draws of N(0, s²) have a tail of shape 1 − s² (Vehtari et al. 2024).
    rng = np.random.default_rng(0)
    for s, low, high in ((1.0, 0.0, 0.0), (0.9, -0.1, 0.45), (0.4, 0.7, 1.2)):
        x = s * rng.standard_normal(20_000)
        log_weights, shape = smoothed(torch.from_numpy(norm.logpdf(x) - norm.logpdf(x, scale=s)))
        assert low <= shape <= high
        assert np.exp(log_weights).mean() == pytest.approx(1.0)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    with pytest.raises(UsageError, match=r"arviz-stats, which is not installed: pip install 'flowcli\[vi\]'\.$"):
        smoothed(torch.zeros(200, dtype=torch.float64))


def test_draws_without_a_density_weigh_nothing() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal(2000) * 0.1)
    values[::4] = -torch.inf
    log_weights, shape = smoothed(values)
    assert np.exp(log_weights)[::4].max() < 1e-300
    assert shape < 0.7
    assert truncated(torch.full((3,), -torch.inf)).tolist() == [0.0, 0.0, 0.0]


def test_resampling_keeps_shares() -> None:
    log_weights = np.log(np.array([0.1, 0.2, 0.7]))
    places = evenly(log_weights, 1000, np.random.default_rng(0))
    assert (np.abs(np.bincount(places) - np.array([100, 200, 700])) <= 1).all()
    assert (places != np.sort(places)).any()


# -- whole fits ---------------------------------------------------------------------------------------------------


def test_a_gaussian_is_recovered() -> None:
    # Scales from 1e-3 to 1e3, correlations of 0.99, far from where the paths start.
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    correlation = torch.tensor([[1.0, 0.99, 0.5], [0.99, 1.0, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64)
    exact = MultivariateNormal(torch.tensor([5.0, -3.0, 4e3]).double(), scale[:, None] * correlation * scale)
    start = find(density_of(lambda p, _: exact.log_prob(p["x"]) + 7.0, x={"shape": [3]}), seeded(0, 0))
    assert start.peaks == 1
    posterior, density, found = fit_to(lambda p, _: exact.log_prob(p["x"]) + 7.0, 4, "gaussian", x={"shape": [3]})
    assert found.evidence == pytest.approx(7.0, abs=1e-3)
    assert found.elbo == pytest.approx(7.0, abs=1e-3)
    assert found.trust.startswith("yes: ")
    drawn = plain_draws(posterior.flow, density, 20_000, seeded(1, 0)).u
    z = torch.linalg.solve_triangular(exact.scale_tril, (drawn - exact.mean).T, upper=False)
    assert z.mean(1).abs().max() < 0.03
    assert (torch.cov(z) - torch.eye(3)).abs().max() < 0.04


def funnel(parameters: dict[str, Tensor], data: object) -> Tensor:
    """Neal's funnel with two mouths: its density has no maximum along v → −∞."""
    v, x = parameters["v"], parameters["x"]
    return Normal(0.0, 1.5).log_prob(v) + Normal(0.0, torch.exp(v / 2)[:, None]).log_prob(x).sum(1)


def test_a_funnel_is_filled() -> None:
    posterior, density, found = fit_to(funnel, epochs=20, v="real", x={"shape": [2]})
    assert found.k_hat < 0.7
    assert found.evidence == pytest.approx(0.0, abs=0.02)
    table, _ = posterior.resampled(density, 8000)
    v = table.column("v").to_numpy()
    assert abs(v.mean()) < 0.15
    assert v.std() == pytest.approx(1.5, rel=0.1)


def test_no_peak_is_lost() -> None:
    def two(parameters: dict[str, Tensor], data: object) -> Tensor:
        near, far = (Normal(at, 1.0).log_prob(parameters["x"]).sum(1) for at in (-4.0, 4.0))
        return torch.logaddexp(near + math.log(0.3), far + math.log(0.7))

    posterior, density, found = fit_to(two, epochs=8, x={"shape": [2]})
    assert posterior.about["peaks"] == 2
    assert found.evidence == pytest.approx(0.0, abs=0.05)
    table, _ = posterior.resampled(density, 4000)
    assert (table.column("x[0]").to_numpy() < 0).mean() == pytest.approx(0.3, abs=0.03)


def test_bad_weights_are_said_to_be_bad() -> None:
    density = density_of(lambda p, _: Normal(0.0, 1.0).log_prob(p["x"]), x="real")
    layer = ActNorm(1)
    torch.nn.init.constant_(layer.log_scale, math.log(6.0))  # a sixth as wide
    recipe = from_dict({"target": TARGET, "parameters": {"x": "real"}, "flow": {"type": "planar"}})
    found = evaluate(Posterior(recipe, Flow([layer], Gaussian(1)).double(), ""), density)
    assert found.k_hat > 0.7
    assert found.trust.startswith("no: ")
