"""``flowcli tune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.formats import recipe_of, require_disk
from flowcli.cli.validate import Set

if TYPE_CHECKING:
    from flowcli.tune import Trial


@command()
def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name (`flowcli recipe list`).")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Tables (parquet, CSV, JSON lines, Arrow) or images: files, globs, folders, or -."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="Fits in all, the recipe's own included.")] = 20,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="The study. [default: tuned/RECIPE]")
    ] = None,
    test: Annotated[
        float, typer.Option(metavar="SHARE", help="Rows that no trial sees and the best is tested on.")
    ] = 0.2,
    set_: Set = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study that is there.")] = False,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|mps", help="Where to train; else as the recipe or FLOWCLI_DEVICE says."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of the test rows.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing study.")] = False,
) -> None:
    """Search for a recipe that learns more from the same rows.

    Varies the flow's size, transform and base, and how it is trained; gives up fits that fall behind; writes the best
    recipe with its evidence. Its path is printed on stdout.
    """
    from flowcli.cli.extras import require_extra

    require_extra("tune", "flowcli tune", "optuna")
    from flowcli import recipe as recipes
    from flowcli.errors import UsageError

    if not 0 < test < 1:
        raise UsageError(f"--test: {test:g} is not a share between 0 and 1.")
    checked = recipe_of(recipe, set_, device)
    if checked.target is not None:
        raise UsageError(
            f"{recipe}: has a target, and `tune` searches by held-out rows; `flowcli evaluate RUN --allow-code` says "
            f"what a fit is worth."
        )
    if data:
        checked = checked.model_copy(update={"data": checked.data.model_copy(update={"files": data})})
    folder = output or Path("tuned") / recipes.shipped.path(recipe).stem
    require_disk(folder, "a study is a folder on a disk.")

    import optuna

    from flowcli.training.loop import Interrupted
    from flowcli.tune import Study, best_recipe

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = Study(folder, checked, test, seed, resume, force)
    if study.trials:
        console.note(f"{len(study.trials)} trials are there already")

    def say(trial: Trial) -> None:
        keys = ", ".join(f"{k.split('.')[1]} {v:.3g}" if isinstance(v, float) else f"{k.split('.')[1]} {v}"
                         for k, v in trial.parameters.items())  # fmt: skip
        value = f"held out {trial.value:.4f}" if trial.value is not None else trial.state
        console.note(f"trial {trial.number + 1}/{trials}  {value}  {trial.seconds:.1f} s  {keys or 'as it was'}")

    with console.Signals() as signals:
        try:
            study.run(trials, signals.seen, say)
        except Interrupted:
            console.note(f"stopped; `flowcli tune … --resume -o {folder}` goes on")
            sys.exit(128 + signals.number)
    found = best_recipe(study)
    if found.trial.number:
        console.note(
            f"trial {found.trial.number + 1} is the best: {found.after.difference:+.4f} ± "
            f"{found.after.difference_error:.4f} nats a row on {found.after.rows:,} test rows, which no trial saw"
        )
    else:
        console.note("no trial was ahead of the recipe as it was by two standard errors of the difference")
    console.note(f"Next: flowcli fit {found.path} -o RUN")
    console.result(str(found.path))
