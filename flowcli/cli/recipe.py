"""``flowcli recipe``: the shipped recipes, and the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import app, command

group = typer.Typer(help="List, show and copy the shipped recipes; print the JSON Schema.", no_args_is_help=True)
app.add_typer(group, name="recipe")


@command(group, "list")
def list_(json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False) -> None:
    """List the shipped recipes, one a line."""
    from flowcli.recipe import shipped

    names = shipped.names()
    if json_:
        console.result(json.dumps([{"name": n, "about": shipped.about(n)} for n in names], indent=2))
        return
    width = max(map(len, names))
    for name in names:
        console.result(f"{name:<{width}}  {shipped.about(name)}")


@command(group)
def show(name: Annotated[str, typer.Argument(help="A shipped recipe's name, or a path.")]) -> None:
    """Print a recipe."""
    from flowcli.recipe import shipped

    console.result(shipped.path(name).read_text(encoding="utf-8").rstrip("\n"))


@command(group)
def copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path | None, typer.Argument(help="The new file; NAME.yaml here when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Copy a shipped recipe, to be edited, and the files of its target."""
    from flowcli.data.whole import write_whole
    from flowcli.errors import UsageError
    from flowcli.recipe import load, shipped

    text = shipped.path(name).read_text(encoding="utf-8")
    file = f"{Path(name).stem}.yaml"
    to = to or Path(file)
    to = to / file if to.is_dir() else to
    if to.exists() and not force:
        raise UsageError(f"{to}: exists already; --force replaces it.")
    target = load(name).target
    beside = [Path(part) for part in (target.file, target.data) if part] if target else []
    for part in beside:
        if (to.parent / part.name).exists() and not force:
            raise UsageError(f"{to.parent / part.name}: exists already; --force replaces it.")
    write_whole(to, text)
    for part in beside:
        write_whole(to.parent / part.name, part.read_bytes())
    console.result(str(to))


@command(group)
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from flowcli.recipe import json_schema

    console.result(json.dumps(json_schema(), indent=2))
