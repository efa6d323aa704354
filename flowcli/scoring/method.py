"""From log-densities to scores: higher is odder. All in nats.

A model keeps, for its held-out rows, what every method's score is made of; a score's p-value is its rank among theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.data.image import ImageCodec
from flowcli.errors import UsageError
from flowcli.model import Model
from flowcli.recipe import MethodName

Floats = NDArray[np.float64]


def ingredients(model: Model, rows: Rows, samples: int | None = None) -> Floats:
    """What scores are made of, ``(k, n)``: log_prob, and for images the nats that a PNG of each takes."""
    log_prob = model.rows_log_prob(rows, samples=samples)
    if not isinstance(model.codec, ImageCodec):
        return log_prob[None]
    return np.stack([log_prob, model.codec.code_length(rows.raw)])


def score(parts: Floats, model: Model, method: MethodName | None = None) -> Floats:
    """Scores ``(n,)`` from :func:`ingredients`, by ``method`` or the recipe's.

    - ``nll``: −log p.
    - ``typicality``: |log p − its mean over held-out rows|: a row may be too likely as well (Nalisnick et al. 2019).
    - ``complexity``: −log p less the length of the image's PNG: what the model finds odd beyond what is hard to
      compress. Plain pictures are likely under any model of images, whatever they show (Serrà et al. 2020).

    A row of zero density has score +∞. Raises UsageError for ``complexity`` of a table.
    """
    method = method or model.recipe.score.method
    images = isinstance(model.codec, ImageCodec)
    if method == "auto":
        method = "complexity" if images else "nll"
    if method == "complexity" and not images:
        raise UsageError("score.method: complexity is for images, and this model is of a table.")
    if method == "typicality":
        usual = model.calibration[0].numpy()
        known = usual[usual > np.finfo(np.float64).min]  # which stands for rows of zero density
        return np.asarray(np.abs(parts[0] - (known.mean() if len(known) else 0.0)))
    return np.asarray(-parts[0] - parts[1] if method == "complexity" else -parts[0])
