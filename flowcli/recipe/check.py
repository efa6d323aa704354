"""From YAML to a Recipe, or to every mistake in it at once, each with its place and the nearest right word."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowcli.errors import UsageError
from flowcli.recipe.schema import MAF, Glow, Planar, Radial, RealNVP, Recipe
from flowcli.recipe.yaml import Document, Path, scalar

FLOW_OPTIONS: dict[str, type[BaseModel]] = {
    "planar": Planar, "radial": Radial, "realnvp": RealNVP, "maf": MAF,
    "glow": Glow,
}  # fmt: skip

# What other libraries call our keys.
SYNONYMS = {
    "learning_rate": "lr",
    "batch": "batch_size",
    "max_epochs": "epochs",
    "early_stopping": "patience",
    "grad_clip": "clip",
    "hidden_features": "hidden",
    "hidden_units": "hidden",
    "num_layers": "layers",
    "n_layers": "layers",
    "num_bins": "bins",
    "context": "given",
    "columns_to_drop": "exclude",
    "path": "files",
    "name": "type",
}


def check(document: Document, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in ``document`` with ``key=value`` overrides applied. Raises UsageError naming every mistake."""
    if document.value is None:
        document.value = {}
    if not isinstance(document.value, dict):
        raise UsageError(f"{document.place(())}: a recipe is a mapping of data, flow, train and score.")
    for override in overrides:
        _override(document, override)
    try:
        return Recipe.model_validate(document.value)
    except ValidationError as error:
        mistakes: dict[tuple[tuple[int, int], str], list[str]] = {}
        for e in error.errors(include_url=False):
            line, where, message = _explain(document, dict(e))
            mistakes.setdefault((line, where), []).append(message)
        # A value that may be of several kinds is refused once for each; that is one mistake.
        sentences = [f"{where} {', or '.join(mistakes[line, where])}" for line, where in sorted(mistakes)]
        raise UsageError(*map(_sentence, sentences)) from None


def _sentence(text: str) -> str:
    return text.rstrip(".?") + ("?" if text.endswith("?") else ".")


def _override(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"-s {override}: write it as key=value, for example train.lr=1e-3.")
    path: Path = tuple(key.split("."))
    value: Any = scalar(text)
    if text.startswith(("[", "{", '"', "'")):
        from flowcli.recipe.yaml import parse

        value = parse(text, f"-s {key}").value
    node = document.value
    for part in path[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UsageError(f"-s {key}: {part} is not a section of the recipe.")
    node[path[-1]] = value
    document.overrides[path] = key


def _explain(document: Document, error: Mapping[str, Any]) -> tuple[tuple[int, int], str, str]:
    """For one pydantic error: a place to sort by, what is wrong where, and the sentence's end."""
    path, kind, value, context = _path(error["loc"], document), error["type"], error["input"], error.get("ctx", {})
    name = ".".join(map(str, path)) or "recipe"
    key = False
    if kind == "extra_forbidden":
        key = True
        message = f"unknown key.{_did_you_mean(path, _keys_at(document, path[:-1]))}"
    elif kind == "missing":
        message = f"is missing.{' Choose one of ' + ', '.join(FLOW_OPTIONS) + '.' if name == 'flow' else ''}"
        name = "flow.type" if name == "flow" else name
    elif kind == "union_tag_not_found":
        name, message = "flow.type", f"is missing. Choose one of {', '.join(FLOW_OPTIONS)}."
    elif kind == "union_tag_invalid":
        path = (*path, "type")
        value, kind = context["tag"], "literal_error"
        name, message = "flow.type", _not_one_of(context["tag"], list(FLOW_OPTIONS))
    elif kind == "literal_error":
        message = _not_one_of(value, [w.strip("'") for w in context["expected"].replace(" or ", ", ").split(", ")])
    elif kind == "value_error":
        message = f"{context['error']}"
    else:
        message = _SENTENCES.get(kind, error["msg"]).format(**context)
    shown = f" {_show(value)}" if kind in _SENTENCES or kind == "literal_error" else ""
    return document.position(path, key), f"{document.place(path, key)}: {name}:{shown}", message


_SENTENCES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put quotes round it if it looks like a number",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} item",
    "too_long": "must have at most {max_length} items",
}


def _path(loc: Iterable[str | int], document: Document) -> Path:
    """The recipe's own path for pydantic's location, which also names union members and validators."""
    path: list[str | int] = []
    for part in loc:
        candidate = (*path, part)
        in_flow = path == ["flow"] and part in FLOW_OPTIONS and candidate not in document.values
        is_branch = (
            isinstance(part, str)
            and (
                part.startswith(("literal[", "list[", "constrained-", "function-"))
                or part in ("int", "float", "str", "bool")
            )
            and candidate not in document.values
        )
        if not in_flow and not is_branch:
            path.append(part)
    return tuple(path)


def _keys_at(document: Document, path: Path) -> list[str]:
    """The keys that the section at ``path`` may have."""
    model: Any = Recipe
    node = document.value
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
        if model is Recipe and part == "flow":
            model = FLOW_OPTIONS.get(node.get("type", "") if isinstance(node, dict) else "")
        else:
            model = _section(model.model_fields[part]) if model and part in model.model_fields else model
    return list(model.model_fields) if model else []


def _section(field: FieldInfo) -> Any:
    """The Section class inside a field's annotation: itself, or the value type of a dict of sections."""
    found = [field.annotation]
    while found:
        annotation = found.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        found.extend(typing.get_args(annotation))
    return None


def _did_you_mean(path: Path, known: list[str]) -> str:
    word, parent = str(path[-1]), ".".join(map(str, path[:-1]))
    candidates = known + [s for s, ours in SYNONYMS.items() if ours in known]
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not near:
        return f" Known here: {', '.join(known)}." if known else ""
    best = SYNONYMS.get(near[0], near[0]) if near[0] not in known else near[0]
    return f" Did you mean {parent + '.' if parent else ''}{best}?"


def _not_one_of(value: object, words: list[str]) -> str:
    if len(words) == 1:
        return f"must be {words[0]}"
    near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.6)
    return f"is not one of {', '.join(words)}{f'. Did you mean {near[0]}?' if near else ''}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
