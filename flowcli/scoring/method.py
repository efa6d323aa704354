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
from flowcli.neighbours import FIGURES
from flowcli.recipe import MethodName

Floats = NDArray[np.float64]
EXPECTED = 1 / 2  # of what the other views let expect of one, that is taken off
ENOUGH = 10  # held-out rows that say what views let expect of each other
TAIL, SHORT = 0.1, 20  # the share of held-out rows that counts as the tail; twice that of few, up to so many rows


def ingredients(model: Model, rows: Rows, own: bool = False) -> Floats:
    """What scores are made of, ``(k, n)``: the log-density of the complete row, for images the nats that a PNG of each
    takes, and the log-distances to other rows where the model keeps such; ``own`` says that ``rows`` are its held-out
    ones."""
    return of_density(model, rows, model.density(rows), own)


def of_density(model: Model, rows: Rows, density: Density, own: bool = False) -> Floats:
    """:func:`ingredients`, of rows whose density is known."""
    if not isinstance(model.codec, ImageCodec):
        return np.concatenate([density.complete[None], model.log_distances(rows, own)])
    return np.stack([density.complete, model.codec.code_length(rows.raw)])


def score(parts: Floats, model: Model, method: MethodName | None = None, own: bool = False) -> Floats:
    """Scores ``(n,)`` from :func:`ingredients`, by ``method`` or the recipe's; ``own`` says that they are the model's
    held-out rows'.

    - ``nll``: −log p.
    - ``typicality``: |log p − its mean over held-out rows|: a row may be too likely as well (Nalisnick et al. 2019).
    - ``neighbours``: the cubic mean, over three views of a row, of −log the share of held-out rows that are as far from
      others, or from the flow's centre (:class:`~flowcli.neighbours.Neighbours`, :func:`oddness`): very odd in one way
      is odd.
    - ``complexity``: −log p less the length of the image's PNG: what the model finds odd beyond what is hard to
      compress. Plain pictures are likely under any model of images, whatever they show (Serrà et al. 2020).
    - ``either``: the greater of ``nll`` and ``complexity``, each in standard deviations from its mean over held-out
      rows: unlikely, or unlikely for how plain it is. ``complexity`` alone is blind to what is hard to compress and
      unlikely, such as clothes among digits.

    A row of zero density has score +∞. Raises UsageError for ``complexity`` and ``either`` of a table, and for
    ``neighbours`` where the model keeps no rows.
    """
    method = method or model.recipe.score.method
    images = isinstance(model.codec, ImageCodec)
    if method == "auto":
        method = "either" if images else "nll"
    if method in ("complexity", "either") and not images:
        raise UsageError(f"score.method: {method} is for images, and this model is of a table.")
    if method == "neighbours" and model.neighbours is None:
        raise UsageError("score.method: neighbours compares with the rows of the fit, and this model keeps none.")
    if method == "nll":
        return np.asarray(-parts[0])
    usual = model.calibration.numpy()
    usual = usual[:, usual[0] > np.finfo(np.float64).min]  # which stands for rows of zero density
    if method == "typicality":
        return np.asarray(np.abs(parts[0] - (usual[0].mean() if usual.size else 0.0)))
    if method == "neighbours":
        return np.where(np.isneginf(parts[0]), np.inf, oddness(parts[1:], usual[1:], own))
    if method == "complexity":
        return _complexity(parts)
    pairs = ((-parts[0], -usual[0]), (_complexity(parts), _complexity(usual)))
    return np.asarray(np.maximum(*(_standard(values, held_out) for values, held_out in pairs)))


def oddness(distances: Floats, held_out: Floats, own: bool = False) -> Floats:
    """The cubic mean over views of how surprising log-distances ``(k, n)`` are beside those of held-out rows ``(k,
    m)``. ``own``: they are the held-out rows', each compared with the others, as another row is with all. Compared with
    itself too, it would seem more usual, and others' p-values too small.

    A view is the mean over its figures, less a share of what the others let expect of it, as far as that is more than
    usual: what all views see counts for less, and what one sees in a row that is usual to the others for more. Where a
    row is nearer than usual to the others, as one that is in the reference is, nothing is expected.
    """
    views, usual = (np.array([v.mean(0) for v in np.split(f, np.cumsum(FIGURES)[:-1])]) for f in (distances, held_out))
    odd = []
    for i in range(len(views)):
        here, there = views[i], usual[i]
        if usual.shape[1] >= ENOUGH:
            beside, among = (np.vstack([np.ones(v.shape[1]), np.delete(v, i, 0)]) for v in (views, usual))
            slopes = np.linalg.lstsq(among.T, there, rcond=None)[0]
            expected, usually = slopes @ beside, slopes @ among
            least = np.median(usually)
            here = here - EXPECTED * np.maximum(expected, least)
            there = there - EXPECTED * np.maximum(usually, least)
        odd.append(_surprise(here, there, own))
    return np.asarray(np.cbrt((np.array(odd) ** 3).mean(0)))


def _surprise(values: Floats, held_out: Floats, own: bool) -> Floats:
    """−log of the share of held-out rows that are as great, in nats.

    Beyond the 90th percentile, where they are few and in the end none, an exponential tail with their mean excess goes
    on: by the theorem of Pickands (1975) what exceeds a high threshold is near a generalised Pareto, of which the
    exponential is the one without further parameters.
    """
    n = len(held_out) - own
    if n < 1:
        return np.zeros_like(values)
    ranked = np.sort(held_out)
    sums = np.append(np.cumsum(ranked[::-1])[::-1], 0.0)  # of all from here on
    tail = max(TAIL, min(2 * TAIL, SHORT / n))
    place, k = np.searchsorted(ranked, values, "left"), int((1 - tail) * n)
    start = np.where(own & (place <= k), ranked[min(k + 1, n)] if own else 0.0, ranked[k])
    first = np.searchsorted(ranked, start, "right")
    itself = own & (values > start)
    count = len(ranked) - first - itself
    excess = (sums[first] - np.where(itself, values, 0.0)) / np.maximum(count, 1) - start
    mean = np.where((count > 0) & (excess > 0), excess, 1.0)
    at_start = -np.log(tail)
    beyond = at_start + (values - start) / mean
    share = (1 + n - place) / (1 + n)
    return np.asarray(np.where(values > start, beyond, np.minimum(-np.log(share), at_start)))


def _complexity(parts: Floats) -> Floats:
    return np.asarray(-parts[0] - parts[1])


def _standard(values: Floats, held_out: Floats) -> Floats:
    """In standard deviations of ``held_out`` from its mean; as they are, where there is nothing to compare with."""
    if len(held_out) < 2:
        return values
    return np.asarray((values - held_out.mean()) / (held_out.std() or 1.0))
