"""Images at several scales (Dinh et al. 2017, section 3.6; Kingma & Dhariwal 2018, figure 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcli.flows.bijection import Bijection


class Squeeze(Bijection):
    """Each 2 × 2 block of pixels becomes four channels: (n, C, H, W) → (n, 4C, H/2, W/2).

    In memory the channels of a pixel then lie together, which is how convolutions and products with them are fastest.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        return y, x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), y.new_zeros(y.shape[0])


class MultiScale(Bijection):
    """Levels of layers on images given as rows ``(n, C·H·W)``; after each but the last, half the channels are done.

    A level's split is a coupling that changes the second half of the channels given the first: with an affine
    transform the half that leaves is Gaussian with a learned mean and scale, which is Glow's learned prior, and the
    base stays one standard density over all latents. ``latents`` are the shapes (C, H, W) of what leaves at each
    level, finest first, as they stand in the row.
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: Iterable[Bijection],
        splits: Iterable[Bijection],
        latents: Sequence[tuple[int, int, int]],
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.latents = tuple(latents)
        self.levels = nn.ModuleList(levels)
        self.splits = nn.ModuleList(splits)

    def _pairs(self) -> Iterator[tuple[Bijection, Bijection | None]]:
        for level, split in zip_longest(self.levels, self.splits):
            assert isinstance(level, Bijection)
            assert split is None or isinstance(split, Bijection)
            yield level, split

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total, done = x.new_zeros(x.shape[0]), []
        x = x.view(-1, *self.shape)
        for level, split in self._pairs():
            x, log_det = level(x, context)
            total = total + log_det
            if split is not None:
                x, log_det = split(x, context)
                total = total + log_det
                x, leaving = x.chunk(2, 1)
                done.append(leaving.flatten(1))
        return torch.cat([*done, x.flatten(1)], 1), total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[0])
        latents = self.parts(y)
        x = latents.pop()
        for level, split in reversed(list(self._pairs())):
            if split is not None:
                x, log_det = split.inverse(torch.cat([x, latents.pop()], 1), context)
                total = total + log_det
            x, log_det = level.inverse(x, context)
            total = total + log_det
        return x.flatten(1), total

    def start(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, done = x.view(-1, *self.shape), []
        for level, split in self._pairs():
            x = level.start(x, context)
            if split is not None:
                x, leaving = split.start(x, context).chunk(2, 1)
                done.append(leaving.flatten(1))
        return torch.cat([*done, x.flatten(1)], 1)

    def parts(self, z: Tensor) -> list[Tensor]:
        """The latents ``(n, C, H, W)`` that rows ``(n, features)`` hold, finest first."""
        parts = z.split([math.prod(shape) for shape in self.latents], 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.latents, strict=True)]
