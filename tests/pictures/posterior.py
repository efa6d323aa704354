"""Draws ``posterior.png``: eight schools by the shipped recipe ``posterior``, against reference draws.

    python tests/pictures/posterior.py RUN REFERENCE.npz

RUN is what ``flowcli fit posterior --allow-code -o RUN`` left; REFERENCE holds ``draws[chain, draw, parameter]`` with
``names``, from posteriordb. Needs the ``report`` and ``vi`` extras. Runs the recipe's code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from flowcli.variational import Posterior
from flowcli.variational.target import LogDensity

SHOWN = {"mu": "mu", "tau": "tau", "theta[0]": "theta[1]", "theta[7]": "theta[8]"}  # ours → theirs, which count from 1
RANGES = {"mu": (-8, 17), "tau": (0, 16), "theta[0]": (-12, 32), "theta[7]": (-14, 24)}
LEVELS = (0.9, 0.5)  # shares of the draws within a contour
OURS, THEIRS = "#d1495b", "#30638e"


def contours(axis: plt.Axes, x: NDArray[np.float64], y: NDArray[np.float64], box: list[tuple[int, int]]) -> None:
    """The reference draws as filled contours: the smallest regions that hold such shares of them."""
    counts, edges_x, edges_y = np.histogram2d(x, y, bins=40, range=box)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    for side in range(2):
        counts = np.apply_along_axis(np.convolve, side, counts, kernel / kernel.sum(), mode="same")
    falling = np.sort(counts.ravel())[::-1]
    heights = [falling[np.searchsorted(falling.cumsum() / falling.sum(), level)] for level in LEVELS]
    middles = (edges_x[1:] + edges_x[:-1]) / 2, (edges_y[1:] + edges_y[:-1]) / 2
    axis.contourf(*middles, counts.T, levels=[*heights, counts.max()], colors=[THEIRS], alpha=0.25)
    axis.contour(*middles, counts.T, levels=heights, colors=[THEIRS], linewidths=1.2)


def main(run: str, reference: str) -> None:
    posterior = Posterior.load(run)
    assert posterior.recipe.target is not None
    density = LogDensity.load(posterior.recipe.target, posterior.space, allow_code=True)
    drawn = posterior.resampled(density, 10_000)[0].to_pandas()
    for i in range(8):
        drawn[f"theta[{i}]"] = drawn["mu"] + drawn["tau"] * drawn[f"z[{i}]"]
    with np.load(reference) as file:
        theirs = dict(zip(file["names"], file["draws"].reshape(-1, file["draws"].shape[-1]).T, strict=True))
    names = list(SHOWN)
    figure, axes = plt.subplots(len(names), len(names), figsize=(8, 8))
    for row, below in enumerate(names):
        for column, left in enumerate(names):
            axis = axes[row, column]
            if column > row:
                axis.axis("off")
                continue
            axis.set_xlim(RANGES[left])
            axis.tick_params(labelsize=8, labelbottom=row == len(names) - 1, labelleft=column == 0 < row)
            if row == column:
                bins = np.linspace(*RANGES[left], 41)
                axis.hist(theirs[SHOWN[left]], bins, density=True, color=THEIRS, alpha=0.35)
                axis.hist(drawn[left], bins, density=True, histtype="step", color=OURS, linewidth=1.5)
                axis.set_yticks([])
                axis.set_title(left, fontsize=10)
                continue
            axis.set_ylim(RANGES[below])
            contours(axis, theirs[SHOWN[left]], theirs[SHOWN[below]], [RANGES[left], RANGES[below]])
            axis.plot(drawn[left][:1500], drawn[below][:1500], ".", color=OURS, markersize=1.5, alpha=0.5)
    legend = [Line2D([], [], color=THEIRS, linewidth=6, alpha=0.35), Line2D([], [], color=OURS, linewidth=1.5)]
    figure.legend(legend, ["reference draws (NUTS)", "the flow, resampled"], loc="upper right", fontsize=11)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
