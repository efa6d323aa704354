"""Layers, networks and transforms by themselves, against their formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from flow_cases import CASES, jacobian_log_det, random_flow, rows
from torch import Tensor
from torch.nn import functional as F

from flowcli.flows import perceptron as networks
from flowcli.flows.autoregressive import Autoregressive
from flowcli.flows.linear import LU, Triangular
from flowcli.flows.nets import MADE, MaskedLinear
from flowcli.flows.perceptron import Layer, perceptron, product, seen
from flowcli.flows.planar import solve
from flowcli.flows.registry import SHARED, build
from flowcli.flows.transforms import Affine, Spline


def planar_by_hand(u: Tensor, w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One layer of one row: y = x + û·tanh(wᵀx + b), log|1 + ûᵀψ|, ψ = (1 − tanh²)·w (the paper's 10 to 12)."""
    m = -1 + 1e-3 + torch.log(1 + torch.exp(w @ u) * (math.e ** (1 - 1e-3) - 1))
    u = u + (m - w @ u) * w / (w @ w + 1e-12)
    t = torch.tanh(w @ x + b[0])
    return x + u * t, torch.log((1 + u @ ((1 - t**2) * w)).abs())


def radial_by_hand(centre: Tensor, a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One layer of one row: y = x + β̂h·(x − x₀), log (1 + β̂h)^(D − 1)·(1 + β̂h + β̂h′r) (the paper's 14)."""
    alpha = 1e-3 + torch.log(1 + torch.exp(a[0]))
    floor = (1 - 1e-3) * alpha
    beta = torch.log(1 + torch.exp(b[0]) * (torch.exp(floor) - 1)) - floor
    r = (x - centre).square().sum().sqrt()
    h = 1 / (alpha + r)
    slope = 1 + beta * h - beta * h**2 * r
    return x + beta * h * (x - centre), (len(x) - 1) * torch.log(1 + beta * h) + torch.log(slope)


@pytest.mark.parametrize(("case", "layer"), [("planar", planar_by_hand), ("radial", radial_by_hand)])
@pytest.mark.parametrize(("layers", "features", "context"), [(1, 3, 0), (5, 1, 2), (5, 3, 0), (5, 3, 2), (64, 6, 0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_a_stack_is_its_layers_one_after_the_other(
    case: str, layer, layers: int, features: int, context: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    options = CASES[case] | {"layers": layers}
    flow = build(features=features, context=context, base="gaussian", components=1, whiten=False, **options)
    (stack,) = flow.bijection
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, c = rows(8, features, context, dtype)
    y, log_det = stack.to(dtype)(x, c)
    assert (y - x).abs().max() > 0.1

    stack, x, c = stack.double(), x.double(), None if c is None else c.double()
    parameters = stack.parameters_.expand(len(x), -1, -1)
    if c is not None:
        parameters = parameters + stack.net(c).view(len(x), layers, -1)
    for i in range(len(x)):
        row, total = x[i], 0
        for numbers in parameters[i]:
            row, one = layer(*numbers.split([features, len(numbers) - features - 1, 1]), row)
            total = total + one
        assert (y[i] - row).abs().max() < tolerance * (1 + row.abs().max())
        assert (log_det[i] - total).abs() < tolerance * layers
    if dtype == torch.float64:
        assert (jacobian_log_det(stack, x, c) - log_det).abs().max() < 1e-9


@pytest.mark.parametrize("case", ["planar", "radial"])
@pytest.mark.parametrize(("context", "stacks"), [(0, [40]), (2, [SHARED, SHARED, 40 - 2 * SHARED])])
def test_with_a_context_stacks_are_short(case: str, context: int, stacks: list[int]) -> None:
    options = CASES[case] | {"layers": 40}
    flow = build(features=2, context=context, base="gaussian", components=1, whiten=False, **options)
    assert [len(stack.parameters_) for stack in flow.bijection] == stacks


@pytest.mark.parametrize("case", ["planar", "radial"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_gradients_of_a_stack_are_those_of_finite_differences(case: str, context: int, way: str) -> None:
    (_, stack) = random_flow(case, 3, context, spread=0.5).bijection
    x, c = rows(4, 3, context)
    parameters = list(stack.parameters())
    run = getattr(stack, way)
    assert torch.autograd.gradcheck(lambda x, *_: run(x, c), (x.requires_grad_(), *parameters))


@pytest.mark.parametrize("case", ["planar", "radial"])
@pytest.mark.parametrize("context", [0, 2])
def test_a_stack_of_no_rows_and_of_one(case: str, context: int) -> None:
    flow = random_flow(case, 3, context).bijection
    x, c = rows(2, 3, context)
    for run in (flow, flow.inverse):
        whole = run(x, c)
        for n in (0, 1):
            for some, all_ in zip(run(x[:n], None if c is None else c[:n]), whole, strict=True):
                assert some.shape == all_[:n].shape
                assert torch.allclose(some, all_[:n], atol=1e-12)


@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_a_row_at_a_centre_has_gradients(way: str) -> None:
    (_, stack) = random_flow("radial", 3).bijection
    x = stack.parameters_[0 if way == "forward" else -1, :3].detach().clone()[None].requires_grad_()
    y, log_det = getattr(stack, way)(x)
    (y.sum() + log_det.sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(stack.parameters_.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [-0.999, -0.9, -0.1, 0.0, 0.5, 10.0, 1e3, 1e5, 1e8])
def test_newton_finds_the_root_in_few_steps(m: float, dtype: torch.dtype) -> None:
    near, far = torch.linspace(-5, 5, 2001, dtype=dtype), torch.logspace(-12, 7, 1000, dtype=dtype)
    c = torch.cat([near, far, -far, m * torch.linspace(0.9, 1.1, 1001, dtype=dtype)])
    s = solve(torch.tensor(m, dtype=dtype), c, max_steps=25).double()
    m_, c_ = torch.tensor(m, dtype=dtype).double(), c.double()
    residual, slope = s + m_ * torch.tanh(s) - c_, 1 + m_ / torch.cosh(s).square()
    # As near as the rounding of c and of s itself lets it be.
    assert (residual.abs() <= 30 * torch.finfo(dtype).eps * (slope * (1 + s.abs()) + c_.abs())).all()
    alone = torch.cat([solve(torch.tensor(m, dtype=dtype), one) for one in c[::100].split(1)])
    assert (alone - s[::100]).abs().max() < 30 * torch.finfo(dtype).eps * (1 + s.abs().max())


@pytest.mark.parametrize("case", ["planar", "radial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-3, 1.0, 200.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_planar_and_radial_are_finite_at_extreme_parameters(
    case: str, dtype: torch.dtype, size: float, sign: int
) -> None:
    features = 4
    flow = build(features=features, base="gaussian", components=1, whiten=False, **CASES[case])
    x, _ = rows(64, features, 0, dtype)
    (stack,) = flow.bijection
    with torch.no_grad():
        parameters = stack.parameters_.uniform_(-1, 1)
        parameters[:, features:].mul_(sign * size)  # w and b, or raw α and β
        parameters[:, :features].mul_(200)  # u, or the centre
        if case == "planar" and size == 200:
            parameters[:, :features] = -sign * 200 * parameters[:, features:-1].sign()  # wᵀu = ∓200·‖w‖₁
    flow = flow.to(dtype)
    for run in (flow.bijection, flow.bijection.inverse):
        x_ = x.clone().requires_grad_()
        y, log_det = run(x_)
        (y.sum() + log_det.sum()).backward()
        assert torch.isfinite(y).all()
        assert torch.isfinite(log_det).all()
        assert x_.grad is not None
        assert torch.isfinite(x_.grad).all()
    if dtype == torch.float64 and size <= 1:
        # One layer at a time: each may contract by its δ = 1e-3, and rounding grows by 1/δ on the way back.
        one = build(features=features, base="gaussian", components=1, whiten=False, **(CASES[case] | {"layers": 1}))
        (layer,) = one.double().bijection
        for row in stack.parameters_:
            layer.load_state_dict({"parameters_": row[None]})
            assert (layer.inverse(layer(x)[0])[0] - x).abs().max() < 1e-8


def test_masks_stay_masks_under_training() -> None:
    net = MADE(4, 2, [32, 32], 3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    x, c = rows(32, 4, 2, torch.float32)
    for _ in range(5):
        optimizer.zero_grad()
        net(x, c).square().sum().add(net(x, c).sum()).backward()
        optimizer.step()
    for module in net.modules():
        if isinstance(module, MaskedLinear):
            assert (module.weight[module.mask == 0] == 0).all()
            assert (module.weight[module.mask == 1] != 0).any()


@pytest.mark.parametrize(("features", "hidden"), [(1, [8]), (2, [3]), (7, [5, 4]), (6, [64, 32])])
@pytest.mark.parametrize("context", [0, 2])
def test_outputs_see_only_earlier_columns(features: int, hidden: list[int], context: int) -> None:
    net = MADE(features, context, hidden, 2).double()
    for module in net.modules():
        if isinstance(module, MaskedLinear):
            torch.nn.init.normal_(module.weight)
            module.weight.data.mul_(module.mask)
    x, c = rows(1, features, context)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None], c)[0].sum(-1), x[0])
    assert torch.equal(jacobian, jacobian.tril(-1))
    if features > 1 and len(hidden) == 2 and hidden[0] >= features:
        assert (jacobian[1:].diagonal(-0) != 0).any()
        assert all(jacobian[i, i - 1] != 0 for i in range(1, features))


ONEDNN = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


@pytest.mark.parametrize("shape", [(600, 70, 90), (600, 300, 5), (4, 3, 2), (600, 5, 300), (90, 600, 70), (0, 70, 90)])
@pytest.mark.parametrize("laid", ["rows", "columns", "a part"])
@pytest.mark.parametrize("library", [None, ONEDNN])
def test_products_of_any_size_and_layout(
    shape: tuple[int, int, int], laid: str, library: Callable[..., Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "ONEDNN", library)
    m, k, n = shape
    torch.manual_seed(0)
    a = {"rows": torch.randn(m, k), "columns": torch.randn(k, m).T, "a part": torch.randn(m, k + 9)[:, :k]}[laid]
    for b in (torch.randn(k, n), torch.randn(n, k).T):
        out, bias = torch.full((m, n + 3), torch.nan)[:, :n], torch.randn(m)
        for found, added in ((product(a, b), 0 * bias), (product(a, b, bias), bias), (product(a, b, bias, out), bias)):
            assert found.shape == (m, n)
            expected = a.double() @ b.double() + added[:, None]
            assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(out, found)


@pytest.mark.parametrize("library", [None, ONEDNN])
@pytest.mark.parametrize("hidden", [[300, 520], [60, 40]])  # with stairs, and without
def test_a_network_in_float32_is_that_in_float64(
    hidden: list[int], library: Callable[..., Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "ONEDNN", library)
    net = MADE(20, 2, hidden, 9)
    for layer in net.layers:
        torch.nn.init.normal_(layer.weight, std=0.1)
        layer.remask()
    n = networks.PIECE + 100
    x, c = rows(n, 20, 2, torch.float32)
    g = torch.randn(n, 20, 9)
    with torch.no_grad():
        density = net(x, c)
    found = [density, net(x, c), *torch.autograd.grad(net(x, c), list(net.parameters()), g)]
    net.double()
    expected = [
        *[net(x.double(), c.double())] * 2,
        *torch.autograd.grad(net(x.double(), c.double()), list(net.parameters()), g.double()),
    ]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def assert_written_out(x: Tensor, layers: list[Layer]) -> None:
    """Values and gradients are those that autograd finds for the plain formula."""
    x.requires_grad_()
    leaves = [x, *(part for layer in layers for part in (layer.weight, layer.bias))]
    plain = x
    for i, layer in enumerate(layers):
        weight = layer.weight if layer.mask is None else layer.weight * layer.mask
        plain = F.linear(F.silu(plain) if i else 3 * torch.asinh(plain / 3), weight, layer.bias)
    assert (perceptron(x.T, layers).T - plain).abs().max() < 1e-12
    with torch.no_grad():
        assert (perceptron(x.T, layers).T - plain).abs().max() < 1e-12
    g = torch.randn(plain.shape, dtype=torch.float64)
    expected, got = (torch.autograd.grad(y, leaves, g) for y in (plain, perceptron(x.T, layers).T))
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() < 1e-12 * (1 + a.abs().max())


@pytest.mark.parametrize("hidden", [[], [7], [7, 9]])
def test_the_gradient_of_a_network_is_written_out_right(hidden: list[int]) -> None:
    widths = [4, *hidden, 5]
    torch.manual_seed(0)
    layers = [
        Layer(*(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((b, a), (b,))))
        for a, b in itertools.pairwise(widths)
    ]
    assert_written_out(10 * torch.randn(11, 4, dtype=torch.float64), layers)


def test_what_a_network_sees_is_right_near_and_far() -> None:
    x = torch.tensor([0.0, -1e-30, 1e-9, -3e-5, 0.5, -7.0, 1e10, -3e38])
    with torch.no_grad():
        for some in (x, x.repeat(networks.FEW)):  # few and many numbers
            assert torch.allclose(seen(some).double(), 3 * torch.asinh(some.double() / 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("features", [1, 6, 8, 21])
@pytest.mark.parametrize("hidden", [[20, 15], [5], []])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_the_walk_gives_the_parameters_of_the_whole_pass(
    features: int, hidden: list[int], context: int, grad: bool
) -> None:
    net = MADE(features, context, hidden, 3).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    for module in net.modules():
        if isinstance(module, MaskedLinear):
            module.weight.data.mul_(module.mask)
    x, c = rows(networks.SHARED, features, context)
    with torch.set_grad_enabled(grad):
        walk = net.walk(x, c)
        for i in range(features):
            assert (walk.parameters().T - net(x, c)[:, i]).abs().max() < 1e-12
            walk.append(x[:, i : i + 1].T)


@pytest.mark.parametrize("transform", [Affine(), Spline(8)])
def test_transforms_at_wild_parameters(transform: Affine | Spline) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    parameters = 4 * torch.randn(2000, 1, transform.count, generator=generator, dtype=torch.float64)
    y, log_slope = transform.forward(x, parameters)
    back, log_slope_back = transform.inverse(y, parameters)
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_slope).all()
    assert ((back - x).abs() / (1 + x.abs())).max() < 1e-6
    # The slope may reach 1e6 where knots crowd; compared where rounding of y does not decide the bin.
    assert (log_slope + log_slope_back).abs().median() < 1e-10
    higher, _ = transform.forward(x + 1e-3, parameters)
    assert (higher > y).all()


def test_spline_meets_its_tails() -> None:
    spline = Spline(5, box=2.0)
    parameters = torch.randn(1, 1, spline.count, dtype=torch.float64)
    parameters[..., :2] = 0  # no affine part
    edge = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    for side in (-1e-9, 1e-9):
        y, log_slope = spline.forward(edge + side, parameters.expand(2, 1, -1))
        assert (y - edge).abs().max() < 1e-6
        assert log_slope.abs().max() < 1e-6


@pytest.mark.parametrize("inverse", [False, True])
def test_a_spline_has_gradients_of_parameters_that_rows_share(inverse: bool) -> None:
    spline = Spline(4)
    parameters = torch.randn(2, spline.count, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[-9.0, 0.3], [1.2, -1.5], [0.4, 7.0]], dtype=torch.float64)
    found = []
    for shared in (parameters.expand(3, -1, -1), torch.stack([parameters] * 3)):
        y, log_slope = (spline.inverse if inverse else spline.forward)(x, shared)
        found.append(torch.autograd.grad((y * log_slope.exp()).sum(), parameters)[0])
    assert torch.allclose(*found, rtol=1e-12, atol=1e-12)


def test_a_column_that_does_not_vary_at_the_start_is_left_at_its_scale() -> None:
    x = torch.randn(500, 3, dtype=torch.float64)
    x[:, 1] = 0.3
    layer = Triangular(3).double()
    layer.start(x)
    x[0, 1] = 5.3  # a row of those to come
    y, _ = layer.forward(x[:1])
    assert y.abs().max() < 20


def test_triangular_starts_as_the_whitening_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    data = data @ torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [-3, 0.2, 5]], dtype=torch.float64).T / 5 + 1
    layer = Triangular(3).double()
    y = layer.start(data)
    assert torch.equal(y, layer(data)[0])
    assert y.mean(0).abs().max() < 1e-9
    assert (torch.cov(y.T) - torch.eye(3)).abs().max() < 1e-3  # the ridge


def test_autoregressive_columns_keep_their_order() -> None:
    layer = Autoregressive(4, 0, [16], Affine()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    for module in layer.modules():
        if isinstance(module, MaskedLinear):
            module.weight.data.mul_(module.mask)
    x, _ = rows(1, 4, 0)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], x[0])
    assert torch.equal(jacobian, jacobian.tril())


def test_lu_is_its_matrix() -> None:
    layer = LU(3).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    matrix = layer(torch.eye(3, dtype=torch.float64))[0].T
    assert torch.linalg.slogdet(matrix)[1].item() == pytest.approx(
        layer(torch.ones(1, 3, dtype=torch.float64))[1].item()
    )
