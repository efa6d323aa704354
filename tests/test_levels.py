"""Discrete columns: every flow of the registry behind them, and the levels themselves against sums by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from flow_cases import CASES, jacobian_log_det, random_flow, rows
from torch import Tensor
from torch.nn import functional as F

from flowcli.flows.base import Gaussian, Product
from flowcli.flows.flow import Flow
from flowcli.flows.levels import Cells, Embedding, Levels
from flowcli.flows.mixed import Mixed
from flowcli.flows.registry import build

every_case = pytest.mark.parametrize("case", CASES)
shapes = pytest.mark.parametrize(("discrete", "continuous"), [(2, 0), (1, 2), (3, 2)])
contexts = pytest.mark.parametrize("context", [0, 2])

FLOOR = 1e-4


def cells(*sizes: int) -> list[Cells]:
    """Columns of these sizes with uneven frequencies; every other one is ordered."""
    out = []
    for i, size in enumerate(sizes):
        weights = 1 + torch.arange(size, dtype=torch.float64).flip(0) ** 2
        values = torch.linspace(-1.5, 1.5, size, dtype=torch.float64) if i % 2 else None
        out.append(Cells(weights / weights.sum(), values))
    return out


THREE = cells(3, 5, 4)
PARENTS = [None, 0, 0]


def table(n: int, columns: list[Cells], continuous: int, context: int, dtype: torch.dtype = torch.float64):
    """Rows with codes drawn evenly and places inside the cells, Gaussian numbers behind them, and contexts."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([len(column.frequencies) for column in columns])
    codes = (torch.rand(n, len(columns), generator=generator) * counts).floor()
    u = 0.01 + 0.98 * torch.rand(n, len(columns), generator=generator, dtype=torch.float64)
    x, c = rows(n, continuous, context, dtype)
    return torch.cat([(codes + u).to(dtype), x], 1), c


def mixed_flow(case: str, discrete: int, continuous: int, context: int = 0, **options) -> Flow:
    parents = PARENTS[:discrete]
    return random_flow(case, discrete + continuous, context, cells=THREE[:discrete], parents=parents, **options)


def levels_flow(columns: list[Cells], context: int = 0, **options) -> tuple[Flow, Levels]:
    """A flow of discrete columns alone, and its levels."""
    parents = PARENTS[: len(columns)]
    flow = random_flow("maf-affine-same", len(columns), context, cells=columns, parents=parents, **options)
    (layer,) = flow.bijection
    assert isinstance(layer, Mixed)
    return flow, layer.levels


def masses_by_hand(levels: Levels, columns: list[Cells], codes: Tensor, context: Tensor | None) -> list[Tensor]:
    """p ``(n, K)`` of each column, straight from the definition."""
    width = sum(levels.embedding.widths[: len(columns) - 1])
    logits = levels.net(levels.embedding(codes)[:, :width].double(), context).split([len(f) for f, _ in columns], 1)
    known = [0.0] + [levels.get_buffer(f"known_{i}")[codes[:, 0]].double() for i in range(1, len(columns))]
    return [
        (1 - FLOOR) * F.softmax(f.log() + block + told, 1) + FLOOR * f
        for block, told, (f, _) in zip(logits, known, columns, strict=True)
    ]


def all_codes(columns: list[Cells]) -> Tensor:
    return torch.tensor(list(itertools.product(*(range(len(f)) for f, _ in columns))))


# -- every flow ----------------------------------------------------------------------------------------------------


@every_case
@shapes
@contexts
def test_round_trip_and_log_det_in_float64(case: str, discrete: int, continuous: int, context: int) -> None:
    flow = mixed_flow(case, discrete, continuous, context).bijection
    x, c = table(64, THREE[:discrete], continuous, context)
    z, log_det = flow(x, c)
    back, log_det_back = flow.inverse(z, c)
    assert (back - x).abs().max() < 1e-9
    assert (log_det + log_det_back).abs().max() < 1e-8
    assert (jacobian_log_det(flow, x[:4], c) - log_det[:4]).abs().max() < 1e-8
    z = rows(64, discrete + continuous, 0)[0]
    x, log_det = flow.inverse(z, c)
    again, log_det_again = flow(x, c)
    assert (again - z).abs().max() < 1e-8
    assert (log_det + log_det_again).abs().max() < 1e-8
    assert (jacobian_log_det(flow.inverse, z[:4], c) - log_det[:4]).abs().max() < 1e-8


