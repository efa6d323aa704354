"""Rows of the fit to compare others with: how far a row is from those it is nearest to, and from the flow's centre."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcli.baseline import Baseline, scores
from flowcli.flows.flow import Flow

NEAREST = (1, 5)  # the distances to the nearest and to the fifth row
FIGURES = (len(NEAREST), len(NEAREST), 1)  # of each view of a row
MOST = 20_000  # rows that are kept
FAR = 1e6  # standard deviations; numbers further out are taken to here, so that squares stay exact enough
LEAST = 1e-6  # the distance that equal rows have, whose logarithm is finite
MOST_LOG = 100.0  # what no logarithm of a distance is near
AT_ONCE = 1 << 20  # distances in memory at once
BLOCK = 128  # reference rows of which the least distance is looked at first


class Reference(NamedTuple):
    """Encoded rows ``(m, features)`` to compare others with, float64. Held-out rows are among them where all fit: each
    of those is compared with the others, as another row is with all. Columns and ranks are measured by training rows.
    """

    training: Tensor
    held_out: Tensor

    def fits(self, features: int) -> bool:
        """Whether rows with so many features can be compared with these."""
        alike = all(part.dtype == torch.float64 and part.shape[1:] == (features,) for part in self)
        return alike and 0 < len(self.training) <= MOST - len(self.held_out)


class Neighbours:
    """How far rows are from others, by:

    1. the columns, each in its standard deviations, of which large ones count by their logarithm (asinh), so that one
       column with long tails does not hide the others: what is far out. In the city-block metric, in which one column
       counts for less among many than in Euclid's (Aggarwal et al. 2001);
    2. the columns' Gaussian ranks: what is far out whatever the shape of a column, and where values are rare;
    3. the flow's latents, by how far from their centre: what departs from how the columns hang together.

    A density by nearest neighbours falls as r^−d with the distance r to the k-th of them, in any norm (Loftsgaarden &
    Quesenberry 1965), so log r is −log p up to constants; the first two are the same estimate in other coordinates. Of
    latents the density is known, and falls with the distance from the centre.
    """

    def __init__(self, reference: Reference, baseline: Baseline, flow: Flow) -> None:
        self.reference, self.baseline, self.flow = reference, baseline, flow

    def log_distances(self, y: Tensor, missing: Tensor | None = None, own: bool = False) -> Tensor:
        """Logarithms of the distances of encoded rows ``(n, features)`` to their ``NEAREST`` of the reference, by
        columns and by ranks, and of their latents from the centre: ``(Σ FIGURES, n)``. Missing numbers are taken for
        their mean given the others. ``own``: they are the held-out rows of the reference, if it has such, and the one
        that each is nearest to, itself, does not count."""
        y, (columns, ranks) = self.baseline.expected(y, missing), self._references
        own = own and len(self.reference.held_out) > 0
        found = [
            _nearest(self._columns(y), columns, norm=1, own=own),
            _nearest(self._ranks(y), ranks, norm=2, own=own),
            self._latents(y).norm(dim=1)[None],
        ]
        return torch.cat(found).clamp(min=LEAST).log()

    @cached_property
    def _references(self) -> tuple[Tensor, Tensor]:
        rows = torch.cat(self.reference)
        return self._columns(rows), self._ranks(rows)

    def _columns(self, y: Tensor) -> Tensor:
        return torch.asinh(self._standard(y))

    def _standard(self, y: Tensor) -> Tensor:
        mean, scale = self._moments
        standard: Tensor = ((self._numbers(y) - mean) / scale).clamp(-FAR, FAR)
        return standard

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        numbers = self._numbers(self.reference.training)
        return numbers.mean(0), numbers.std(0, correction=0).clamp(min=1e-12)

    def _numbers(self, y: Tensor) -> Tensor:
        """Encoded rows with Gaussian scores for what is discrete."""
        return scores(y, self.baseline.cells)[0]

    def _ranks(self, y: Tensor) -> Tensor:
        """Φ⁻¹ of the middle rank among the training rows; beyond the outermost, on by standard deviations."""
        x = self._standard(y)
        ranked, columns = self._sorted, x.T.contiguous()
        below, upto = (torch.searchsorted(ranked, columns, right=right) for right in (False, True))
        share = ((below + upto) / 2 + 0.5) / (ranked.shape[1] + 1)
        beyond = (columns - ranked[:, -1:]).clamp(min=0) - (ranked[:, :1] - columns).clamp(min=0)
        ranks: Tensor = torch.special.ndtri(share) + beyond
        return ranks.T

    @cached_property
    def _sorted(self) -> Tensor:
        return self._standard(self.reference.training).T.contiguous().sort(1).values

    @torch.no_grad()
    def _latents(self, y: Tensor) -> Tensor:
        like = self.flow.base.anchor
        z, _ = self.flow.bijection(y.to(like.device, like.dtype))
        latents = z[:, len(self.baseline.cells) :].double().cpu()
        return torch.nan_to_num(latents, nan=FAR).clamp(-FAR, FAR)


def _nearest(x: Tensor, reference: Tensor, norm: int, own: bool) -> Tensor:
    """Distances of rows ``(n, d)`` to the ``NEAREST`` of the reference rows, of which they are if ``own``:
    ``(len(NEAREST), n)``."""
    most = min(max(NEAREST) + own, len(reference))
    found = []
    for rows in x.split(max(1, AT_ONCE // len(reference))):
        distances = torch.cdist(rows, reference, p=norm)
        blocks = F.pad(distances, (0, -len(reference) % BLOCK), value=torch.inf).unflatten(1, (-1, BLOCK))
        # The least k numbers lie in the k blocks of the least minima: few numbers are left to sort.
        nearest = blocks.amin(2).topk(min(most, blocks.shape[1]), largest=False).indices
        near = blocks.gather(1, nearest[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
        found.append(near.topk(most, largest=False).values)
    least = torch.cat(found)
    return torch.stack([least[:, min(k + own, most) - 1] for k in NEAREST])
