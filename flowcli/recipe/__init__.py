"""Recipes: what they may say, where they are wrong, and those that are shipped. Imports neither torch nor pyarrow."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml as pyyaml

from flowcli.errors import UsageError
from flowcli.places import from_folder
from flowcli.recipe import shipped
from flowcli.recipe.check import FLOW_OPTIONS, check
from flowcli.recipe.schema import Column, Data, Flow, Image, MethodName, Recipe, Score, Train, seconds
from flowcli.recipe.target import Parameter, Target
from flowcli.recipe.yaml import Document, parse

__all__ = [
    "FLOW_OPTIONS", "Column", "Data", "Flow", "Image", "MethodName", "Parameter", "Recipe", "Score",
    "Target", "Train",
    "dump", "from_dict", "json_schema", "load", "seconds", "shipped",
]  # fmt: skip


def load(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path or of a shipped name, checked. Relative ``data`` paths are taken from the recipe's folder.

    Raises UsageError: no such recipe, or every mistake in it, one a line.
    """
    path = shipped.path(recipe)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}.") from None
    document = parse(text, str(path))
    checked = check(document, overrides)
    data, files, validation = checked.data, checked.data.files, checked.data.validation
    # What the recipe says stands beside it; what the command line says, where the user is.
    if ("data", "files") not in document.overrides:
        files = [from_folder(file, path.parent) for file in files]
    if isinstance(validation, str) and ("data", "validation") not in document.overrides:
        validation = from_folder(validation, path.parent)
    target = checked.target
    if target is not None:
        names = {"file": target.file, "data": target.data}
        beside = {k: str(path.parent / v) for k, v in names.items() if v and ("target", k) not in document.overrides}
        target = target.model_copy(update=beside)
    data = data.model_copy(update={"files": files, "validation": validation})
    return checked.model_copy(update={"data": data, "target": target})


def from_dict(recipe: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain Python, which stays as it is. Raises UsageError as :func:`load` does."""
    return check(Document("recipe", copy.deepcopy(recipe)), overrides)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out."""
    unused = {"target", "parameters"} if recipe.target is None else {"data", "score"}
    return pyyaml.safe_dump(recipe.model_dump(mode="json", exclude=unused), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()
