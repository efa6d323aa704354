"""Draws ``policies.png``: the densities of a torque at three states, of a flow and a Gaussian cloned from two experts.

    python -m tests.pictures.policies

Fits both to 400 episodes of the experts of ``recipes/pendulum.py``, half a minute on one core. Needs the ``report`` and
``test`` extras.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from recipes.pendulum import GAUSSIAN, HOLD, STATE, clone, one_sided, play

STATES = {  # angle from the top, in rad, and speed in rad/s
    "hanging, at rest": (np.pi, 0.0),
    "hanging, swinging fast": (np.pi, 5.0),
    "on top, falling": (0.3, 0.5),
}
FLOW, PLAIN, EXPERT = "#d1495b", "#30638e", "#555555"


def main() -> None:
    experts = one_sided()
    logs = pd.concat([play(expert, 200, 0, HOLD)[1] for expert in experts], ignore_index=True)
    models = {"flow": clone(logs), "Gaussian policy": clone(logs, GAUSSIAN)}
    torques = np.linspace(-1.995, 1.995, 800)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8))
    for axis, (title, (angle, speed)) in zip(axes, STATES.items(), strict=True):
        state = np.array([[np.cos(angle), np.sin(angle), speed]])
        rows = pd.DataFrame(state.repeat(len(torques), 0), columns=STATE).assign(torque=torques)
        for (name, model), colour in zip(models.items(), (FLOW, PLAIN), strict=True):
            density = np.exp(model.log_prob(rows))
            axis.plot(torques, density, color=colour, linewidth=1.5, label=name)
        for i, expert in enumerate(experts):
            axis.axvline(expert(state, 0)[0], color=EXPERT, linestyle=":", label=None if i else "the experts")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("torque, Nm", fontsize=9)
        axis.set_ylim(0, 4)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("density", fontsize=9)
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
