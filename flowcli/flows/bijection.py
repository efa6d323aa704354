"""The one interface of every layer, and the ways to put layers together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible map of rows, with the log-determinant of its Jacobian.

    ``forward`` runs data → latent and ``inverse`` latent → data. Both take rows ``(n, features)`` (inside an image
    flow, ``(n, channels, height, width)``) and an optional context ``(n, context)``, and return ``(y, log_det)`` with
    ``log_det`` of shape ``(n,)``: the log-determinant of the direction that was run, so that ``inverse``'s is minus
    ``forward``'s at the matching point.
    """

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""

    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set what begins from data, given training rows in this layer's own precision; return ``forward``'s rows.

        Called once, before training. Most layers begin the same whatever the data.
        """
        y: Tensor = self(x, context)[0]
        return y


class Chain(Bijection):
    """Bijections one after the other; log-determinants add up."""

    def __init__(self, layers: Iterable[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[Bijection]:
        for layer in self.layers:
            assert isinstance(layer, Bijection)
            yield layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for layer in self:
            x, log_det = layer(x, context)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[0])
        for layer in reversed(list(self)):
            y, log_det = layer.inverse(y, context)
            total = total + log_det
        return y, total

    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer.start(x, context)
        return x


class Inverted(Bijection):
    """A bijection turned round: its forward is the other's inverse. IAF is MAF inverted (Kingma et al. 2016)."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.bijection(y, context)
        return out


class Reversal(Bijection):
    """Columns the other way round. Volume is kept."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flip(1), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.flip(1), y.new_zeros(y.shape[0])


def together(x: Tensor) -> Tensor:
    """The same rows of a table ``(n, features)``, each column's values together in memory, as networks compute them."""
    return x.T.contiguous().T if x.ndim == 2 else x
