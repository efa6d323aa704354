"""The pictures of a report, drawn once: inlined as SVG whose colours follow the page's, or written as PNG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from flowcli.report.columns import FEW, OTHERS, Column, Pair
from flowcli.scoring.score import threshold
from flowcli.training.progress import Evaluation

Floats = NDArray[np.float64]

# The colours of print, and the names under which the page has its own for each of them.
INK, MUTED, GRID, DATA, DRAWN, ALARM = "#1f2328", "#66707a", "#d9dee3", "#2f6fb0", "#d2660a", "#b3261e"
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", DATA: "data", DRAWN: "drawn", ALARM: "alarm"}
STYLE: dict[Any, Any] = {
    "font.size": 8.5, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "legend.fontsize": 8, "axes.titlesize": 9,
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "flowcli", "figure.facecolor": "none",
    "axes.facecolor": "none", "savefig.facecolor": "none", "font.family": "DejaVu Sans", "axes.titlelocation": "left",
}  # fmt: skip
SIZE = (3.5, 2.3)  # inches
BINS = 30
DOTS = 500  # of a pair, at most
ALPHAS = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class Picture:
    """A drawing with a file name and what it says to whoever cannot see it."""

    name: str
    alt: str
    svg: str
    png: bytes


def picture(
    name: str, alt: str, draw: Callable[[Figure], None], size: tuple[float, float] = SIZE, png: bool = False
) -> Picture:
    """Draw once, as SVG and, if asked for, as PNG; ``size`` in inches."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a browser has the fonts that Matplotlib has not
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        raster = io.BytesIO()
        if png:
            figure.savefig(raster, format="png", dpi=160, facecolor="white")
    return Picture(name, alt, _inlined(stream.getvalue()), raster.getvalue())


def _inlined(svg: str) -> str:
    """An SVG for the middle of a page: no prologue, no size of its own, the page's colours, and no names of groups,
    which would be there many times."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    return re.sub(r"<[^!>][^>]*>", _tag, svg)


def _tag(match: re.Match[str]) -> str:
    """A tag with the page's colours and fonts, and numbers as fine as a screen: hundredths of a point."""
    tag = re.sub(r"(\d\.\d{2})\d+", r"\1", match[0]).replace("'DejaVu Sans'", "sans-serif")
    for color, name in NAMES.items():
        tag = tag.replace(color, f"var(--{name})")
    return tag


def curves(evaluations: Sequence[Evaluation], png: bool = False) -> Picture:
    """Log-likelihood of training and held-out rows after each epoch."""
    epochs = [e.epoch for e in evaluations]
    train, held_out = ([getattr(e, f"{which}_log_prob") for e in evaluations] for which in ("train", "held_out"))
    best = evaluations[-1].best_epoch

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(epochs, train, color=MUTED, lw=1.1, ls="--", label="training rows")
        ax.plot(epochs, held_out, color=DATA, lw=1.5, label="held-out rows")
        ax.axvline(best, color=DRAWN, lw=1, label=f"kept: epoch {best}")
        # The first epochs of a fit that began far off, or the last of one that fell, must not flatten the rest.
        shown = np.array([v for v in (*train, *held_out) if math.isfinite(v)])
        if len(shown) > 3:
            low, high = np.quantile(shown, 0.1), shown.max()
            room = high - low or 1.0
            ax.set_ylim(max(shown.min(), low - 1.5 * room) - 0.02 * room, high + 0.05 * room)
        ax.set_xlabel("epoch")
        ax.set_ylabel("log-likelihood, nats a row")
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.6)

    alt = f"Log-likelihood by epoch: held-out rows end at {held_out[-1]:.4g}, training rows at {train[-1]:.4g}."
    return picture("training", alt, draw, (4.2, 2.5), png)


