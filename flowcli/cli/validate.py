"""``flowcli validate``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command

Set = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a key of the recipe.")]


@command()
def validate(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    set_: Set = [],  # noqa: B006
) -> None:
    """Check a recipe: every mistake at once.

    Each as file:line:column, with the nearest right word.
    """
    from flowcli.recipe import load, shipped

    load(recipe, set_)
    console.result(f"{shipped.path(recipe)}: ok")
