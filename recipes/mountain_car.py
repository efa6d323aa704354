"""Mountain Car explored by a density of visited states: the second example in policies.md.

    python recipes/mountain_car.py [--episodes 40] [--seed 0]

Prints how many of 40 × 40 cells of the state space were visited, and how often the goal, which alone is rewarded, was
reached: by random actions and by plans for the bonus. Needs gymnasium.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import gymnasium
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import flowcli

if __package__:
    from recipes.planner import Grid, Planner
else:
    from planner import Grid, Planner

Floats = NDArray[np.float64]
Bonus = Callable[[Floats, Floats, int], Floats]  # visited states, states, a seed → a reward for each of the latter

LOW, HIGH = (-1.2, -0.07), (0.6, 0.07)  # position and speed
STATE = ["position", "speed"]
CELLS = 40  # along each side
EVERY = 5  # episodes between plans


def surprise(visited: Floats, states: Floats, seed: int) -> Floats:
    """−log p(state) by the shipped recipe ``state-density``: the gradient of the visited states' entropy (Hazan et al.
    2019), and large where a count would be small (Bellemare et al. 2016)."""
    model = flowcli.fit("state-density", pd.DataFrame(visited, columns=STATE), overrides=[f"train.seed={seed}"])
    return model.score(pd.DataFrame(states, columns=STATE))["score"].to_numpy()


def whims(visited: Floats, states: Floats, seed: int) -> Floats:
    """Rewards by chance, new ones each time: what plans do without a density."""
    return np.random.default_rng([seed, len(visited)]).standard_normal(len(states))


def make_planner() -> Planner:
    """Plans with the known dynamics: gymnasium's own step from each of 61 × 41 states."""
    environment = gymnasium.make("MountainCar-v0").unwrapped
    environment.reset(seed=0)

    def step(state: Floats, action: float) -> tuple[Floats, bool]:
        environment.state = tuple(state)
        _, _, ends, *_ = environment.step(int(action))
        return np.array(environment.state), ends

    return Planner(Grid(LOW, HIGH, (61, 41)), range(3), step, discount=0.99)


def explore(bonus: Bonus | None, episodes: int, seed: int) -> tuple[list[int], int]:
    """Visited cells after each episode, and how often the goal was reached.

    Every ``EVERY`` episodes the bonus is learned from all visited states and planned for; before that, and without a
    bonus, actions are uniformly random.
    """
    rng, environment, planner = np.random.default_rng(seed), gymnasium.make("MountainCar-v0"), make_planner()
    visited: list[Floats] = []
    counts, goals, q = [], 0, None
    for episode in range(episodes):
        if bonus and episode and episode % EVERY == 0:
            value = bonus(np.array(visited, np.float64), planner.grid.points, seed)
            q = planner.plan(planner.grid.between(value, planner.next))
        state, _ = environment.reset(seed=int(rng.integers(2**31)))
        visited.append(state)
        ended = False
        while not ended:
            action = rng.integers(3) if q is None else planner.best(q, state[None].astype(np.float64))[0]
            state, _, goal, cut, _ = environment.step(int(action))
            visited.append(state)
            goals, ended = goals + goal, goal or cut
        counts.append(cells(np.array(visited)))
    return counts, goals


def cells(states: Floats) -> int:
    """How many of the ``CELLS``² cells have one of the states in them."""
    place = (states - np.array(LOW)) / (np.array(HIGH) - np.array(LOW)) * CELLS
    return len(np.unique(place.astype(int).clip(0, CELLS - 1), axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, bonus in (("random actions", None), ("state density", surprise)):
        counts, goals = explore(bonus, options.episodes, options.seed)
        print(f"{name:15} {counts[-1]:4} cells, the goal {goals} times")


if __name__ == "__main__":
    main()