@every_case
@shapes
@contexts
def test_codes_come_back_in_float32(case: str, discrete: int, continuous: int, context: int) -> None:
    flow = mixed_flow(case, discrete, continuous, context, dtype=torch.float32, spread=0.05).bijection
    x, c = table(256, THREE[:discrete], continuous, context, torch.float32)
    z, log_det = flow(x, c)
    assert z.dtype == log_det.dtype == torch.float32
    back, _ = flow.inverse(z, c)
    assert back.dtype == torch.float32
    assert torch.equal(back[:, :discrete].floor(), x[:, :discrete].floor())
    assert (back - x).abs().max() < 1e-3


@every_case
def test_inverse_without_gradients_is_the_inverse_with_them(case: str) -> None:
    flow = mixed_flow(case, 3, 2, 2).bijection
    z, c = rows(32, 5, 2)
    with torch.no_grad():
        x, log_det = flow.inverse(z, c)
    x_grad, log_det_grad = flow.inverse(z, c)
    assert (x - x_grad).abs().max() < 1e-12
    assert (log_det - log_det_grad).abs().max() < 1e-12


@every_case
@shapes
@contexts
def test_gradients_reach_every_parameter(case: str, discrete: int, continuous: int, context: int) -> None:
    flow = mixed_flow(case, discrete, continuous, context)
    x, c = table(128, THREE[:discrete], continuous, context)
    (-flow.log_prob(x, c).mean()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert not parameter.numel() or parameter.grad.abs().max() > 0, name


@every_case
@pytest.mark.parametrize("base", ["gaussian", "mixture"])
def test_density_sums_and_integrates_to_one(case: str, base: str) -> None:
    flow = mixed_flow(case, 2, 1, base=base)
    t = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    weight = torch.cosh(t) * (t[1] - t[0])
    codes = all_codes(THREE[:2])
    x = torch.cat([(codes + 0.4).repeat_interleave(len(t), 0), torch.sinh(t).repeat(len(codes))[:, None]], 1)
    with torch.no_grad():
        mass = (flow.log_prob(x).exp() * weight.repeat(len(codes))).sum()
    assert mass == pytest.approx(1, abs=1e-3)


@every_case
def test_the_rest_depends_on_the_codes_and_not_on_the_place_in_the_cell(case: str) -> None:
    flow = mixed_flow(case, 2, 2).bijection
    x, _ = table(16, THREE[:2], 2, 0)
    z = flow(x)[0][:, 2:]
    moved, other = x.clone(), x.clone()
    moved[:, :2] = x[:, :2].floor() + 0.77
    other[:, 1] = (x[:, 1] + 1) % 5
    assert torch.equal(flow(moved)[0][:, 2:], z)
    assert (flow(other)[0][:, 2:] - z).abs().amax(1).min() > 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside its tracer
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("iaf")])
def test_whole_forward_graph_is_captured(case: str) -> None:
    flow = mixed_flow(case, 2, 2, 2)
    x, c = table(8, THREE[:2], 2, 2)
    explanation = torch._dynamo.explain(flow)(x, c)
    assert explanation.graph_break_count == 0, explanation.break_reasons


@pytest.mark.parametrize("case", ["maf-affine-same", "glow-affine"])
def test_the_rest_starts_from_its_own_rows(case: str) -> None:
    flow = build(features=4, context=2, cells=THREE[:2], base="gaussian", components=1, whiten=True, **CASES[case])
    flow = flow.double()
    x, c = table(500, THREE[:2], 2, 2)
    x[:, 2:] = 3 + x[:, 2:] @ torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    flow.start(x, c)
    with torch.no_grad():
        z = flow.bijection(x, c)[0][:, 2:]
    assert z.mean(0).abs().max() < 1e-6
    assert (torch.cov(z.T) - torch.eye(2)).abs().max() < 0.02


@every_case
def test_no_discrete_columns_change_nothing(case: str) -> None:
    assert type(random_flow(case, 3).base) is Gaussian
    flow = random_flow(case, 3, 2)
    assert not any("levels" in name for name in flow.state_dict())
    torch.manual_seed(3)
    plain = build(features=3, base="gaussian", components=1, whiten=True, **CASES[case]).state_dict()
    torch.manual_seed(3)
    none = build(features=3, cells=[], base="gaussian", components=1, whiten=True, **CASES[case]).state_dict()
    assert list(plain) == list(none)
    assert all(torch.equal(plain[name], none[name]) for name in plain)


