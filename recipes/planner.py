"""Plans on a grid of an environment's two numbers of state, for the examples in policies.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Step = Callable[[Floats, float], tuple[Floats, bool]]  # state, action → next state, whether the episode ends there


@dataclass(frozen=True)
class Grid:
    """Points over a rectangle of states, ``sizes`` along each side. ``wraps`` says that the first number is an angle,
    whose last point is its first again."""

    low: Sequence[float]
    high: Sequence[float]
    sizes: Sequence[int]
    wraps: bool = False

    @property
    def points(self) -> Floats:
        """All of them, ``(points, 2)``."""
        sides = [np.linspace(*side) for side in zip(self.low, self.high, self.sizes, strict=True)]
        return np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)

    def corners(self, states: Floats) -> tuple[NDArray[np.int64], Floats]:
        """The four points around each of the states ``(n, 2)`` and their bilinear weights, both ``(n, 4)``."""
        low, high, steps = np.array(self.low), np.array(self.high), np.array(self.sizes) - 1
        if self.wraps:
            states = np.stack([low[0] + (states[:, 0] - low[0]) % (high[0] - low[0]), states[:, 1]], 1)
        place = np.clip((states - low) / (high - low), 0, 1) * steps
        below = np.minimum(place.astype(int), steps - 1)
        over = place - below
        index, weight = [], []
        for i in (0, 1):
            for j in (0, 1):
                index.append((below[:, 0] + i) * self.sizes[1] + below[:, 1] + j)
                weight.append(np.abs(1 - i - over[:, 0]) * np.abs(1 - j - over[:, 1]))
        return np.stack(index, 1), np.stack(weight, 1)

    def between(self, values: Floats, states: Floats) -> Floats:
        """``values (points, …)`` at the states ``(…, 2)``."""
        index, weight = self.corners(states.reshape(-1, 2))
        found = np.einsum("nc,nc...->n...", weight, values[index])
        return found.reshape(*states.shape[:-1], *values.shape[1:])


class Planner:
    """Value iteration with known dynamics: ``step`` is asked once for every point and action."""

    def __init__(self, grid: Grid, actions: Sequence[float], step: Step, discount: float) -> None:
        self.grid, self.discount = grid, discount
        found = [[step(point, float(action)) for point in grid.points] for action in actions]
        self.next = np.array([[state for state, _ in row] for row in found])  # (actions, points, 2)
        self.goes_on = ~np.array([[end for _, end in row] for row in found])
        around = [grid.corners(states) for states in self.next]
        self._index, self._weight = (np.stack(part) for part in zip(*around, strict=True))

    def plan(self, reward: Floats, sweeps: int = 300) -> Floats:
        """Q ``(points, actions)`` for rewards ``(actions, points)``: Q = r + γ·V(next), V = max Q (Bellman 1957)."""
        q = reward
        for _ in range(sweeps):
            value = q.max(0)
            q = reward + self.discount * self.goes_on * (value[self._index] * self._weight).sum(-1)
        return q.T

    def best(self, q: Floats, states: Floats) -> NDArray[np.int64]:
        """The place of the best action in each of the states ``(n, 2)``."""
        return np.asarray(self.grid.between(q, states).argmax(-1))
