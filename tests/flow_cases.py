"""Every flow × transform × variant that the registry builds, small: the one list that drives the flow tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flowcli.flows.flow import Flow
from flowcli.flows.levels import Cells, Levels
from flowcli.flows.nets import MaskedLinear
from flowcli.flows.registry import IMAGE_FLOWS, build

HIDDEN = [16, 16]

CASES: dict[str, dict[str, Any]] = {
    "planar": {"type": "planar", "layers": 4, "hidden": [16]},
    "radial": {"type": "radial", "layers": 4, "hidden": [16]},
    **{
        f"realnvp-{transform}-{mixing}": {
            "type": "realnvp", "layers": 3, "hidden": HIDDEN, "transform": transform, "bins": 6, "mixing": mixing,
            "levels": "auto",
        }
        for transform in ("affine", "spline")
        for mixing in ("none", "lu")
    },
    **{
        f"{direction}-{transform}-{order}": {
            "type": "maf", "layers": 3, "hidden": HIDDEN, "transform": transform, "bins": 6, "order": order,
            "direction": direction,
        }
        for transform in ("affine", "spline")
        for direction in ("maf", "iaf")
        for order in ("reverse", "same")
    },
    **{
        f"glow-{transform}": {
            "type": "glow", "layers": 3, "hidden": HIDDEN, "transform": transform, "bins": 6, "levels": "auto",
        }
        for transform in ("affine", "spline")
    },
}  # fmt: skip
IMAGE_CASES = [case for case in CASES if CASES[case]["type"] in IMAGE_FLOWS and not case.endswith("none")]


def random_flow(
    case: str,
    features: int,
    context: int = 0,
    base: str = "gaussian",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    spread: float = 0.1,
    shape: tuple[int, int, int] | None = None,
    cells: Sequence[Cells] = (),
    parents: Sequence[int | None] = (),
) -> Flow:
    """The case's flow with every parameter moved off its start by ``spread``·N(0, 1), and parents that tell as much."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"base": base, "components": 3, "whiten": True, **CASES[case]}
    flow = build(features=features, context=context, shape=shape, cells=cells, parents=parents, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        for module in flow.modules():
            if isinstance(module, MaskedLinear):
                module.weight.mul_(module.mask)
            if isinstance(module, Levels):
                for i, parent in enumerate(module.parents):
                    if parent is not None:
                        module.know(i, torch.randn(module.sizes[parent], module.sizes[i]))
    return flow.to(dtype)


def rows(
    n: int, features: int, context: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Standard Gaussian rows and contexts."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, features, generator=generator, dtype=dtype)
    return x, torch.randn(n, context, generator=generator, dtype=dtype) if context else None


def jacobian_log_det(run, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """log|det ∂run/∂x| row by row, by autograd."""
    out = []
    for i in range(len(x)):
        c = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, c=c: run(v[None], c)[0][0], x[i])
        out.append(torch.linalg.slogdet(jacobian)[1])
    return torch.stack(out)
