"""What ``fit``, ``sample`` and ``evaluate`` do where a log-density takes the place of data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowcli.cli import console
from flowcli.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from flowcli.recipe import Recipe
    from flowcli.variational.posterior import Posterior
    from flowcli.variational.target import LogDensity

AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the code that a recipe with a target names.")]


def refuse(asked: Mapping[str, object]) -> None:
    """Raises UsageError for an option that has no meaning for a target."""
    for option, value in asked.items():
        if value:
            raise UsageError(f"{option}: is for data, and this is of a target.")


def fit_target(recipe: Recipe, run: Path, force: bool, allow_code: bool, dry_run: bool) -> None:
    """Fit a recipe with a target, and print the run folder's path."""
    from flowcli import recipe as recipes
    from flowcli.variational import fit
    from flowcli.variational.ascent import Stopped
    from flowcli.variational.fit import prepare

    if dry_run:
        resolved, _ = prepare(recipe, allow_code)
        console.result(recipes.dump(resolved).rstrip("\n"))
        return
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # for steps this small, threads that wait for one another take longer than one
    with console.Signals() as signals:
        try:
            posterior = fit(
                recipe, allow_code=allow_code, run=run, force=force, stopped=signals.seen,
                say=console.note if console.settings.progress else lambda _: None, warn=console.warn,
            )  # fmt: skip
        except Stopped:
            console.note("stopped; nothing was kept")
            sys.exit(128 + signals.number)
    about = posterior.about
    console.note(
        f"ELBO {about['elbo']:.4f} ± {about['elbo_error']:.4f} nats. Next: flowcli evaluate {run} --allow-code"
    )
    console.result(str(run))


def density_of(posterior: Posterior, allow_code: bool) -> LogDensity:
    """The target of a fitted posterior, from where its recipe says. Warns when it is not what it was at the fit."""
    from flowcli.variational.target import LogDensity, digest

    target = posterior.recipe.target
    assert target is not None
    density = LogDensity.load(target, posterior.space, allow_code)
    if digest(target) != posterior.digest:
        console.warn(f"{target.file}: its code or its data have changed since the fit")
    return density


def draws(
    posterior: Posterior, n: int, seed: int, temperature: float, how: str | None, allow_code: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Draws as they are, or with weights, or resampled by them: ``how`` is None, ``weights`` or ``resample``."""
    if how is None:
        return posterior.schema, posterior.sample_batches(n, seed, temperature)
    from flowcli.variational.evaluate import USABLE

    density = density_of(posterior, allow_code)
    table, shape = (posterior.weighted if how == "weights" else posterior.resampled)(density, n, seed)
    if not shape < USABLE:
        console.warn(f"k-hat is {shape:.2f}: from {USABLE} on, weights cannot be relied on")
    return table.schema, iter(table.to_batches())


def evaluate_target(posterior: Posterior, allow_code: bool, seed: int, json_: bool) -> None:
    """Print whether the posterior can be trusted."""
    import json
    import math
    from dataclasses import asdict

    from flowcli.variational import evaluate

    found = evaluate(posterior, density_of(posterior, allow_code), seed=seed)
    if json_:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
        console.result(json.dumps(values, indent=2))
        return
    for name, value in (
        ("draws", f"{found.draws:,}" + (f" ({found.finite:.2%} where the target is finite)" * (found.finite < 1))),
        ("ELBO", f"{found.elbo:.4f} ± {found.elbo_error:.4f} nats"),
        ("evidence", f"{found.evidence:.4f} ± {found.evidence_error:.4f} nats, by importance weights"),
        ("divergence", f"{found.divergence:.4f} nats from the flow to the posterior"),
        ("k-hat", f"{found.k_hat:.2f}"),
        ("effective sample size", f"{found.effective_sample_size:,.0f}"),
        ("trust", found.trust),
    ):
        console.result(f"{name:<21} {value}")
