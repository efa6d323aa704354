"""Parameters: their bounds, names and Jacobians, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcli.recipe import Parameter
from flowcli.recipe.target import parameter
from flowcli.variational.space import Space, constraint

CASES = {
    "real": "real",
    "real matrix": {"shape": [2, 3]},
    "positive": {"type": "positive", "shape": [3]},
    "interval": "interval(-2, 5e-1)",
    "interval vector": {"type": "interval", "low": 1.0, "high": 4.0, "shape": [2]},
    "simplex": {"type": "simplex", "shape": [4]},
    "ordered": {"type": "ordered", "shape": [4]},
    "two ordered": {"type": "ordered", "shape": [2, 3]},
    "correlation_cholesky": {"type": "correlation_cholesky", "shape": [4, 4]},
}


def space_of(**parameters: object) -> Space:
    return Space({name: Parameter.model_validate(parameter(value)) for name, value in parameters.items()})


def free(kind: str, value: Tensor) -> Tensor:
    """The numbers of one draw that the density is with respect to."""
    if "simplex" in kind:
        return value[..., :-1].flatten()
    if "correlation" in kind:
        rows, columns = torch.tril_indices(len(value), len(value), -1)
        return value[rows, columns]
    return value.flatten()


@pytest.mark.parametrize("kind", CASES)
def test_the_log_determinant_is_autograds(kind: str) -> None:
    space = space_of(x=CASES[kind])
    for u in torch.randn(5, space.features, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda v: free(kind, space.constrain(v[None])[0]["x"][0]), u)
        expected = torch.linalg.slogdet(jacobian)[1]
        assert space.constrain(u[None])[1].item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("kind", CASES)
def test_values_are_within_their_bounds_and_come_back(kind: str) -> None:
    space = space_of(x=CASES[kind])
    u = 2 * torch.randn(200, space.features, dtype=torch.float64)
    parameters, _ = space.constrain(u)
    assert parameters["x"].shape == (200, *space.parameters["x"].shape)
    assert constraint(space.parameters["x"]).check(parameters["x"]).all()
    assert space.within(parameters).all()
    assert torch.allclose(space.unconstrain(parameters), u, atol=1e-7)


def test_rounding_onto_a_bound_is_not_within_it() -> None:
    space = space_of(a="positive", b="interval(100, 101)", c={"type": "ordered", "shape": [2]})
    u = torch.zeros(4, 4, dtype=torch.float64)
    u[1, 0], u[2, 1], u[3, 3] = -800.0, -60.0, -60.0
    u[3, 2] = 1e6
    assert space.within(space.constrain(u)[0]).tolist() == [True, False, False, False]


def test_columns_are_named_as_arviz_names_them() -> None:
    space = space_of(mu="real", theta={"shape": [2]}, low={"type": "correlation_cholesky", "shape": [2, 2]})
    assert space.columns == ["mu", "theta[0]", "theta[1]", "low[0, 0]", "low[0, 1]", "low[1, 0]", "low[1, 1]"]
    assert space.features == 4
    parameters, _ = space.constrain(torch.randn(3, 4, dtype=torch.float64))
    flat = space.flat(parameters)
    assert flat.shape == (3, 7)
    assert torch.equal(flat[:, 5], parameters["low"][:, 1, 0])
