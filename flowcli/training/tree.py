"""What discrete columns begin from: each one's masses given one column before it, counted in the training rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcli.data.columns import Cells

MAX_PAIRS = 1 << 19  # cells of two columns together, up to which they are counted
MAX_COMPARED = 1 << 28  # rows times pairs of columns that are compared, at most
FEWEST_COMPARED = 4096  # rows that are compared, at least
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # rows that a column's own frequencies are worth beside a count


def parents(codes: Tensor, missing: Tensor | None, cells: Sequence[Cells]) -> dict[int, tuple[int, Tensor]]:
    """Which column before it tells most about each discrete column, and log p(k | l) − log f_k ``(K_parent, K)``.

    A dependence tree (Chow & Liu 1968) that keeps the columns' order. p(k | l) = (n_lk + α f_k)/(n_l + α); the parent,
    α, and whether there is one at all are those under which each row is likeliest given the *others*: its own count
    taken off, so that two columns of many levels do not find each other by chance.

    ``codes`` and ``missing`` are ``(n, features)``, of random training rows in random order; the discrete columns come
    first.
    """
    there = torch.ones_like(codes, dtype=torch.bool) if missing is None else ~missing
    sizes = [len(frequencies) for frequencies, _ in cells]
    pairs = [(i, j) for j in range(len(cells)) for i in range(j) if sizes[i] * sizes[j] <= MAX_PAIRS]
    compared = max(MAX_COMPARED // max(len(pairs), 1), FEWEST_COMPARED)
    codes = codes[:, : len(cells)].long()

    def counts(i: int, j: int, rows: int) -> Tensor:
        both = there[:rows, i] & there[:rows, j]
        flat = codes[:rows, i][both] * sizes[j] + codes[:rows, j][both]
        return torch.bincount(flat, minlength=sizes[i] * sizes[j]).view(sizes[i], sizes[j]).double()

    best: dict[int, tuple[float, int]] = {}
    for i, j in pairs:
        gain, _ = _gain(counts(i, j, compared), cells[j].frequencies)
        if gain > best.get(j, (0.0, 0))[0]:
            best[j] = gain, i
    found = {}
    for j, (_, i) in best.items():
        counted, frequencies = counts(i, j, len(codes)), cells[j].frequencies
        _, strength = _gain(counted, frequencies)
        masses = (counted + strength * frequencies) / (counted.sum(1, keepdim=True) + strength)
        found[j] = i, masses.log() - frequencies.log()
    return found


def _gain(counts: Tensor, frequencies: Tensor) -> tuple[float, float]:
    """By how many nats a row is likelier given its parent, on average, at the best α; and that α."""
    rows = counts.sum(1, keepdim=True).expand_as(counts)
    told, k = torch.nonzero(counts, as_tuple=True)
    n, total, f = counts[told, k], rows[told, k], frequencies[k]
    gains = [
        float((n * (((n - 1 + a * f) / (total - 1 + a)).log() - f.log())).sum() / n.sum().clamp(min=1))
        for a in STRENGTHS
    ]
    best = max(range(len(gains)), key=gains.__getitem__)
    return gains[best], STRENGTHS[best]