def test_parameters_keep_their_names() -> None:
    flow = mixed_flow("maf-affine-same", 2, 1)
    names = list(flow.state_dict())
    rest = [f"bijection.layers.0.rest.layers.{name}" for name in ("0.mean", "0.log_diagonal", "0.lower")]
    made = [f"net.layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert names[0] == "bijection.layers.0.levels.known_1"
    assert names[1:3] == [f"bijection.layers.0.levels.embedding.tables.{i}.weight" for i in range(2)]
    assert names[3:9] == [f"bijection.layers.0.levels.{name}" for name in made]
    assert names[9:12] == rest
    assert names[12:] == [f"bijection.layers.0.rest.layers.{i}.{name}" for i in (1, 2, 3) for name in made]


# -- levels --------------------------------------------------------------------------------------------------------


@contexts
@pytest.mark.parametrize("discrete", [1, 2, 3])
def test_log_prob_is_the_sum_of_the_log_masses(discrete: int, context: int) -> None:
    columns = THREE[:discrete]
    flow, levels = levels_flow(columns, context, spread=1.0)
    codes = all_codes(columns)
    c = rows(1, 1, context)[1]
    c = None if c is None else c.expand(len(codes), -1)
    masses = masses_by_hand(levels, columns, codes, c)
    by_hand = sum(p.gather(1, codes[:, i : i + 1]).log()[:, 0] for i, p in enumerate(masses))
    log_prob = flow.log_prob(codes.double() + 0.3, c)
    assert (log_prob - by_hand).abs().max() < 1e-9
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_prob.exp().std() > 1e-3


@pytest.mark.parametrize("context", [0, 2])
def test_parameters_have_the_gradient_of_the_log_masses_and_z_has_none(context: int) -> None:
    flow, levels = levels_flow(THREE, context, spread=1.0)
    x, c = table(200, THREE, 0, context)
    x[:100] = x[:100].floor() + 1e-12  # z far out, where the gradients that cancel on paper are large
    codes = x.floor().long()
    by_hand = sum(p.gather(1, codes[:, i : i + 1]).log() for i, p in enumerate(masses_by_hand(levels, THREE, codes, c)))
    parameters = list(flow.parameters())
    expected = torch.autograd.grad(by_hand.sum(), parameters)
    got = torch.autograd.grad(flow.log_prob(x, c).sum(), parameters)
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() < 1e-10 * (1 + a.abs().max())
    assert not levels(x, c)[0].requires_grad
    assert levels(x.requires_grad_(), c)[0].requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_place_in_the_cell_does_not_matter(dtype: torch.dtype, tolerance: float) -> None:
    flow, _ = levels_flow(THREE, spread=1.0, dtype=dtype)
    codes = all_codes(THREE).to(dtype)
    middle = flow.log_prob(codes + 0.5)
    for u in (0.0, 1e-7, 0.1, 0.9999999):
        x = torch.minimum(codes + u, torch.nextafter(codes + 1, codes))
        assert (flow.log_prob(x) - middle).abs().max() < tolerance, u


def test_a_new_layer_has_the_frequencies() -> None:
    flow = build(features=3, context=2, cells=THREE, base="gaussian", components=1, whiten=True, **CASES["planar"])
    codes = all_codes(THREE)
    _, c = rows(len(codes), 3, 2)
    expected = sum(f.log()[codes[:, i]] for i, (f, _) in enumerate(THREE))
    assert (flow.double().log_prob(codes.double() + 0.5, c) - expected).abs().max() < 1e-12
    flow = flow.float().double()  # as a model's flow may go
    assert (flow.log_prob(codes.double() + 0.5, c) - expected).abs().max() < 1e-6
    assert flow.log_prob(codes.double() + 0.5, c).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_an_ordered_column_begins_as_its_values() -> None:
    embedding = Embedding(cells(3, 40))
    assert embedding.widths == [3, 17]
    codes = torch.tensor([[0, 5], [2, 39]])
    embedded = embedding(codes)
    assert embedded.shape == (2, embedding.width)
    assert torch.equal(embedded[:, 3:], embedding.block(1, codes[:, 1]))
    assert (embedded[:, 3:19] == 0).all()
    assert torch.equal(embedded[:, 19], torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)[codes[:, 1]].float())
    assert (embedded[0, :3] != embedded[1, :3]).all()


