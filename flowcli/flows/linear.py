"""Linear layers: a triangular map started at the data's covariance, and LU mixing of columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection


class Triangular(Bijection):
    """y = L (x − μ) with L lower-triangular and a positive diagonal exp(d): the log-determinant is Σ d.

    ``start`` sets it to whiten data of a given mean and covariance, so that a new flow with this layer first begins
    at the full-covariance Gaussian of the training rows and can only be better afterwards. L keeps the column order:
    an autoregressive flow behind it is still autoregressive.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features))

    @torch.no_grad()
    def start(self, mean: Tensor, covariance: Tensor) -> None:
        """Set L to the inverse of the covariance's Cholesky factor, computed in the arguments' dtype."""
        inverse = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), torch.eye(len(mean), dtype=mean.dtype), upper=False
        )
        self.mean.copy_(mean)
        self.log_diagonal.copy_(inverse.diagonal().log())
        self.lower.copy_(inverse.tril(-1))

    def _matrix(self) -> Tensor:
        return self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.linear(x - self.mean, self._matrix()), self.log_diagonal.sum().expand(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.linalg.solve_triangular(self._matrix(), y.T, upper=False).T
        return x + self.mean, -self.log_diagonal.sum().expand(y.shape[0])


class LU(Bijection):
    """y = L U x, L unit lower-triangular and U upper-triangular with diagonal exp(d) (Oliva et al. 2018; Glow, eq. 11).

    Always invertible; starts at the identity.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        return F.linear(x, lower @ upper), self.log_diagonal.sum().expand(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, y.T, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, half, upper=True).T
        return x, -self.log_diagonal.sum().expand(y.shape[0])
