"""Pendulum by a policy cloned from logs: the first example in policies.md.

    python recipes/pendulum.py [--mixed]

Prints the mean return over 50 new episodes of the expert, of a flow cloned from its logs, and of a Gaussian policy with
the same networks. With ``--mixed`` there are two experts, of which one swings up on one side only and the other on the
other, and a torque is held for 0.4 s. Needs gymnasium.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

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
Policy = Callable[[Floats, int], Floats]  # observations (n, 3), step → torques (n,)

STATE = ["cos", "sin", "speed"]
SETTINGS = [
    f"data.given=[{', '.join(STATE)}]",
    "data.columns={torque: {type: real, transform: logit, low: -2, high: 2, atoms: []}}",
]
GAUSSIAN = ["flow.transform=affine"]  # an affine map of a Gaussian by the same networks
INSIDE = 1.99  # the logit is infinite at 2
STEPS = 200  # of an episode
HOLD = 8  # steps for which the mixed experts hold a torque: 0.4 s
JITTER = 0.05  # of an expert's torque


def clone(logs: pd.DataFrame, settings: Sequence[str] = (), seed: int = 0) -> flowcli.Model:
    """The shipped recipe ``policy``, fitted to rows of a state and the torque that was chosen there."""
    logs = logs.assign(torque=logs["torque"].clip(-INSIDE, INSIDE))
    return flowcli.fit("policy", logs, overrides=[*SETTINGS, f"train.seed={seed}", *settings])


def acting(model: flowcli.Model) -> Policy:
    """One draw for each observation; the step is the seed."""

    def policy(observations: Floats, step: int) -> Floats:
        return model.sample(1, given=pd.DataFrame(observations, columns=STATE), seed=step)["torque"].to_numpy()

    return policy


def play(
    policy: Policy, episodes: int, seed: int = 0, hold: int = 1, starts: Floats | None = None
) -> tuple[Floats, pd.DataFrame]:
    """The returns ``(episodes,)`` of as many episodes side by side, and what was seen and done as logs.

    A torque is held for ``hold`` steps. ``starts (episodes, 2)`` are angles and speeds in place of random ones.
    """
    environments = gymnasium.make_vec("Pendulum-v1", num_envs=episodes, vectorization_mode="sync")
    observations, _ = environments.reset(seed=seed)
    if starts is not None:
        for environment, start in zip(environments.envs, starts, strict=True):
            environment.unwrapped.state = start
        observations = np.stack([np.cos(starts[:, 0]), np.sin(starts[:, 0]), starts[:, 1]], 1)
    returns, logs = np.zeros(episodes), []
    for step in range(STEPS):
        if step % hold == 0:
            seen = observations.astype(np.float64)
            torques = policy(seen, step)
            logs.append(pd.DataFrame(seen, columns=STATE).assign(torque=torques))
        observations, rewards, *_ = environments.step(torques[:, None].astype(np.float32))
        returns += rewards
    environments.close()
    return returns, pd.concat(logs, ignore_index=True)


def scripted(observations: Floats, step: int) -> Floats:
    """Pumps energy until there is enough to stand, and then holds the pendulum upright (Åström & Furuta 2000).

    The energy ω²/2 + 15·cos θ is 15 at rest on top (g = 10, l = m = 1: θ̈ = 15·sin θ + 3·torque).
    """
    cos, sin, speed = observations.T
    angle = np.arctan2(sin, cos)
    lacking = 15 - speed**2 / 2 - 15 * cos
    pumping = 2 * np.tanh(3 * speed) * np.clip(lacking, -1, 1)
    torque = np.where(np.abs(angle) < 0.6, -12 * angle - 3 * speed, pumping)
    return jittered(torque, step)


def jittered(torques: Floats, step: int) -> Floats:
    """Torques with a little noise, inside their bounds: a density on an exact function of the state has no end."""
    noise = JITTER * np.random.default_rng(step).standard_normal(len(torques))
    return np.clip(torques + noise, -INSIDE, INSIDE)


def one_sided() -> tuple[Policy, Policy]:
    """Two experts, who plan with the known dynamics; one may not come up by sin θ < −0.3, the other not by > 0.3."""
    environment = gymnasium.make("Pendulum-v1").unwrapped
    environment.reset(seed=0)

    def step(state: Floats, torque: float) -> tuple[Floats, bool]:
        environment.state = state
        for _ in range(HOLD):
            environment.step(np.array([torque]))
        return environment.state, False

    torques = np.linspace(-1.9, 1.9, 7)
    planner = Planner(Grid((-np.pi, -8), (np.pi, 8), (61, 51), wraps=True), torques, step, discount=0.97)
    angle, speed = (planner.next[..., 0] + np.pi) % (2 * np.pi) - np.pi, planner.next[..., 1]
    reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torques[:, None] ** 2)

    def expert(side: int) -> Policy:
        q = planner.plan(reward - 3 * (side * np.sin(angle) > 0.3))

        def policy(observations: Floats, step: int) -> Floats:
            states = np.stack([np.arctan2(observations[:, 1], observations[:, 0]), observations[:, 2]], 1)
            return jittered(torques[planner.best(q, states)], step)

        return policy

    return expert(1), expert(-1)


def compare(
    experts: Sequence[Policy],
    logged: int,
    episodes: int = 50,
    hold: int = 1,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Floats]:
    """Returns over the same new episodes of the experts (in turn), of a flow and of a Gaussian policy, both cloned from
    ``logged`` episodes of each expert."""
    logs = pd.concat([play(expert, logged, 1000 * seed, hold)[1] for expert in experts], ignore_index=True)
    fresh = 1000 * seed + 500_000
    played = np.stack([play(expert, episodes, fresh, hold)[0] for expert in experts])
    found = {"expert": played[np.arange(episodes) % len(experts), np.arange(episodes)]}
    for name, more in (("flow", []), ("gaussian", GAUSSIAN)):
        model = clone(logs, [*settings, *more], seed)
        found[name] = play(acting(model), episodes, fresh, hold)[0]
    return found


def main(mixed: bool) -> None:
    found = compare(one_sided(), 200, hold=HOLD) if mixed else compare([scripted], 50)
    for name, returns in found.items():
        print(f"{name:10} {returns.mean():7.1f} ± {returns.std(ddof=1) / len(returns) ** 0.5:.1f}")


if __name__ == "__main__":
    main("--mixed" in sys.argv[1:])