def test_a_columns_masses_do_not_depend_on_itself_or_later_ones() -> None:
    _, levels = levels_flow(THREE, spread=1.0)
    codes = all_codes(THREE)
    for i in range(3):
        other = codes.clone()
        other[:, i:] = torch.tensor([0, 1, 2])[i:]
        before, after = masses_by_hand(levels, THREE, codes, None), masses_by_hand(levels, THREE, other, None)
        for j in range(3):
            assert torch.equal(before[j], after[j]) == (j <= i)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_cell_is_impossible(dtype: torch.dtype) -> None:
    flow, levels = levels_flow(THREE, dtype=dtype)
    with torch.no_grad():
        torch.nn.init.normal_(levels.net.layers[-1].bias, std=1e4)
    codes = all_codes(THREE)
    x = (codes + 0.5).to(dtype)
    z, _ = flow.bijection(x)
    least = sum((FLOOR * f).log()[codes[:, i]] for i, (f, _) in enumerate(THREE))
    log_prob = flow.log_prob(x)
    assert (log_prob >= least - 1e-4).all()
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(flow.bijection.inverse(z)[0].floor(), x.floor())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_outside_the_cells_and_far_latents_stay_finite(dtype: torch.dtype) -> None:
    flow, levels = levels_flow(THREE, spread=1.0, dtype=dtype)
    x = torch.tensor([-1e3, -1e-20, 0.0, 1e3, 3 - 1e-16], dtype=dtype)[:, None].repeat(1, 3)
    x.requires_grad_()
    z, log_det = flow.bijection(x)
    (z.sum() + log_det.sum()).backward()
    for tensor in (z, log_det, x.grad, flow.log_prob(x)):
        assert torch.isfinite(tensor).all()
    z = torch.tensor([-1e3, -40, -9, 0, 9, 40, 1e3], dtype=dtype)[:, None].repeat(1, 3)
    back, log_det = flow.bijection.inverse(z)
    assert torch.isfinite(log_det).all()
    assert (back >= 0).all()
    assert (back < levels.counts).all()


def test_many_cells_in_float32() -> None:
    columns = cells(3000, 40)
    flow, levels = levels_flow(columns, dtype=torch.float32, spread=0.05)
    x = torch.stack([torch.arange(3000) + 0.5, torch.arange(3000) % 40 + 0.5], 1)
    z, _ = flow.bijection(x)
    assert torch.equal(flow.bijection.inverse(z)[0].floor(), x.floor())
    with torch.no_grad():
        z = flow.base.sample(20_000, torch.Generator().manual_seed(0))
        drawn, log_det = flow.bijection.inverse(z)
        # A row's own mass is that of the cell it was drawn in: no number was rounded into the next cell.
        assert (flow.log_prob(drawn) - (flow.base.log_prob(z) - log_det)).abs().max() < 1e-4
    assert (drawn < levels.counts).all()


def test_samples_follow_the_masses() -> None:
    flow, levels = levels_flow(THREE[:2], spread=1.0)
    n = 50_000
    with torch.no_grad():
        codes = levels.codes(flow.sample(n, generator=torch.Generator().manual_seed(0)))
        expected = flow.log_prob(all_codes(THREE[:2]).double() + 0.5).exp()
    shares = torch.bincount(codes[:, 0] * 5 + codes[:, 1], minlength=15) / n
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt() + 1 / n).all()


@pytest.mark.parametrize("base", ["gaussian", "uniform", "student_t", "mixture"])
def test_temperature_is_the_continuous_columns_alone(base: str) -> None:
    flow = mixed_flow("realnvp-affine-none", 2, 1, base=base)
    assert isinstance(flow.base, Product)
    with torch.no_grad():
        draws = [
            flow.sample(1000, generator=torch.Generator().manual_seed(0), temperature=temperature)
            for temperature in (1.0, 0.2)
        ]
    assert torch.equal(draws[0][:, :2], draws[1][:, :2])
    assert draws[1][:, 2].std() < draws[0][:, 2].std()


def test_a_product_is_the_gaussian_and_the_rest() -> None:
    base = Product(2, Gaussian(1)).double()
    z, _ = rows(10, 3, 0)
    assert base.features == 3
    assert (base.log_prob(z) - Gaussian(3).log_prob(z)).abs().max() < 1e-12
    assert base.sample(4).dtype == base.anchor.dtype == torch.float64
    assert Product(2, Gaussian(0)).log_prob(z[:, :2].float()).exp().max() < 1 / (2 * math.pi)
