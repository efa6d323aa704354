"""Discrete columns: an autoregressive softmax written as a bijection, and the embedding others see them by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.base import HALF_LOG_2PI
from flowcli.flows.bijection import Bijection
from flowcli.flows.nets import MaskedMLP
from flowcli.flows.spread import CHOICES


class Cells(NamedTuple):
    """The K cells of a discrete column: cell k is [k, k + 1), and a row's number in it k + u with u in [0, 1)."""

    frequencies: Tensor
    """Their shares ``(K,)`` of the rows: above 0, of sum 1, in float64."""
    values: Tensor | None = None
    """Where the cells have an order, a standardised number ``(K,)`` for each."""


class _Table(nn.Embedding):
    """One column's codes ``(n,)`` → ``(n, width)``: a learned vector and, where there is an order, the cell's value.

    With an order the vectors start at zero: neighbours begin alike, and rare cells stay what their values say.
    """

    WIDEST = 16

    values: Tensor | None

    def __init__(self, cells: Cells) -> None:
        count = len(cells.frequencies)
        shape = count, min(count, self.WIDEST)
        super().__init__(*shape, _weight=torch.randn(shape) if cells.values is None else torch.zeros(shape))
        self.width = self.embedding_dim + (cells.values is not None)
        self.register_buffer("values", cells.values, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        vectors = super().forward(codes)
        if self.values is None:
            return vectors
        return torch.cat([vectors, self.values.to(vectors.dtype)[codes, None]], 1)


class Embedding(nn.Module):
    """What networks see of discrete columns: codes ``(n, D)`` → ``(n, width)``, a block of ``widths[i]`` for each."""

    def __init__(self, cells: Sequence[Cells]) -> None:
        super().__init__()
        tables = [_Table(column) for column in cells]
        self.tables = nn.ModuleList(tables)
        self.widths = [table.width for table in tables]
        self.width = sum(self.widths)

    def forward(self, codes: Tensor) -> Tensor:
        """All blocks side by side; of no columns, a block without width, in the codes' dtype."""
        return torch.cat([codes[:, :0], *(self.block(i, codes[:, i]) for i in range(len(self.tables)))], 1)

    def block(self, i: int, codes: Tensor) -> Tensor:
        """Column i's block ``(n, widths[i])`` of its codes ``(n,)``, whole numbers of any type."""
        block: Tensor = self.tables[i](codes.long())
        return block


class _Masses:
    """One column's masses p = (1 − ε)·softmax(logits) + ε·f for each row, with ε = ``FLOOR``.

    f ``(K,)`` are the cells' frequencies and logits ``(n, K)``. Codes and what is returned are
    ``(n, 1)``. Only ``log`` carries gradients. Sums over cells are taken in ``exact`` and divided by their total: a
    float32 softmax sums to 1 ± 1e-7, and the cells of what lies above 1 no v would reach.
    """

    FLOOR = 1e-4

    def __init__(self, logits: Tensor, frequencies: Tensor, exact: torch.dtype) -> None:
        self.frequencies, self.exact = frequencies, exact
        self.log_softmax = F.log_softmax(logits, 1)
        self.softmax = self.log_softmax.detach().exp()
        self.total = self.softmax.sum(1, keepdim=True, dtype=exact)

    def log(self, codes: Tensor) -> Tensor:
        """log p_k, as the log of the sum of its two terms' exponentials: neither has to be within range."""
        floor = (self.FLOOR * self.frequencies).log().to(self.log_softmax.dtype)
        return torch.logaddexp(self.log_softmax.gather(1, codes) + math.log1p(-self.FLOOR), floor[codes])

    def below(self, codes: Tensor) -> Tensor:
        """c_{k−1}, the mass of all cells before. Of each row one sum is needed, not all the cumulative ones."""
        before = torch.arange(self.softmax.shape[1], device=codes.device) < codes
        softmax = torch.where(before, self.softmax, 0).sum(1, keepdim=True, dtype=self.exact)
        floor = F.pad(self.frequencies.cumsum(0, dtype=self.exact), (1, 0))[codes]
        return (1 - self.FLOOR) * softmax / self.total + self.FLOOR * floor

    def find(self, v: Tensor) -> Tensor:
        """The cells where the cumulative sum reaches v ``(n, 1)``: c_{k−1} ≤ v < c_k."""
        masses = (1 - self.FLOOR) * (self.softmax / self.total) + self.FLOOR * self.frequencies.to(self.exact)
        codes = torch.searchsorted(masses.cumsum(1), v.contiguous(), right=True)
        return codes.clamp(max=masses.shape[1] - 1)  # the last c is 1 but for rounding


class Levels(Bijection):
    """Discrete columns to Gaussian ones: code k and place u in the cell ↦ z = Φ⁻¹(c_{k−1} + u·p_k).

    p are the masses of a column's cells given the columns before, with a floor: no cell is ever impossible, and no
    row's log-mass without bound. c is their cumulative sum and Φ the standard Gaussian's distribution function. The
    network that p comes from sees the embedded columns before and the context. It starts at zero, and is added to the
    log-masses known before training: the cells' frequencies, or, of a column with a parent, those given the parent's
    cell.

    The log-determinant is Σ log p_k − log φ(z), so that with the standard Gaussian behind it a row has the density
    Π p_k: as cells have volume 1, exactly the row's probability.

    c, Φ and Φ⁻¹ are computed in float64, as float32 cannot tell small cells near 1 apart.

    z carries gradients to x, not to the network. The terms log φ(z) of the log-determinant and of the Gaussian cancel,
    and so do their gradients, but these only on paper: each is z/φ(z) times that of c_{k−1} + u·p_k, and rounding would
    leave noise of that size. Without them the network's gradient is exactly that of Σ log p_k.
    """

    frequencies: Tensor
    counts: Tensor
    log_spread: Tensor | None

    def __init__(
        self,
        cells: Sequence[Cells],
        context: int,
        hidden: Sequence[int],
        embedding: Embedding,
        parents: Sequence[int | None] = (),
    ) -> None:
        """``embedding`` is of all columns, or of all but the last, which the network does not see. ``parents`` has for
        each column one before it, or none; :meth:`know` says what they tell."""
        super().__init__()
        self.features = len(cells)
        self.parents = [*parents] or [None] * self.features
        self.embedding = embedding
        self.sizes = [len(column.frequencies) for column in cells]
        widths = [*embedding.widths[: self.features - 1], 0]
        self.before = sum(widths)
        # With nothing to see, the one column's logits are the output layer's biases.
        self.net = MaskedMLP(widths, context, hidden if self.before + context else [], self.sizes)
        self.register_buffer("frequencies", torch.cat([column.frequencies for column in cells]), persistent=False)
        self.register_buffer("counts", torch.tensor(self.sizes), persistent=False)
        self.register_buffer("log_spread", torch.zeros(()) if context else None)
        for i, parent in enumerate(self.parents):
            if parent is not None:
                self.register_buffer(f"known_{i}", torch.zeros(self.sizes[parent], self.sizes[i]))

    def know(self, i: int, told: Tensor) -> None:
        """Column i begins from masses f_k·exp(``told (K_parent, K)``)."""
        self.get_buffer(f"known_{i}").copy_(told)

    def _masses(self, i: int, logits: Tensor, codes: Sequence[Tensor], exact: torch.dtype) -> _Masses:
        """Column i's, from the network's ``logits (n, K)`` and the codes ``(n, 1)`` of the columns before."""
        frequencies = self.frequencies.split(self.sizes)[i]
        if self.log_spread is not None:
            logits = logits * torch.exp(-self.log_spread)
        logits = frequencies.log().to(logits.dtype) + logits
        parent = self.parents[i]
        if parent is not None:
            logits = logits + self.get_buffer(f"known_{i}")[codes[parent][:, 0]]
        return _Masses(logits, frequencies, exact)

    def codes(self, x: Tensor) -> Tensor:
        """The cells ``(n, D)`` that rows of numbers ``k + u`` lie in; outside all cells, the nearest."""
        return torch.minimum(x.detach().floor().clamp(min=0).long(), self.counts - 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        codes, exact = self.codes(x), _exact(x)
        columns, logits = codes.split(1, 1), self._logits(codes, x.dtype, context)
        logs, below = [], []
        for i in range(self.features):
            masses = self._masses(i, logits[i], columns, exact)
            logs.append(masses.log(columns[i]))
            below.append(masses.below(columns[i]))
        log_masses = torch.cat(logs, 1)
        u = self._inside((x - codes).to(exact), x.dtype)
        # v > 0 as u and p are; below 1 it is kept here.
        v = torch.cat(below, 1) + u * log_masses.detach().to(exact).exp()
        z = torch.special.ndtri(v.clamp(max=1 - torch.finfo(exact).eps / 2)).to(x.dtype)
        return z, _log_det(log_masses, z)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        exact = _exact(y)
        v = torch.special.ndtr(y.to(exact))
        walk = self.net.walk(y, context)
        codes: list[Tensor] = []
        logs, below = [], []
        for i in range(self.features):
            if i:
                walk.append(self.embedding.block(i - 1, codes[-1][:, 0]).to(y.dtype).T)
            masses = self._masses(i, walk.parameters().T, codes, exact)
            codes.append(masses.find(v[:, i : i + 1]))
            logs.append(masses.log(codes[-1]))
            below.append(masses.below(codes[-1]))
        log_masses = torch.cat(logs, 1)
        u = (v - torch.cat(below, 1)) / log_masses.detach().to(exact).exp()
        x = torch.cat(codes, 1) + self._inside(u, y.dtype)
        return x.to(y.dtype), -_log_det(log_masses, y)

    def under_choices(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-masses ``(len(CHOICES), n)`` of rows with each s, of what :mod:`flowcli.flows.spread` is about; the last
        stays."""
        assert self.log_spread is not None
        codes, exact = self.codes(x), _exact(x)
        columns, logits = codes.split(1, 1), self._logits(codes, x.dtype, context)
        found = []
        for choice in CHOICES.tolist():
            self.log_spread.fill_(choice)
            logs = [self._masses(i, logits[i], columns, exact).log(columns[i]) for i in range(self.features)]
            found.append(torch.cat(logs, 1).sum(1))
        return torch.stack(found)

    def _logits(self, codes: Tensor, dtype: torch.dtype, context: Tensor | None) -> Sequence[Tensor]:
        """Each column's ``(n, K)``."""
        logits: Sequence[Tensor] = self.net(self.embedding(codes)[:, : self.before].to(dtype), context).split(
            self.sizes, 1
        )
        return logits

    def _inside(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Places ``(n, D)`` kept off both ends of their cells by K ulps of 1 in ``dtype``.

        One ulp of a number below K is at most that: k + u rounded to ``dtype`` is still in cell k.
        """
        margin = torch.finfo(dtype).eps * self.counts.to(u.dtype)
        return torch.clamp(u, margin, 1 - margin)


def _log_det(log_masses: Tensor, z: Tensor) -> Tensor:
    """Σ log p_k − log φ(z) over columns, of the z that the base sees: its log φ(z) cancels this one to rounding."""
    return (log_masses + 0.5 * z.square() + HALF_LOG_2PI).sum(1)


def _exact(x: Tensor) -> torch.dtype:
    """The precision of sums of masses: float64, which but an ``mps`` device has."""
    return torch.float32 if x.device.type == "mps" else torch.float64
