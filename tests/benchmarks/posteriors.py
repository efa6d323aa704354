"""Posteriors against reference draws: one recipe for all of them, a mean-field Gaussian beside it.

    python -m tests.benchmarks.posteriors --data DIR [--only NAME ...] [--seed 0] [--max-time 1h]

DIR holds ``data/NAME.json`` and ``draws/NAME.npz`` (``draws[chain, draw, parameter]`` with ``names``), from posteriordb
(Magnusson et al. 2024). The targets are ``posteriors/*.py``; the flow and the training are those of the shipped recipe
``posterior``, for all. Each is fitted by ``flowcli fit`` on one thread: ``s`` and ``CPU s`` are what that took, with
start-up. The figures are those of ``flowcli evaluate``, the draws those of ``flowcli sample --resample``, 10,000.
Errors are the largest over all parameters: of means in reference standard deviations, of standard deviations relative
to these. The mean-field Gaussian (independent in the unconstrained space, the same path derivatives) is weighted and
resampled in the same way. Prints the table and writes ``results/posteriors.json``. Needs the ``vi`` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from flowcli import recipe as recipes
from flowcli.flows.base import Gaussian
from flowcli.flows.flow import Flow
from flowcli.flows.linear import ActNorm
from flowcli.variational.ascent import Ascent, Plan
from flowcli.variational.evaluate import evaluate
from flowcli.variational.posterior import Posterior, seeded
from flowcli.variational.start import whitening
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import evenly, importance_draws, plain_draws, smoothed
from tests.benchmarks.machine import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "posteriors.json"
DRAWS = 10_000
SCHOOLS = "eight_schools-eight_schools_noncentered"
REFERENCES = {  # target → its data and the reference draws
    "eight_schools_noncentered": ("eight_schools", SCHOOLS),
    "eight_schools_centered": ("eight_schools", SCHOOLS),
    "arK": ("arK", "arK-arK"),
    "garch11": ("garch", "garch-garch11"),
    "gp_regr": ("gp_pois_regr", "gp_pois_regr-gp_regr"),
    "kidscore_interaction": ("kidiq", "kidiq-kidscore_interaction"),
    "kilpisjarvi": ("kilpisjarvi_mod", "kilpisjarvi_mod-kilpisjarvi"),
    "logearn_interaction": ("earnings", "earnings-logearn_interaction"),
    "low_dim_gauss_mix": ("low_dim_gauss_mix", "low_dim_gauss_mix-low_dim_gauss_mix"),
    "blr": ("sblri", "sblri-blr"),
}
MEAN_FIELD = Plan(draws=256, lr=0.05, clip=5.0, patience=5, epochs=60, forward=0.0)


def recipe_of(target: str, data: Path) -> dict[str, Any]:
    """The shipped recipe with another target."""
    shipped = yaml.safe_load(recipes.shipped.path("posterior").read_text())
    file = HERE / "posteriors" / f"{target}.py"
    named = {"file": str(file), "data": str((data / "data" / f"{REFERENCES[target][0]}.json").absolute())}
    return shipped | {"target": named, "parameters": runpy.run_path(str(file))["PARAMETERS"]}


def errors(target: str, drawn: Mapping[str, NDArray[np.float64]], data: Path) -> dict[str, float]:
    """The largest errors of mean and standard deviation over what the reference draws hold."""
    module = runpy.run_path(str(HERE / "posteriors" / f"{target}.py"))
    values = {name: torch.tensor(drawn[name]) for name in module["PARAMETERS"]}
    found = module.get("reported", dict)(values)
    ours = np.column_stack([value.reshape(len(value), -1).numpy() for value in found.values()])
    with np.load(data / "draws" / f"{REFERENCES[target][1]}.npz") as file:
        theirs = file["draws"].reshape(-1, file["draws"].shape[-1])
    spread = theirs.std(0)
    return {
        "mean": float(np.abs((ours.mean(0) - theirs.mean(0)) / spread).max()),
        "sd": float(np.abs(ours.std(0) / spread - 1).max()),
    }


def by_name(frame: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """A frame's columns ``theta[0]``, ``theta[1]`` … as one array ``(n, …)`` for each parameter."""
    names: dict[str, list[str]] = {}
    for column in frame.columns:
        names.setdefault(column.partition("[")[0], []).append(column)
    return {name: frame[of if of != [name] else name].to_numpy() for name, of in names.items()}


