"""The Gaussian that a flow has to beat, and that says where a value that is not there may have been."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli.data.columns import Cells
from flowcli.flows.base import HALF_LOG_2PI
from flowcli.flows.linear import moments

MAX_COVARIANCE = 1024  # columns up to which correlations are known
EDGE = 1e-12  # how far shares are kept off 0 and 1, where the quantile function is infinite
WIDER = 2.0  # spread of the wider half of the draws for missing values
ROUNDS, LEARNED_FROM = 10, 20_000  # of the moments of rows with missing values
MAX_SOLVED = 1 << 24  # numbers in the matrices that are factored at once


@dataclass(frozen=True)
class Baseline:
    """The full-covariance Gaussian of the training rows in the codec's space, discrete numbers seen through Gaussian
    scores.

    Beyond 1,024 columns, or where there are fewer than two rows for each, ``covariance`` is only its diagonal,
    ``(features,)``. ``cells`` are those of the discrete numbers, which come first.
    """

    mean: Tensor
    covariance: Tensor
    cells: Sequence[Cells] = ()

    @staticmethod
    def of(y: Tensor, missing: Tensor | None, cells: Sequence[Cells] = ()) -> Baseline:
        """Moments of encoded rows ``(n, features)``; kept below 1e100, whose square is finite.

        With ``missing (n, features)`` numbers, those of the likeliest Gaussian, by expectation–maximisation (Dempster
        et al. 1977): their conditional means are filled in and conditional covariances added, in turn.
        """
        y = scores(y, cells)[0].clamp(-1e100, 1e100)
        diagonal = y.shape[1] > MAX_COVARIANCE or len(y) < 2 * y.shape[1]
        if missing is None:
            return Baseline(*((y.mean(0), y.var(0).clamp(min=1e-12)) if diagonal else moments(y)), cells)
        there = ~missing
        mean = (y * there).sum(0) / there.sum(0).clamp(min=1)
        variance = (((y - mean) * there).square().sum(0) / there.sum(0).clamp(min=1)).clamp(min=1e-12)
        if diagonal:
            return Baseline(mean, variance, cells)
        y, missing = y[:LEARNED_FROM], missing[:LEARNED_FROM]
        # Correlations from few rows that are there together are drawn towards none.
        together = len(y) * float((~missing).double().mean()) ** 2
        kept = together / (together + math.sqrt(y.shape[1]))
        found = Baseline(mean, torch.diag(variance), cells)
        for _ in range(ROUNDS):
            filled, spread = y.clone(), torch.zeros_like(found.covariance)
            for rows in _parts(missing):
                holes = found.holes(y[rows], missing[rows])
                filled[rows] = holes.filled(y[rows], holes.mean)
                block = holes.factor.mT @ holes.factor * holes.real[:, :, None] * holes.real[:, None, :]
                at = holes.places[:, :, None] * y.shape[1] + holes.places[:, None, :]
                spread.view(-1).index_add_(0, at.reshape(-1), block.reshape(-1))
            mean, covariance = moments(filled)
            covariance = covariance + spread / len(y)
            found = Baseline(mean, kept * covariance + (1 - kept) * torch.diag(covariance.diagonal()), cells)
        return found

    def log_prob(self, y: Tensor, context: Tensor | None = None, diagonal: bool = False) -> Tensor:
        """Log-density ``(n,)`` of encoded rows; ``diagonal`` leaves the correlations out. The context is not used."""
        g, log_slope = scores(y.double(), self.cells)
        centred = g - self.mean
        if diagonal or self.covariance.ndim == 1:
            scale = (self.covariance.diagonal() if self.covariance.ndim == 2 else self.covariance).sqrt()
            z, log_scale = centred / scale, scale.log().sum()
        else:
            factor = torch.linalg.cholesky(self.covariance)
            z = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
            log_scale = factor.diagonal().log().sum()
        log_prob: Tensor = -0.5 * z.square().sum(1) - log_scale - len(self.mean) * HALF_LOG_2PI + log_slope
        return log_prob

    def spread(self, shaped: bool) -> Tensor:
        """What standard Gaussian noise ε on encoded rows is multiplied by: factors ``(features,)``, or R ``(features,
        features)`` for εᵀR. It leaves the codes of discrete numbers alone. With ``shaped`` it has the covariance RᵀR of
        the rows, and so is as wide as they are in every direction."""
        continuous = (torch.arange(len(self.mean)) >= len(self.cells)).double()
        if not shaped:
            return continuous
        if self.covariance.ndim == 1:
            return continuous * self.covariance.sqrt()
        root, discrete = torch.zeros_like(self.covariance), len(self.cells)
        root[discrete:, discrete:] = torch.linalg.cholesky(self.covariance[discrete:, discrete:]).T
        return root

    @cached_property
    def _precision(self) -> Tensor:
        precision: Tensor = torch.linalg.inv(self.covariance)
        return precision

    def holes(self, g: Tensor, missing: Tensor) -> Holes:
        """What is known of the ``missing`` numbers of rows of scores ``(n, features)``.

        With P the precision, the covariance of the missing part M given the rest O is P_MM⁻¹ and its mean
        μ_M − P_MM⁻¹ P_MO (x_O − μ_O).
        """
        most = int(missing.sum(1).max())
        index = torch.argsort(~missing, dim=1, stable=True)[:, :most]  # those of a row that lacks fewer are not real
        real = missing.gather(1, index)
        if self.covariance.ndim == 1:
            factor = torch.diag_embed(self.covariance[index].sqrt())
            return Holes(index, real, self.mean[index], factor)
        block = self._precision[index[:, :, None], index[:, None, :]]
        both = real[:, :, None] & real[:, None, :]
        lower = torch.linalg.cholesky(torch.where(both, block, torch.eye(most, dtype=g.dtype)))
        identity = torch.eye(most, dtype=g.dtype).expand_as(lower)
        factor = torch.linalg.solve_triangular(lower, identity, upper=False)
        shift = (((g - self.mean) * ~missing) @ self._precision).gather(1, index) * real
        mean = self.mean[index] - (factor.mT @ (factor @ shift[..., None]))[..., 0]
        return Holes(index, real, mean, factor)

    def completed(self, y: Tensor, missing: Tensor, normal: Tensor, spread: float = 1.0) -> tuple[Tensor, Tensor]:
        """Encoded rows ``(n, features)`` whose ``missing`` numbers are drawn given the others from the Gaussian, spread
        ``spread`` times as far, with standard Gaussian ``normal (n, features)``; and the log-density ``(n,)`` of the
        draws under the Gaussian and one ``WIDER`` as far, half each, in the flow's space."""
        full, log_q = y.clone(), y.new_zeros(len(y))
        for rows in _parts(missing):
            # Each missing number's own normal, not one that has served another number of the row.
            own = normal[rows].gather(1, torch.argsort(~missing[rows], dim=1, stable=True))
            part, log_density = self.draws(y[rows], missing[rows], spread * own[:, None])
            full[rows], log_q[rows] = part[:, 0], log_density[:, 0]
        return full, log_q

    def expected(self, y: Tensor, missing: Tensor | None) -> Tensor:
        """Encoded rows ``(n, features)`` whose ``missing`` numbers are their means given the others."""
        return y if missing is None or not missing.any() else self.completed(y, missing, torch.zeros_like(y))[0]

    def draws(self, y: Tensor, missing: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`completed` rows ``(n, k, features)`` and log-densities ``(n, k)`` of k draws each. The first numbers
        of the ``noise (n or 1, k, features)`` serve the missing ones, whichever these are."""
        g, _ = scores(y, self.cells)
        holes, (n, d), k = self.holes(g, missing), y.shape, noise.shape[1]
        noise = noise[..., : holes.places.shape[1]].expand(n, -1, -1)
        values = holes.mean[:, None] + noise @ holes.factor
        drawn = holes.filled(g[:, None].expand(n, k, d), values)
        squares = (noise.square() * holes.real[:, None]).sum(2)
        count = missing.sum(1)[:, None]
        log_scale = (holes.factor.diagonal(dim1=1, dim2=2).log() * holes.real).sum(1)[:, None]
        wide = -0.5 * squares / WIDER**2 - count * math.log(WIDER)
        log_q = torch.logaddexp(-0.5 * squares, wide) - math.log(2) - log_scale - count * HALF_LOG_2PI
        hole = missing[:, None].expand(n, k, d)
        full, log_slope = unscored(drawn.reshape(-1, d), self.cells, hole.reshape(-1, d))
        return torch.where(hole, full.view(n, k, d), y[:, None]), log_q + log_slope.view(n, k)


class Holes(NamedTuple):
    """Of rows with missing numbers: their ``places (n, m)``, ``real (n, m)`` or there only to fill up; their
    conditional means ``(n, m)``, and a factor ``F (n, m, m)`` of their conditional covariance FᵀF."""

    places: Tensor
    real: Tensor
    mean: Tensor
    factor: Tensor

    def filled(self, rows: Tensor, values: Tensor) -> Tensor:
        """Rows ``(n, …, features)`` with ``values (n, …, m)`` in their holes."""
        middle = rows.shape[1:-1]
        index, real = (
            part.view(len(part), *[1] * len(middle), -1).expand(len(part), *middle, -1)
            for part in (self.places, self.real)
        )
        return rows.scatter(-1, index, torch.where(real, values, rows.gather(-1, index)))


def _parts(missing: Tensor) -> Iterator[Tensor]:
    """The rows with missing numbers, so many at a time as keep the matrices of these small; such together as lack about
    as many."""
    counts = missing.sum(1)
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    while len(order):
        most = int(counts[order[-1]])
        size = max(1, MAX_SOLVED // most**2)
        order, part = order[:-size] if size < len(order) else order[:0], order[-size:]
        yield part


def scores(y: Tensor, cells: Sequence[Cells]) -> tuple[Tensor, Tensor]:
    """Encoded rows with their discrete numbers seen through Gaussian scores, g = Φ⁻¹(c_{k−1} + u·f_k), and log|dg/dy|
    ``(n,)``: each such column's marginal is then the standard Gaussian."""
    if not cells:
        return y, y.new_zeros(len(y))
    columns, log_slope = [], y.new_zeros(len(y))
    for i, (frequencies, _) in enumerate(cells):
        code = y[:, i].floor().clamp(0, len(frequencies) - 1)
        share = frequencies[code.long()]
        below = (frequencies.cumsum(0) - frequencies)[code.long()]
        g = torch.special.ndtri((below + (y[:, i] - code).clamp(0, 1) * share).clamp(EDGE, 1 - EDGE))
        log_slope = log_slope + share.log() + 0.5 * g.square() + HALF_LOG_2PI
        columns.append(g)
    return torch.cat([torch.stack(columns, 1), y[:, len(cells) :]], 1), log_slope


def unscored(g: Tensor, cells: Sequence[Cells], which: Tensor) -> tuple[Tensor, Tensor]:
    """The encoded rows that :func:`scores` takes to ``g``, and log|dg/dy| ``(n,)`` of the numbers at ``which``."""
    if not cells:
        return g, g.new_zeros(len(g))
    columns, log_slope = [], g.new_zeros(len(g))
    for i, (frequencies, _) in enumerate(cells):
        v = torch.special.ndtr(g[:, i]).clamp(EDGE, 1 - EDGE)
        edges = frequencies.cumsum(0)
        code = torch.searchsorted(edges, v).clamp(max=len(frequencies) - 1)
        share = frequencies[code]
        columns.append(code + ((v - (edges[code] - share)) / share).clamp(0, 1 - 2.0**-10))
        log_slope = log_slope + torch.where(which[:, i], share.log() + 0.5 * g[:, i].square() + HALF_LOG_2PI, 0.0)
    return torch.cat([torch.stack(columns, 1), g[:, len(cells) :]], 1), log_slope