def column(found: Column, png: bool = False) -> Picture:
    """The distribution of a column in the data and of drawn rows."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        _marginal(ax, found)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)

    alt = f"{found.name}: data and drawn values, a distance of {found.distance:.2f} apart."
    return picture(f"column {found.name}", alt, draw, (3.2, 1.7), png)


def _marginal(ax: Axes, found: Column) -> None:
    if found.numeric and found.different > FEW:
        edges, log = _edges(found)
        for values, side in ((found.data, "data"), (found.drawn, "drawn")):
            stairs(ax, values, edges, side)
        if log:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        elif found.time:
            _time_axis(ax)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(5))
        return
    names, ours, theirs = _bars(found)
    place = np.arange(len(names))
    ax.bar(place - 0.2, ours, 0.4, color=DATA, alpha=0.5, lw=0)
    ax.bar(place + 0.2, theirs, 0.4, color=DRAWN, alpha=0.9, lw=0)
    step = math.ceil(len(names) / 8) if all(len(n) <= 4 for n in names) else math.ceil(len(names) / 5)
    ax.set_xticks(place[::step], [short(n, 9) for n in names[::step]])
    if max(map(len, names)) > 4 and len(names) > 3:
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")


def stairs(ax: Axes, values: Floats, edges: Floats, side: str, way: Any = "vertical") -> None:
    """A histogram: data as a surface, drawn values as a line."""
    heights = np.histogram(values, edges)[0] / max(1, len(values))
    style: dict[str, Any] = {"color": DRAWN, "lw": 1.3}
    if side == "data":
        style = {"color": DATA, "lw": 0, "fill": True, "alpha": 0.35}
    ax.stairs(heights, edges, orientation=way, **style)


def _edges(found: Column) -> tuple[Floats, bool]:
    """Bins over the central 99 % of both sides, and whether they widen with the numbers."""
    both = [np.quantile(values, [0.005, 0.995]) for values in (found.data, found.drawn)]
    low, high = both[0][0], both[0][1]
    width = high - low or abs(low) or 1.0
    low, high = max(min(low, both[1][0]), low - width / 2), min(max(high, both[1][1]), high + width / 2)
    if found.transform == "log" and low > 0 and high > 20 * low:
        return np.geomspace(low, high, BINS + 1), True
    return np.linspace(low, high if high > low else low + width, BINS + 1), False


def _time_axis(ax: Axes) -> None:
    low, high = ax.get_xlim()
    unit = "D" if high - low > 5 * 86400 else "m"
    places = np.linspace(low, high, 5)[1:4]
    names = [str(np.datetime64(int(place), "s").astype(f"datetime64[{unit}]")).replace("T", " ") for place in places]
    ax.set_xticks(places, [name[5:] if unit == "m" else name for name in names])


def _bars(found: Column) -> tuple[list[str], Floats, Floats]:
    """Names of at most 24 values and their shares on both sides; the rest together."""
    values, counts = np.unique(found.data, return_counts=True)
    if len(values) > FEW:
        values = np.sort(values[np.argsort(-counts, kind="stable")][: FEW - 1])
    shares = [np.array([(side == value).mean() for value in values]) for side in (found.data, found.drawn)]
    names = [f"{value:.6g}" if found.numeric else str(value) for value in values]
    if found.time:
        names = [str(np.datetime64(int(value), "s")).replace("T00:00:00", "") for value in values]
    rest = [max(0.0, 1 - float(share.sum())) for share in shares]
    if max(rest) > 1e-9:
        names, shares = [*names, OTHERS], [np.append(share, r) for share, r in zip(shares, rest, strict=True)]
    return names, shares[0], shares[1]


def pair(found: Pair, png: bool = False) -> Picture:
    """A small corner plot: both columns by themselves, and together."""
    both = (found.x, found.y)

    def draw(figure: Figure) -> None:
        (above, empty), (joint, beside) = figure.subplots(2, 2, width_ratios=(2, 1), height_ratios=(1, 2))
        empty.axis("off")
        edges = [_joint_edges(part) for part in both]
        joint.set_xlim(edges[0][0], edges[0][-1])
        joint.set_ylim(edges[1][0], edges[1][-1])
        above.sharex(joint)
        beside.sharey(joint)
        for side, color in (("data", DATA), ("drawn", DRAWN)):
            x, y = (_places(part, side) for part in both)
            there = np.flatnonzero(~np.isnan(x) & ~np.isnan(y))
            there = there[np.linspace(0, len(there) - 1, min(DOTS, len(there))).astype(int)]
            dots(joint, x[there], y[there], color)
            stairs(above, x, edges[0], side)
            stairs(beside, y, edges[1], side, "horizontal")
        above.set_axis_off()
        beside.set_axis_off()
        _name(joint.xaxis, found.x)
        _name(joint.yaxis, found.y)
        joint.set_xlabel(short(found.x.name, 26))
        joint.set_ylabel(short(found.y.name, 20))

    alt = f"{found.x.name} and {found.y.name} together, in data and drawn rows."
    return picture(f"pair {found.x.name} {found.y.name}", alt, draw, (3.2, 2.8), png)


def _name(axis: Axis, part: Column) -> None:
    levels = [] if part.numeric else _levels(part)
    if levels:
        step = math.ceil(len(levels) / 5)
        axis.set_ticks(range(0, len(levels), step), [short(level, 8) for level in levels[::step]])
    elif part.time:
        axis.set_ticks([])
    else:
        axis.set_major_locator(MaxNLocator(4))


def _levels(found: Column) -> list[str]:
    """The commonest levels of the data."""
    levels, counts = np.unique(found.data, return_counts=True)
    return [str(level) for level in levels[np.argsort(-counts, kind="stable")][:FEW]]


def _places(found: Column, side: str) -> Floats:
    """A column's rows as numbers: levels by their place among the commonest, and a little beside it."""
    values = found.data_rows if side == "data" else found.drawn_rows
    if found.numeric:
        return np.asarray(values, np.float64)
    place = {level: i for i, level in enumerate(_levels(found))}
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
    return np.array([place.get(value, math.nan) for value in values]) + spread


