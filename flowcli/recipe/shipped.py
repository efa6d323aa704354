"""The recipes that come with flowcli, by name."""

from __future__ import annotations

import difflib
import pathlib
import re

from flowcli.errors import UsageError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """Where the shipped recipes are: inside the wheel, or beside the package in a clone."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def about(name: str) -> str:
    """The first sentence of a shipped recipe's opening comment."""
    lines = []
    for line in path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=[.]) (?=[A-Z])", " ".join(lines))[0]


def path(recipe: str) -> pathlib.Path:
    """The file of a recipe given as a path or as a shipped recipe's name. Raises UsageError if there is neither."""
    as_path = pathlib.Path(recipe)
    if as_path.exists() and not as_path.is_dir():
        return as_path
    if recipe in names():
        return folder() / f"{recipe}.yaml"
    if as_path.is_dir():
        raise UsageError(f"{recipe}: is a folder, not a recipe.")
    near = difflib.get_close_matches(recipe, names(), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Shipped recipes: {', '.join(names())}."
    raise UsageError(f"{recipe}: no such file, and no shipped recipe of that name. {hint}")