def fitted(
    target: str, data: Path, seed: int, max_time: str | None, folder: Path
) -> tuple[Posterior, dict[str, float]]:
    """Fit on the command line; the posterior, and what that took."""
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe_of(target, data)))
    command = [sys.executable, "-m", "flowcli", "fit", "r.yaml", "-o", "run", "--allow-code", "--seed", str(seed), "-q"]
    command += ["--max-time", max_time] if max_time else []
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=alone)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Posterior.load(folder / "run"), {"seconds": time.monotonic() - began, "cpu_seconds": cpu}


def measured(target: str, posterior: Posterior, density: LogDensity, data: Path, seed: int) -> dict[str, Any]:
    """What ``evaluate`` says, and the errors of what ``sample`` gives, with ``--resample`` and without."""
    resampled = posterior.resampled(density, DRAWS, seed)[0].to_pandas()
    plain = pa.Table.from_batches(posterior.sample_batches(DRAWS, seed)).to_pandas()
    found = {"resampled": errors(target, by_name(resampled), data), "plain": errors(target, by_name(plain), data)}
    return found | asdict(evaluate(posterior, density, seed=seed))


def mean_field(target: str, posterior: Posterior, density: LogDensity, data: Path, seed: int) -> dict[str, Any]:
    """The same for independent Gaussians, which begin where the flow began."""
    first, d = next(iter(posterior.flow.bijection)), density.space.features
    origin = first.inverse(torch.zeros(1, d, dtype=torch.float64))[0]
    factor = (first.inverse(torch.eye(d, dtype=torch.float64))[0] - origin).T
    layers = [whitening(origin[0], torch.diag((factor @ factor.T).diagonal().sqrt())), ActNorm(d)]
    flow = Flow(layers, Gaussian(d)).double()
    Ascent(flow, density, MEAN_FIELD, seeded(seed, 0)).run()
    own = plain_draws(flow, density, DRAWS, seeded(seed, 1))
    spread = importance_draws(flow, density, 4 * DRAWS, seeded(seed, 2))
    log_weights, shape = smoothed(spread.log_weights)
    picked = spread.u[torch.from_numpy(evenly(log_weights, DRAWS, np.random.default_rng(seed)))]
    finite = own.log_weights[own.log_weights > -torch.inf]
    return {
        "elbo": float(finite.mean()),
        "k_hat": shape,
        "plain": errors(target, _constrained(density, own.u), data),
        "resampled": errors(target, _constrained(density, picked), data),
    }


def _constrained(density: LogDensity, u: Tensor) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().numpy() for name, value in density.space.constrain(u)[0].items()}


def good(found: Mapping[str, Any]) -> bool:
    """Means within 0.1, standard deviations within 10 %, k-hat below 0.7."""
    return bool(found["resampled"]["mean"] < 0.1 and found["resampled"]["sd"] < 0.1 and found["k_hat"] < 0.7)


def _line(target: str, ours: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """A row of the table."""
    cells = [target, f"{ours['seconds']:.0f}", f"{ours['cpu_seconds']:.0f}", f"{ours['elbo']:.3f}"]
    cells += [f"{ours['evidence']:.3f}", f"{ours['k_hat']:.2f}", f"{ours['effective_sample_size']:,.0f}"]
    cells += [f"{ours['resampled']['mean']:.3f}", f"{ours['resampled']['sd']:.3f}"]
    cells += [f"{plain['elbo']:.3f}", f"{plain['k_hat']:.2f}"]
    cells += [f"{plain['resampled']['mean']:.3f}", f"{plain['resampled']['sd']:.3f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(REFERENCES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-time", help="for a busy machine, in place of the recipe's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = {}
    print(
        "| | s | CPU s | ELBO | evidence | k-hat | ESS of 20,000 | mean | sd | mean-field: ELBO | k-hat | mean | sd |"
    )
    print("| --- |" + " ---: |" * 12)
    for target in options.only:
        with tempfile.TemporaryDirectory() as folder:
            posterior, took = fitted(target, options.data, options.seed, options.max_time, Path(folder))
        assert posterior.recipe.target is not None
        density = LogDensity.load(posterior.recipe.target, posterior.space, allow_code=True)
        ours = took | measured(target, posterior, density, options.data, options.seed)
        plain = mean_field(target, posterior, density, options.data, options.seed)
        rows[target] = {"flow": ours, "mean_field": plain, "good": good(ours), "mean_field_good": good(plain)}
        print(_line(target, ours, plain), flush=True)
        table = {"machine": machine(), "seed": options.seed, "posteriors": rows}
        options.results.write_text(json.dumps(table, indent=2) + "\n")
    print(
        f"{sum(row['good'] for row in rows.values())} of {len(rows)} within the bounds; mean-field "
        f"{sum(row['mean_field_good'] for row in rows.values())}"
    )


if __name__ == "__main__":
    main()
