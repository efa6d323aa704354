"""From log-densities to scores: higher is odder. All in nats.

A model keeps, for its held-out rows, what every method's score is made of; a score's p-value is its rank among theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.data.image import ImageCodec
from flowcli.errors import UsageError
from flowcli.model import Density, Model
from flowcli.recipe import MethodName

Floats = NDArray[np.float64]


def ingredients(model: Model, rows: Rows, samples: int | None = None) -> Floats:
    """What scores are made of, ``(k, n)``: the log-density of the complete row, and for images the nats that a PNG of
    each takes."""
    return of_density(model, rows, model.density(rows, samples=samples))


def of_density(model: Model, rows: Rows, density: Density) -> Floats:
    """:func:`ingredients`, of rows whose density is known."""
    if not isinstance(model.codec, ImageCodec):
        return density.complete[None]
    return np.stack([density.complete, model.codec.code_length(rows.raw)])


def score(parts: Floats, model: Model, method: MethodName | None = None) -> Floats:
    """Scores ``(n,)`` from :func:`ingredients`, by ``method`` or the recipe's.

    - ``nll``: −log p.
    - ``typicality``: |log p − its mean over held-out rows|: a row may be too likely as well (Nalisnick et al. 2019).
    - ``complexity``: −log p less the length of the image's PNG: what the model finds odd beyond what is hard to
      compress. Plain pictures are likely under any model of images, whatever they show (Serrà et al. 2020).
    - ``either``: the greater of ``nll`` and ``complexity``, each in standard deviations from its mean over held-out
      rows: unlikely, or unlikely for how plain it is. ``complexity`` alone is blind to what is hard to compress and
      unlikely, such as clothes among digits.

    A row of zero density has score +∞. Raises UsageError for ``complexity`` and ``either`` of a table.
    """
    method = method or model.recipe.score.method
    images = isinstance(model.codec, ImageCodec)
    if method == "auto":
        method = "either" if images else "nll"
    if method in ("complexity", "either") and not images:
        raise UsageError(f"score.method: {method} is for images, and this model is of a table.")
    if method == "nll":
        return np.asarray(-parts[0])
    usual = model.calibration.numpy()
    usual = usual[:, usual[0] > np.finfo(np.float64).min]  # which stands for rows of zero density
    if method == "typicality":
        return np.asarray(np.abs(parts[0] - (usual[0].mean() if usual.size else 0.0)))
    if method == "complexity":
        return _complexity(parts)
    pairs = ((-parts[0], -usual[0]), (_complexity(parts), _complexity(usual)))
    return np.asarray(np.maximum(*(_standard(values, held_out) for values, held_out in pairs)))


def _complexity(parts: Floats) -> Floats:
    return np.asarray(-parts[0] - parts[1])


def _standard(values: Floats, held_out: Floats) -> Floats:
    """In standard deviations of ``held_out`` from its mean; as they are, where there is nothing to compare with."""
    if len(held_out) < 2:
        return values
    return np.asarray((values - held_out.mean()) / (held_out.std() or 1.0))
