"""``flowcli init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command


@command()
def init(
    data: Annotated[list[str], typer.Argument(help="Tables: files, globs, folders, or - for standard input.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output.")] = "-",
    given: Annotated[
        list[str], typer.Option(metavar="COLS", help="Columns to condition on, separated by commas.")
    ] = [],  # noqa: B006
    task: Annotated[
        str,
        typer.Option(metavar="density|anomaly", help="What it is for: densities and new rows, or finding odd rows."),
    ] = "density",
    exclude: Annotated[list[str], typer.Option(metavar="COLS", help="Columns to leave out, separated by commas.")] = [],  # noqa: B006
    format: Annotated[
        str | None,
        typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of - and of names without an ending."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Look at a table and write a recipe for it.

    Every line says why it is there: types, transforms, spikes, missing values, columns that others tell or that only
    name the rows, and a flow of the right size.
    """
    from flowcli.errors import UsageError

    if task not in ("density", "anomaly"):
        raise UsageError(f"--task: '{task}' is not one of density, anomaly.")
    if output != "-" and Path(output).exists() and not force:
        raise UsageError(f"{output}: exists already; --force replaces it.")

    from flowcli.cli.formats import check_format
    from flowcli.data.source import STDIN, Source
    from flowcli.data.whole import write_whole
    from flowcli.init import propose
    from flowcli.places import is_object

    check_format(format)
    folder = Path() if output == "-" or is_object(output) else Path(output).parent
    text = propose(Source.of(data, format), data, folder, _names(given), _names(exclude), task == "anomaly")
    rest = " DATA" if STDIN in data else ""
    if output == "-":
        console.result(text.rstrip("\n"))
        console.note(f"Next: save it (-o recipe.yaml), read it, and flowcli fit recipe.yaml{rest}")
        return
    write_whole(output, text)
    console.note(f"Next: read {output}, and flowcli fit {console.quoted(output)}{rest}")
    console.result(output)


def _names(options: list[str]) -> list[str]:
    return [name.strip() for option in options for name in option.split(",")]
