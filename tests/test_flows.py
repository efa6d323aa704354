"""One suite for every flow in the registry, at random parameters, never at the identity."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from flow_cases import CASES, IMAGE_CASES, jacobian_log_det, random_flow, rows

from flowcli.flows.bijection import Chain, Reversal
from flowcli.flows.flow import Flow
from flowcli.flows.linear import LU
from flowcli.flows.multiscale import MultiScale
from flowcli.flows.registry import FLOWS, build
from flowcli.recipe import FLOW_OPTIONS

every_case = pytest.mark.parametrize("case", CASES)
shapes = pytest.mark.parametrize(("features", "context"), [(1, 0), (1, 2), (2, 0), (2, 3), (5, 0), (5, 2)])


def test_every_flow_of_the_registry_is_tested_and_in_the_recipe() -> None:
    assert {options["type"] for options in CASES.values()} == set(FLOWS) == set(FLOW_OPTIONS)


@every_case
@shapes
def test_round_trip_and_log_det_in_float64(case: str, features: int, context: int) -> None:
    flow = random_flow(case, features, context).bijection
    x, c = rows(64, features, context)
    z, log_det = flow(x, c)
    back, log_det_back = flow.inverse(z, c)
    assert (z - x).abs().max() > 1e-3  # not the identity
    assert (back - x).abs().max() < 1e-9
    assert (log_det + log_det_back).abs().max() < 1e-8
    assert (jacobian_log_det(flow, x[:4], c) - log_det[:4]).abs().max() < 1e-8
    there = flow.inverse(x, c)[1]
    assert (jacobian_log_det(flow.inverse, x[:4], c) - there[:4]).abs().max() < 1e-8


@every_case
@shapes
def test_round_trip_in_float32(case: str, features: int, context: int) -> None:
    # A round trip's error is rounding times condition number. At a spread of 0.1 these little networks make maps whose
    # smallest singular value is 1e-3, and float64 does no better from z rounded to float32; 0.05 keeps it above 0.02.
    flow = random_flow(case, features, context, dtype=torch.float32, spread=0.05).bijection
    x, c = rows(256, features, context, torch.float32)
    z, log_det = flow(x, c)
    assert z.dtype == log_det.dtype == torch.float32
    assert (flow.inverse(z, c)[0] - x).abs().max() < 1e-4
    assert (flow(flow.inverse(x, c)[0], c)[0] - x).abs().max() < 1e-4


@every_case
def test_inverse_without_gradients_is_the_inverse_with_them(case: str) -> None:
    flow = random_flow(case, 4, 2).bijection
    z, c = rows(32, 4, 2)
    with torch.no_grad():
        x, log_det = flow.inverse(z, c)
    x_grad, log_det_grad = flow.inverse(z, c)
    assert (x - x_grad).abs().max() < 1e-12
    assert (log_det - log_det_grad).abs().max() < 1e-12


@every_case
@pytest.mark.parametrize("context", [0, 2])
def test_gradients_reach_every_parameter(case: str, context: int) -> None:
    flow = random_flow(case, 4, context)
    x, c = rows(64, 4, context)
    (-flow.log_prob(x, c).mean()).backward()
    # The last permutation-free spline knots may be unused by 64 rows, but no parameter may be cut off altogether.
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@every_case
def test_gradients_through_the_inverse_are_those_of_finite_differences(case: str) -> None:
    flow = random_flow(case, 3, 2).bijection
    z, c = rows(3, 3, 2)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: flow.inverse(v, c), (z,), eps=1e-6, atol=1e-5)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_rows_stay_finite(case: str, dtype: torch.dtype) -> None:
    flow = random_flow(case, 3, dtype=dtype)
    x = 1e3 * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [0.0, 0.0, 1.0]], dtype=dtype)
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    with torch.no_grad():
        assert torch.isfinite(flow.bijection.inverse(x)[0]).all()


@every_case
def test_a_copy_loaded_from_its_state_is_the_same(case: str) -> None:
    flow, other = random_flow(case, 3, 2), random_flow(case, 3, 2, seed=7)
    x, c = rows(16, 3, 2)
    assert not torch.equal(flow.log_prob(x, c), other.log_prob(x, c))
    other.load_state_dict(flow.state_dict())
    assert torch.equal(flow.log_prob(x, c), other.log_prob(x, c))
    assert torch.equal(flow.log_prob(x, c), copy.deepcopy(flow).log_prob(x, c))


@every_case
def test_context_moves_the_density(case: str) -> None:
    flow = random_flow(case, 2, 2)
    x, c = rows(8, 2, 2)
    assert (flow.log_prob(x, c) - flow.log_prob(x, c + 1)).abs().max() > 1e-4


@every_case
@pytest.mark.parametrize("base", ["gaussian", "uniform", "student_t", "mixture"])
def test_density_integrates_to_one(case: str, base: str) -> None:
    # A spread of 0.05, as 0.1 gives some cases ridges in the far tails that are thinner than this grid is fine.
    flow = random_flow(case, 2, base=base, spread=0.05)
    # x = sinh(t)-spaced squares reach far into the tails of the logistic and the t.
    t = torch.linspace(-7, 7, 701, dtype=torch.float64)
    axis, weight = torch.sinh(t), torch.cosh(t) * (t[1] - t[0])
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = (flow.log_prob(grid).exp() * torch.outer(weight, weight).flatten()).sum()
    assert mass == pytest.approx(1, abs=2e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside its tracer
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("iaf")])
def test_whole_forward_graph_is_captured(case: str) -> None:
    flow = random_flow(case, 3, 2)
    x, c = rows(8, 3, 2)
    explanation = torch._dynamo.explain(flow)(x, c)
    assert explanation.graph_break_count == 0, explanation.break_reasons


@every_case
def test_a_new_flow_is_the_identity(case: str) -> None:
    flow = build(features=3, context=2, base="gaussian", components=3, whiten=True, **CASES[case]).double().bijection
    x, c = rows(16, 3, 2)
    for layer in flow:
        if isinstance(layer, LU):
            layer.rotation = None
    layers = [layer for layer in flow if not isinstance(layer, Reversal)]
    z, log_det = Chain(layers)(x, c)
    assert (z - x).abs().max() < 1e-6
    assert log_det.abs().max() < 1e-6


# -- images --------------------------------------------------------------------------------------------------------

image_cases = pytest.mark.parametrize("case", IMAGE_CASES)
image_shapes = pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (4, 8, 8)])


@image_cases
@image_shapes
@pytest.mark.parametrize("context", [0, 2])
def test_images_there_and_back_at_every_scale(case: str, shape: tuple[int, int, int], context: int) -> None:
    features = shape[0] * shape[1] * shape[2]
    # Deep stacks of wide rows: at 0.05 their condition numbers leave float64 digits to compare.
    flow = random_flow(case, features, context, shape=shape, spread=0.05).bijection
    x, c = rows(8, features, context)
    z, log_det = flow(x, c)
    back, log_det_back = flow.inverse(z, c)
    assert z.shape == x.shape
    assert (z - x).abs().max() > 1e-2
    assert (back - x).abs().max() < 1e-9
    assert (log_det + log_det_back).abs().max() < 1e-8
    assert (jacobian_log_det(flow, x[:1], c) - log_det[:1]).abs().max() < 1e-8
    there = flow.inverse(x, c)[1]
    assert (jacobian_log_det(flow.inverse, x[:1], c) - there[:1]).abs().max() < 1e-8


@image_cases
def test_images_in_float32(case: str) -> None:
    flow = random_flow(case, 64, 2, dtype=torch.float32, shape=(1, 8, 8), spread=0.03)
    x, c = rows(16, 64, 2, torch.float32)
    z, log_det = flow.bijection(x, c)
    assert z.dtype == log_det.dtype == torch.float32
    assert (flow.bijection.inverse(z, c)[0] - x).abs().max() < 1e-4
    (-flow.log_prob(x, c).mean()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    far = flow.log_prob(1e3 * x, c)
    assert torch.isfinite(far).all()


@image_cases
def test_factored_out_latents_have_their_shapes_and_order(case: str) -> None:
    flow = random_flow(case, 4 * 64, shape=(4, 8, 8)).bijection
    (scales,) = flow
    assert isinstance(scales, MultiScale)
    z = flow(rows(3, 4 * 64, 0)[0])[0]
    parts = scales.parts(z)
    assert [part[0].numel() for part in parts] == ([128, 128] if case.startswith("glow") else [128, 64, 64])
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), z)
    assert all(part.shape[2] < 8 for part in parts)


@image_cases
def test_image_layers_start_from_the_rows_they_are_given(case: str) -> None:
    flow = build(features=64, shape=(1, 8, 8), base="gaussian", components=1, whiten=True, **CASES[case]).double()
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(500, 64, generator=generator, dtype=torch.float64)
    flow.start(x)
    with torch.no_grad():
        z, _ = flow.bijection(x)
        log_prob = flow.log_prob(x)
    assert z.mean().abs() < 0.01
    assert z.std() == pytest.approx(1, abs=0.01)
    assert log_prob.mean() == pytest.approx(-64 * (math.log(3) + 0.5 * math.log(2 * math.pi) + 0.5), abs=2)


def test_images_that_cannot_be_halved_are_refused() -> None:
    options = {"base": "gaussian", "components": 1, "whiten": True}
    with pytest.raises(ValueError, match="7×7 pixels can be halved 0 times"):
        build(features=49, shape=(1, 7, 7), **options, **CASES["glow-affine"])
    with pytest.raises(ValueError, match=r"data\.image\.resize"):
        build(features=64, shape=(1, 8, 8), **options, **(CASES["glow-affine"] | {"levels": 5}))


def test_flow_sampling_is_seeded() -> None:
    flow: Flow = random_flow("maf-affine-reverse", 3)
    draws = [flow.sample(5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
