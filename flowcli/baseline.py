"""The Gaussian that a flow has to beat, and that says where a value that is not there may have been."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        found = Baseline(mean, torch.diag(variance), cells)
        for _ in range(ROUNDS):
            parts = [(_filled(part, hole, mean), spread) for part, hole, mean, spread in found._conditional(y, missing)]
            filled = torch.cat([part for part, _ in parts])
            mean, covariance = moments(filled)
            spread = sum((factor.mT @ factor).sum(0) for _, factor in parts) / len(y)
            found = Baseline(mean, covariance + spread, cells)
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

    def completed(self, y: Tensor, missing: Tensor, normal: Tensor, spread: float = 1.0) -> tuple[Tensor, Tensor]:
        """Encoded rows ``(n, features)`` whose ``missing`` numbers are drawn given the others from the Gaussian, spread
        ``spread`` times as far, with standard Gaussian ``normal (n, features)``; and the log-density ``(n,)`` of the
        draws under both the Gaussian and one ``WIDER`` as far, half each, in the flow's space."""
        g, _ = scores(y, self.cells)
        drawn, log_q = [], []
        start = 0
        for part, hole, mean, factor in self._conditional(g, missing):
            noise = (normal[start : start + len(part)] * spread)[..., None]
            start += len(part)
            drawn.append(_filled(part, hole, mean + (factor.mT @ noise)[..., 0]))
            squares = (noise[..., 0].square() * hole).sum(1)
            count = hole.sum(1)
            # The factor's rows are zero but for the missing numbers', where it is the inverse of a triangular one.
            log_scale = (factor.diagonal(dim1=1, dim2=2).clamp(min=1e-300).log() * hole).sum(1)
            near = -0.5 * squares
            far = -0.5 * squares / WIDER**2 - count * math.log(WIDER)
            log_q.append(torch.logaddexp(near, far) - math.log(2) - log_scale - count * HALF_LOG_2PI)
        full, log_slope = unscored(torch.cat(drawn), self.cells, missing)
        return torch.where(missing, full, y), torch.cat(log_q) + log_slope

    def _conditional(self, g: Tensor, missing: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Parts of the rows: their scores, what is missing, the conditional mean ``(n, features)`` of that given the
        rest, and a factor ``F (n, features, features)`` of its conditional covariance FᵀF, zero elsewhere.

        With P the precision, the covariance of the missing part M is P_MM⁻¹ and its mean μ_M − P_MM⁻¹ P_MO (x_O − μ_O).
        With the identity in the place of P outside M, all patterns have matrices of one size.
        """
        d = g.shape[1]
        covariance = torch.diag(self.covariance) if self.covariance.ndim == 1 else self.covariance
        precision = torch.linalg.inv(covariance)
        size = max(1, MAX_SOLVED // d**2)
        for start in range(0, len(g), size):
            part, hole = g[start : start + size], missing[start : start + size]
            patterns, which = torch.unique(hole, dim=0, return_inverse=True)
            inside = patterns[:, :, None] & patterns[:, None, :]
            matrices = torch.where(inside, precision, torch.eye(d, dtype=g.dtype))
            factors = torch.linalg.cholesky(matrices)
            inverse = torch.linalg.solve_triangular(
                factors, torch.eye(d, dtype=g.dtype).expand_as(factors), upper=False
            )
            inverse = torch.where(inside, inverse, torch.zeros_like(inverse))[which]
            shift = ((part - self.mean) * ~hole) @ precision * hole
            mean = self.mean - (inverse.mT @ (inverse @ shift[..., None]))[..., 0]
            yield part, hole, mean, inverse


def _filled(part: Tensor, hole: Tensor, values: Tensor) -> Tensor:
    return torch.where(hole, values, part)


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
