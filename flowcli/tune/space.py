"""What is varied of a recipe. Its flow's type, its columns and its budget are the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from flowcli.recipe import Recipe, from_dict

LAYERS = {"maf": (2, 8), "realnvp": (4, 12), "glow": (4, 16), "planar": (8, 64), "radial": (8, 64)}


def space(recipe: Recipe) -> dict[str, BaseDistribution]:
    """The keys that are varied, and what each may be."""
    low, high = LAYERS[recipe.flow.type]
    keys: dict[str, BaseDistribution] = {
        "train.lr": FloatDistribution(5e-4, 2e-2, log=True),
        "train.weight_decay": CategoricalDistribution([0.0, 0.01, 0.1]),
        "flow.layers": IntDistribution(low, high),
        "flow.hidden": CategoricalDistribution([32, 64, 128, 256]),  # the width of each
    }
    if recipe.data.image is None:
        keys["train.noise"] = CategoricalDistribution([0.0, 0.02, 0.05, 0.1, 0.2])
        keys["flow.base"] = CategoricalDistribution(["student_t", "gaussian"])
        if recipe.flow.type in ("maf", "realnvp"):
            keys["flow.transform"] = CategoricalDistribution(["affine", "spline"])
    return keys


def changed(recipe: Recipe, parameters: Mapping[str, Any]) -> Recipe:
    """The recipe with such values of its keys."""
    plain = recipe.model_dump(mode="json")
    for key, value in parameters.items():
        section, name = key.split(".")
        plain[section][name] = [value] * len(plain[section][name]) if name == "hidden" else value
    return from_dict(plain)
