"""``fit`` for a target: a recipe → a Posterior, and a run folder if asked."""

from __future__ import annotations

import datetime
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from flowcli import recipe as recipes
from flowcli.errors import UsageError
from flowcli.model import MODEL_FILE
from flowcli.recipe import Recipe
from flowcli.training.prepare import as_recipe
from flowcli.training.run import Run, describe, versions
from flowcli.variational.ascent import Ascent, Evaluation, Plan
from flowcli.variational.evaluate import DRAWS
from flowcli.variational.posterior import Posterior, new_flow, seeded
from flowcli.variational.space import Space
from flowcli.variational.start import find, whitening
from flowcli.variational.target import LogDensity, digest
from flowcli.variational.weights import plain_draws

BATCH = 256  # draws a step, by `batch_size: auto`
LEARNED = 800  # steps of maximum likelihood, where there are several peaks


def fit(
    recipe: Recipe | Mapping[str, Any] | str,
    *,
    allow_code: bool = False,
    run: str | pathlib.Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Posterior:
    """Fit a recipe with a target. Its code is run only if ``allow_code``; ``run`` is a folder to write. ``say`` hears
    how it goes, ``warn``, or ``say`` too, what a user should know.

    Raises UsageError, DataError or TrainingError, with a sentence for the user, and Stopped when ``stopped`` says so.
    """
    recipe = recipe if isinstance(recipe, Recipe) else as_recipe(recipe)
    recipe, density = prepare(recipe, allow_code)
    assert recipe.target is not None
    known = digest(recipe.target)
    record = Run.create(pathlib.Path(run), force) if run is not None else None
    began = time.monotonic()
    try:
        posterior, evaluations = fitted(recipe, density, known, say, warn or say, stopped)
        if record is None:
            return posterior
        posterior.save(record.folder / MODEL_FILE)
        record.write_recipe(recipe)
        record.write_metrics(evaluations)
        record.write_manifest(_manifest(posterior, time.monotonic() - began))
        record.finish()
        return posterior
    except BaseException:
        if record:
            record.clear()
        raise


def prepare(recipe: Recipe, allow_code: bool) -> tuple[Recipe, LogDensity]:
    """The recipe with what is known before the fit, and the target. Raises UsageError or DataError."""
    if recipe.target is None:
        raise UsageError("the recipe has no target.")
    if recipe.train.device not in ("auto", "cpu"):
        raise UsageError(f"train.device: a target is fitted on the CPU, not on {recipe.train.device}.")
    density = LogDensity.load(recipe.target, Space(recipe.parameters), allow_code)
    files = {"file": recipe.target.file, "data": recipe.target.data}
    found = {key: None if file is None else str(pathlib.Path(file).absolute()) for key, file in files.items()}
    train = {"device": "cpu", "batch_size": BATCH if recipe.train.batch_size == "auto" else recipe.train.batch_size}
    if "precision" not in recipe.train.model_fields_set:
        train["precision"] = "float64"
    recipe = recipe.model_copy(
        update={
            "target": recipe.target.model_copy(update=found),
            "train": recipe.train.model_copy(update=train),
        }
    )
    new_flow(recipe)
    return recipe, density


def fitted(
    recipe: Recipe,
    density: LogDensity,
    known: str,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Posterior, list[Evaluation]]:
    """The part of :func:`fit` between reading and writing, for a recipe that :func:`prepare` has seen; ``known`` is the
    target's digest."""
    train = recipe.train
    assert isinstance(train.batch_size, int)
    generator, began = seeded(train.seed, 0), time.monotonic()
    start = find(density, generator)
    say(
        f"{density.space.features} numbers; {start.peaks or 'no'} peak{'s' * (start.peaks != 1)} found "
        f"in {time.monotonic() - began:.1f} s"
    )
    torch.manual_seed(train.seed)
    flow = new_flow(recipe, whitening(start.mean, start.factor))
    limit = recipes.seconds(train.max_time) - (time.monotonic() - began) if train.max_time else float("inf")
    plan = Plan(train.batch_size, train.lr, train.clip, train.patience, train.epochs, seconds=max(limit, 1e-3))
    if start.pool is not None:
        Ascent(flow, density, plan, generator, start.pool).learn(LEARNED)
    ascent = Ascent(flow, density, plan, generator, start.pool)

    def hear(e: Evaluation) -> None:
        say(f"epoch {e.epoch}  ELBO {e.elbo:.4f} ± {e.elbo_error:.4f}  lr {e.lr:.2g}  {e.seconds:.0f} s")

    if not ascent.run(hear, stopped):
        warn(f"the ELBO may still be rising after {train.epochs} epochs")
    flow.requires_grad_(False).eval()
    log_weights = plain_draws(flow, density, DRAWS, seeded(train.seed, 1)).log_weights
    finite = log_weights[log_weights > -torch.inf]
    about = {
        "elbo": float(finite.mean()),
        "elbo_error": float(finite.std()) / len(finite) ** 0.5,
        "peaks": start.peaks,
        "features": density.space.features,
        "parameters": sum(p.numel() for p in ascent.parameters),
        "epochs": len(ascent.evaluations),
        "steps": ascent.steps,
    }
    return Posterior(recipe, flow, known, about), ascent.evaluations


def _manifest(posterior: Posterior, seconds: float) -> dict[str, Any]:
    target = posterior.recipe.target
    assert target is not None
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "versions": versions(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "seed": posterior.recipe.train.seed,
        "target": [describe(file) for file in (target.file, target.data) if file is not None],
        "seconds": {"total": round(seconds, 3)},
        "metrics": posterior.about,
    }