def _joint_edges(found: Column) -> Floats:
    if found.numeric:
        edges, _ = _edges(found)
        return np.linspace(edges[0], edges[-1], BINS + 1)
    return np.arange(len(_levels(found)) + 1, dtype=np.float64) - 0.5


def dots(ax: Axes, x: Floats, y: Floats, color: str) -> None:
    """Dots as one path of very short lines with round ends, which takes a tenth of the room of markers."""
    low, high = ax.get_xlim()
    points = np.stack([x, y, x + 1e-4 * (high - low), y], 1).reshape(-1, 2)
    path = Path(points, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    ax.add_patch(PathPatch(path, fill=False, edgecolor=color, lw=2, alpha=0.5, capstyle="round", snap=False))


def uniform(values: Floats, others: int, name: str, label: str, png: bool = False) -> Picture:
    """A histogram of ranks among so many ``others``, which should be uniform on (0, 1), with the band in which 95 % of
    its bars would be."""
    bins = int(np.clip(min(len(values), others) // 10, 4, 20))

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        counts, edges = np.histogram(values, bins, (0, 1))
        ax.stairs(counts / len(values) * bins, edges, fill=True, color=DATA, alpha=0.5, lw=0)
        spread = 1.96 * math.sqrt((bins - 1) * (1 / len(values) + 1 / others))
        ax.axhspan(max(0, 1 - spread), 1 + spread, color=DRAWN, alpha=0.18, lw=0)
        ax.axhline(1, color=DRAWN, lw=1)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, None)
        ax.set_xlabel(label)
        ax.set_ylabel("density")

    return picture(name, f"Histogram of {label}; flat if all is well.", draw, SIZE, png)


def scores(held_out: Floats, named: Floats, name: str, png: bool = False) -> Picture:
    """Scores of held-out rows, and of others if there are any, with the thresholds of 0.1, 1 and 5 %."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        finite = named[np.isfinite(named)]
        both = np.concatenate([held_out, finite])
        low, high = np.quantile(both, [0.0, 0.995])
        levels = [(alpha, limit) for alpha in ALPHAS if math.isfinite(limit := threshold(held_out, alpha))]
        high = max([high, *(limit for _, limit in levels)])
        edges = np.linspace(low, high + 0.05 * (high - low or 1.0), 41)
        ax.stairs(np.histogram(held_out, edges)[0] / len(held_out), edges, fill=True, color=DATA, alpha=0.45, lw=0,
                  label="held-out rows")  # fmt: skip
        if len(finite):
            ax.stairs(np.histogram(finite, edges)[0] / len(named), edges, color=DRAWN, lw=1.3, label=short(name, 24))
        for (alpha, limit), style in zip(reversed(levels), (":", "--", "-"), strict=False):
            ax.axvline(limit, color=ALARM, lw=1.1, ls=style, label=f"α = {alpha:.1%}".replace(".0%", "%"))
        ax.set_xlabel("score (higher is odder)")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.4)

    return picture("scores", "Histogram of scores with thresholds.", draw, (4.2, 2.5), png)


def short(text: str, most: int) -> str:
    """At most so many characters, none that prints nothing."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"
