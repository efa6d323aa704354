"""``flowcli fit``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.formats import recipe_of, require_disk
from flowcli.cli.target import AllowCode, fit_target, refuse
from flowcli.cli.validate import Set

if TYPE_CHECKING:
    from flowcli.recipe import Recipe
    from flowcli.training.clock import Profile
    from flowcli.training.group import Group


@command()
def fit(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name (`flowcli recipe list`).")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Tables (parquet, CSV, JSON lines, Arrow) or images: files, globs, folders, or -."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="RUN", help="The run folder. [default: runs/RECIPE]")
    ] = None,
    set_: Set = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run folder that is there.")] = False,
    init_from: Annotated[str | None, typer.Option(metavar="MODEL", help="Start from a fitted model's weights.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time went, and write it into the run folder.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read, check, build; do not train or write.")] = False,
    max_time: Annotated[str | None, typer.Option(metavar="30m", help="Finish in good order within this time.")] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|mps", help="Where to train; else as the recipe or FLOWCLI_DEVICE says."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    allow_code: AllowCode = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing run folder.")] = False,
) -> None:
    """Fit a recipe to data and write a run folder.

    The folder's path is printed on stdout. A recipe with a target is fitted to its log-density.
    """
    began = time.perf_counter()

    from flowcli import recipe as recipes
    from flowcli.errors import FlowcliError, UsageError

    flags = {"train.max_time": max_time, "train.seed": seed}
    overrides = [*set_, *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    checked = recipe_of(recipe, overrides, device)
    if data:
        checked = checked.model_copy(update={"data": checked.data.model_copy(update={"files": data})})
    run = output or Path("runs") / recipes.shipped.path(recipe).stem
    require_disk(run, "a run is a folder on a disk; `flowcli score` and others read a model from a store.")
    alone = "WORLD_SIZE" not in os.environ  # several look once they know which of them writes
    if alone and not dry_run and not resume and run.exists() and not force and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run}: exists already; --force replaces it, --resume goes on with it.")

    if checked.target is not None:
        refuse({"DATA": data, "--resume": resume, "--init-from": init_from, "--profile": profile})
        fit_target(checked, run, force, allow_code, dry_run)
        return
    if not alone:  # what torch says of processes that are gone is for its makers, and read once, at its import
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from flowcli.training.group import join

    group = join()
    if not group.first:
        console.settings.quiet = True
    try:
        _fit(checked, run, init_from, group, began if profile else None, dry_run, force, resume)
    except FlowcliError as error:
        if not group.speaks():
            sys.exit(error.exit_code)
        raise


def _fit(
    recipe: Recipe, run: Path, init_from: str | None, group: Group, began: float | None, dry_run: bool, force: bool,
    resume: bool,
) -> None:  # fmt: skip
    """The command in one process of a group; ``began`` is when, if it is to say where the time went."""
    from flowcli import recipe as recipes
    from flowcli.cli.display import display
    from flowcli.data.source import STDIN
    from flowcli.errors import UsageError
    from flowcli.model import Model
    from flowcli.training.clock import Profile
    from flowcli.training.fit import train
    from flowcli.training.loop import Interrupted
    from flowcli.training.prepare import prepare

    if group.size > 1 and STDIN in recipe.data.files:
        raise UsageError("-: several processes cannot all read standard input; name files.")
    if dry_run:
        prepared = prepare(recipe, say=console.note)
        parameters = sum(p.numel() for p in prepared.flow.parameters())
        console.note(
            f"{len(prepared.rows)} training rows, {len(prepared.held_out)} held out, {prepared.codec.features} "
            f"columns, {parameters} parameters; nothing was trained"
        )
        if group.first:
            console.result(recipes.dump(prepared.recipe).rstrip("\n"))
        return
    start = Model.load(init_from) if init_from else None
    clock = Profile(began) if began is not None else None
    if clock:
        clock.lap("start-up")
    prepared = prepare(recipe, say=console.note, clock=clock)
    with console.Signals(patient=group.size > 1) as signals:  # a launcher passes on what its processes hear as well
        try:
            model = train(prepared, run, display(), force, resume, start, signals.seen, clock, group)
        except Interrupted:
            _tell(clock)
            console.note(f"stopped; `flowcli fit … --resume -o {run}` goes on")
            sys.exit(128 + (signals.number or signal.SIGTERM))  # another process may have been the one to hear it
    if model is None:
        return
    _tell(clock)
    about = model.about
    if about["held_out_log_prob"] is not None and about["held_out_gaussian_log_prob"] is not None:
        console.note(
            f"held-out log-likelihood {about['held_out_log_prob']:.4f} nats a row; a Gaussian has "
            f"{about['held_out_gaussian_log_prob']:.4f}"
        )
    data = recipe.data.files[0] if len(recipe.data.files) == 1 and recipe.data.files != [STDIN] else None
    rows = console.quoted(data) if data else "DATA"
    console.note(
        f"Next: flowcli score {console.quoted(run)} {rows} -o scores.csv; flowcli report {console.quoted(run)}"
    )
    console.result(str(run))


def _tell(profile: Profile | None) -> None:
    """Where the time went, a line for each phase."""
    for line in profile.lines() if profile else ():
        console.note(line)
