"""The pictures of a posterior: how its ELBO rose, and its numbers by themselves and in pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowcli.report.pictures import BINS, DATA, DRAWN, MUTED, Floats, Picture, dots, picture, short, stairs
from flowcli.variational.ascent import Evaluation

DOTS = 300  # in a panel, of each kind
RISE = 20.0  # times what the later epochs span: what of the first ones is shown


def trace(evaluations: Sequence[Evaluation], png: bool = False) -> Picture:
    """The ELBO of each epoch, in a band of two standard errors; lines where the learning rate fell."""
    epochs = np.array([e.epoch for e in evaluations])
    elbo, error = (np.array([getattr(e, name) for e in evaluations]) for name in ("elbo", "elbo_error"))
    fell = [after.epoch for before, after in itertools.pairwise(evaluations) if after.lr < before.lr]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.fill_between(epochs, elbo - 2 * error, elbo + 2 * error, color=DATA, alpha=0.25, lw=0)
        ax.plot(epochs, elbo, color=DATA, lw=1.5, marker=".", ms=4, label="ELBO ± 2 standard errors")
        for i, epoch in enumerate(fell):
            ax.axvline(epoch, color=MUTED, lw=0.8, ls=":", label=None if i else "the learning rate fell")
        there = (elbo - 2 * error)[np.isfinite(elbo)], (elbo + 2 * error)[np.isfinite(elbo)]
        if len(there[0]):
            high, later = (
                there[1].max(),
                there[0][len(there[0]) // 3 :].min(),
            )  # a first epoch far off flattens the rest
            low = max(there[0].min(), high - RISE * (high - later or 1.0))
            ax.set_ylim(low, high + 0.05 * (high - low or 1.0))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlabel("epoch")
        ax.set_ylabel("ELBO, nats")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1, handlelength=1.6)

    return picture("elbo", f"The ELBO by epoch: it ends at {elbo[-1]:.4g} nats.", draw, (4.2, 2.5), png)


def corner(flow: Mapping[str, Floats], resampled: Mapping[str, Floats] | None, png: bool = False) -> Picture:
    """Each number's distribution on the diagonal, each pair below it: the flow's draws, and, if there are any, those
    resampled by their weights."""
    names, edges = list(flow), {}
    for name in names:
        low, high = np.quantile(flow[name], [0.005, 0.995])
        edges[name] = np.linspace(low, high if high > low else low + (abs(low) or 1.0), BINS + 1)
    kinds = [("data", DATA, resampled)] if resampled else []
    kinds += [("drawn", DRAWN, flow)]

    def draw(figure: Figure) -> None:
        d = len(names)
        panels = figure.subplots(d, d, squeeze=False)
        for row, below in enumerate(names):
            for column, beside in enumerate(names):
                ax = panels[row, column]
                if column > row:
                    ax.set_axis_off()
                    continue
                ax.set_xlim(edges[beside][0], edges[beside][-1])
                if column < row:
                    ax.set_ylim(edges[below][0], edges[below][-1])
                for side, color, values in kinds:
                    if column == row:
                        stairs(ax, values[below], edges[below], side)
                    else:
                        dots(ax, values[beside][:DOTS], values[below][:DOTS], color)
                ax.xaxis.set_major_locator(MaxNLocator(2))
                ax.yaxis.set_major_locator(MaxNLocator(2))
                ax.spines["left"].set_visible(column < row)
                ax.tick_params(labelbottom=row == d - 1, labelleft=column == 0 and row > 0, left=column < row)
                if row == d - 1:
                    ax.set_xlabel(short(beside, 12))
                if column == 0 and row:
                    ax.set_ylabel(short(below, 12))
        figure.align_labels()

    side = min(4.6, 1.4 + 0.8 * len(names))
    alt = f"{', '.join(names)}: each by itself and in pairs, {math.comb(len(names), 2)} of them."
    return picture("corner", alt, draw, (side, side), png)
