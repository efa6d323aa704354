"""Draws ``conditional.png``: predictive bands by the shipped recipe ``conditional``, where the truth is known.

    python tests/pictures/conditional.py

Needs the ``report`` extra.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa

from flowcli.scoring import Predictor
from flowcli.training import fit

BANDS = ((0.025, 0.975), (0.1, 0.9), (0.25, 0.75))
OURS, DATA = "#30638e", "#444444"


def rows(n: int, seed: int) -> pd.DataFrame:
    """y is sin(2x) and noise that grows with x and leans to above: an exponential less its mean."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 4, n)
    return pd.DataFrame({"x": x, "y": np.sin(2 * x) + (0.1 + 0.2 * x) * (rng.exponential(1, n) - 1)})


def main() -> None:
    frame = rows(2000, 0)
    model = fit("conditional", frame, overrides=["data.given=[x]"])
    x = np.linspace(0, 4, 200)
    quantiles = [q for band in BANDS for q in band]
    found = Predictor(model, quantiles)(pa.table({"x": x})).to_pandas()
    scale = 0.1 + 0.2 * x
    figure, axis = plt.subplots(figsize=(8, 4))
    axis.plot(frame["x"], frame["y"], ".", color=DATA, markersize=2, alpha=0.35)
    for low, high in BANDS:
        axis.fill_between(x, found[f"q{low:g}"], found[f"q{high:g}"], color=OURS, alpha=0.25, linewidth=0)
    axis.plot(x, found["median"], color=OURS, label="predicted: median, 50 %, 80 % and 95 % intervals")
    for q in (0.025, 0.5, 0.975):
        truth = np.sin(2 * x) + scale * (-np.log1p(-q) - 1)
        axis.plot(
            x, truth, "--", color="black", linewidth=0.9, label="true 2.5 %, 50 % and 97.5 %" if q == 0.5 else None
        )
    axis.set(xlabel="x", ylabel="y", xlim=(0, 4), ylim=(-2.6, 5))
    axis.legend(loc="upper left", fontsize=9)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
