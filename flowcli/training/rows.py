"""The training rows, in windows: as many at once as memory holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli.data.codec import Codec, Rows
from flowcli.data.groups import Groups
from flowcli.data.noise import uniforms
from flowcli.data.status import MISSING, OK

SPLIT = 2**34  # the epoch whose draws say which rows of a stream are held out
WINDOW, BATCHES = 1 << 24, 16  # numbers in a window of a stream, at most; but so many batches, at least

Part = tuple[int, Rows]  # training rows that stand together, and how many stand before them


class TrainingRows(Protocol):
    """What a flow learns from. About ``at_once`` rows are in a window."""

    at_once: int

    def __len__(self) -> int:
        """How many there are."""

    @property
    def digest(self) -> str:
        """Of all that they hold."""

    def windows(self, epoch: int, start: int) -> Iterator[list[Part]]:
        """The windows of an epoch, from the one numbered ``start`` on. Raises DataError when they cannot be read."""


class Together:
    """Rows in memory: one window."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.at_once = rows, len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        return digest(self.rows)

    def windows(self, epoch: int, start: int) -> Iterator[list[Part]]:
        yield [(0, self.rows)]


@dataclass(frozen=True)
class Stream:
    """Rows too many for memory. ``share`` of them are held out, by a draw from each one's position, so that they are
    the same in every epoch and after a pause; ``starts`` are the training rows before each group, and all of them."""

    groups: Groups
    seed: int
    share: float
    starts: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, group: int) -> pa.Table:
        """The training rows of a group. Raises DataError when it cannot be read."""
        table = self.groups.read(group)
        return table.filter(pa.array(draws(self.groups, self.seed, group)[:, 0] >= self.share))


class Streamed:
    """Rows read anew in each epoch: the groups in random order, as many at once as fill a window, which is shuffled."""

    def __init__(self, stream: Stream, codec: Codec, batch: int) -> None:
        self.stream, self.codec = stream, codec
        self.at_once = max(WINDOW // (codec.features + codec.context), BATCHES * batch)

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def digest(self) -> str:
        return self.stream.digest

    def windows(self, epoch: int, start: int) -> Iterator[list[Part]]:
        order = np.random.default_rng([self.stream.seed, epoch]).permutation(len(self.stream.groups))
        before = np.cumsum(np.diff(self.stream.starts)[order]) - np.diff(self.stream.starts)[order]
        cuts = np.flatnonzero(np.diff(before // self.at_once)) + 1  # a window is full with the group that crosses
        for window in np.split(order, cuts)[start:]:
            yield [(self.stream.starts[group], self._read(group)) for group in window]

    def _read(self, group: int) -> Rows:
        return usable(self.codec.read(self.stream.read(group)))


def draws(groups: Groups, seed: int, group: int) -> NDArray[np.float64]:
    """``(rows, 2)`` from (0, 1), of the positions of a group's rows alone."""
    start, stop = groups.starts[group : group + 2]
    return uniforms(seed, SPLIT, start, stop - start, 2).numpy()


def usable(rows: Rows) -> Rows:
    """Those that have a density."""
    keep = torch.from_numpy(np.flatnonzero(np.isin(rows.status, (OK, MISSING)) & ~rows.lost))
    return rows if len(keep) == len(rows) else rows.take(keep)


def digest(rows: Rows) -> str:
    """SHA-256 of the rows' numbers and context."""
    found = hashlib.sha256()
    for part in (rows.raw, rows.context, rows.missing):
        found.update(b"" if part is None else part.numpy().tobytes())
    return found.hexdigest()
