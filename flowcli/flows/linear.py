"""Linear layers: a triangular map that whitens, LU mixing of columns or channels, and scaling of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection


def moments(x: Tensor, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean ``(features,)`` and covariance of rows, with a share ``ridge`` of each variance added to it: whatever the
    columns' scales, a Cholesky factor exists. A column that does not vary in these rows, as it may in others, has
    variance 1, as encoded columns about have."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / max(len(x) - 1, 1)
    variance = covariance.diagonal()
    added = torch.where(variance > ridge**2, ridge * variance.clamp(min=ridge), 1.0)
    return x.mean(0), covariance + torch.diag(added)


class Triangular(Bijection):
    """y = L (x − μ) with L lower-triangular and a positive diagonal exp(d): the log-determinant is Σ d.

    ``start`` sets it to whiten the training rows, so that a new flow with this layer first begins with their centre,
    spread and correlations. L keeps the column order: an autoregressive flow behind it is still autoregressive.
    """

    FAR = 10.0  # rows further out are moved to here before the covariance is taken: one must not decide the start

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features))

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        mean, covariance = moments(x.clamp(-self.FAR, self.FAR))
        # L is the inverse of the covariance's Cholesky factor.
        inverse = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), torch.eye(len(mean), dtype=mean.dtype), upper=False
        )
        self.mean.copy_(mean)
        self.log_diagonal.copy_(inverse.diagonal().log())
        self.lower.copy_(inverse.tril(-1))
        return super().start(x, context)

    def _matrix(self) -> Tensor:
        return self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.linear(x - self.mean, self._matrix()), self.log_diagonal.sum().expand(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.linalg.solve_triangular(self._matrix(), y.T, upper=False).T
        return x + self.mean, -self.log_diagonal.sum().expand(y.shape[0])


class LU(Bijection):
    """y = L U Q x over columns, or over the channels of images, where it is a 1×1 convolution (Glow, section 3.2).

    L is unit lower-triangular, U upper-triangular with diagonal exp(d) (Oliva et al. 2018; Glow, equation 11), so the
    map is always invertible with log-determinant Σ d for each pixel. Q is fixed: the identity, or with ``rotate`` a
    random rotation, which mixes all channels from the first step on.
    """

    rotation: Tensor | None

    def __init__(self, features: int, rotate: bool = False) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        # In float64, so that a flow taken to that precision has a rotation of that precision.
        rotation = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))[0] if rotate else None
        self.register_buffer("rotation", rotation)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_diagonal.sum() * x[0, 0].numel()).expand(x.shape[0])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        matrix = lower @ upper if self.rotation is None else lower @ (upper @ self.rotation)
        return _mixed(x, matrix), self._log_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        half = torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)
        matrix = torch.linalg.solve_triangular(upper, half, upper=True)
        matrix = matrix if self.rotation is None else self.rotation.T @ matrix
        return _mixed(y, matrix), -self._log_det(y)


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix`` times the columns of rows, or the channels of every pixel."""
    return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)


class ActNorm(Bijection):
    """y = (x − m)·exp(s) for each column or channel; ``start`` gives y mean 0 and variance 1 (Glow, section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        columns = x.movedim(1, 0).flatten(1)
        self.mean.copy_(columns.mean(1))
        self.log_scale.copy_(-columns.std(1).clamp(min=1e-3).log())
        return super().start(x, context)

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (-1, *(1 for _ in like.shape[2:]))
        log_det = (self.log_scale.sum() * like[0, 0].numel()).expand(like.shape[0])
        return self.mean.view(shape), self.log_scale.view(shape), log_det

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, log_det = self._parts(x)
        return (x - mean) * log_scale.exp(), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale, log_det = self._parts(y)
        return y * torch.exp(-log_scale) + mean, -log_det
