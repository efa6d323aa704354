"""Advice as a recipe in YAML, a comment on each line saying why."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowcli import __version__
from flowcli.data.source import STDIN
from flowcli.errors import DataError
from flowcli.init.columns import Advice
from flowcli.init.survey import Survey
from flowcli.places import is_object
from flowcli.recipe.yaml import MAX_BYTES

GUESS = "(a guess)"
SIMPLE_KEY = 1000  # characters of a key that YAML takes without a question mark before it
ANOMALY = (
    "# What is far from the rows learned from is odd: in its columns, in their ranks, or in the latents of a flow.",
    "# Noise a third as wide as the rows keeps the flow from learning them by heart.",
    "flow: {type: maf, layers: 2, hidden: [128, 128], base: gaussian}",
    "train: {noise: 0.3, noise_shape: data, lr: 3e-3, max_time: 5m}",
    "score: {method: neighbours, folds: 6}  # up to five further fits hold out other rows: few have no small p-values",
)
MARGIN = 60  # where comments begin, at the furthest

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def write(
    survey: Survey,
    advice: Mapping[str, Advice],
    names: Sequence[str],
    folder: pathlib.Path,
    given: Sequence[str],
    anomaly: bool,
) -> str:
    """The recipe's text. Raises DataError when there is nothing to model."""
    flow = [a for a in advice.values() if a.modelled and a.name not in given]
    if not flow:
        why = "; ".join(f"{a.name}: {a.reason}" for a in list(advice.values())[:3])
        raise DataError(f"no column is left to model: all are excluded, given or constant ({why}).")
    head = [
        "# yaml-language-server: $schema=recipe.schema.json",
        "# An editor completes and checks what follows with the file that `flowcli recipe schema > recipe.schema.json`",
        "# makes; without it the line above does nothing.",
        comment(
            f"By flowcli init {__version__}, from {_counted(survey.rows, 'row')} of {_counted(len(advice), 'column')}"
            + ("." if survey.complete else f"; shapes are from {survey.sample.num_rows:,} of the rows.")
        ),
        f"# What ends with {GUESS} is worth a look.",
        "version: 1",
        "data:",
        *_files(names, folder),
        *(["  validation: 0.15  # p-values are ranks among the rows held out"] if anomaly else []),
    ]
    rest = ANOMALY if anomaly else list(_flow(survey.rows, flow))
    text = "\n".join([*head, *_data(advice, given, True), *rest, ""])
    if len(text.encode()) > MAX_BYTES:
        text = "\n".join([*head, *_data(advice, given, False), *rest, ""])
    if len(text.encode()) > MAX_BYTES:
        raise DataError(f"{len(advice):,} columns of such names do not fit into a recipe, which has at most 1 MB.")
    return text


def _files(names: Sequence[str], folder: pathlib.Path) -> Iterable[str]:
    """The files as they are found from the recipe's folder."""
    base = pathlib.Path(os.path.abspath(folder))
    places = []
    for name in names:
        if is_object(name):
            places.append(name)
        elif name != STDIN:
            path = pathlib.Path(os.path.abspath(name))
            places.append(path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path))
    if places:
        yield f"  files: [{', '.join(map(quoted, places))}]"
    if STDIN in names:
        yield "  # No file for what came through standard input: name it after the recipe, `flowcli fit RECIPE DATA`."


def _data(advice: Mapping[str, Advice], given: Sequence[str], comments: bool) -> Iterable[str]:
    excluded = [a for a in advice.values() if a.excluded]
    constant = [a for a in advice.values() if a.constant]
    entries = [a for a in advice.values() if not a.excluded and not a.constant]
    if given:
        yield f"  given: [{', '.join(map(quoted, given))}]"
    if excluded:
        yield "  exclude:"
        yield from _aligned([(f"    - {quoted(a.name)}", _why(a)) for a in excluded], comments)
    if constant and comments:
        yield "  # Columns of one value; `fit` keeps them out of the flow, and `score` marks a row that has another:"
        yield from (comment(f"  {a.name}: {a.reason}", "  ") for a in constant)
    if comments and any("missing" in a.options for a in entries):
        yield "  # missing: indicator learns whether a value is there, too; where chance decides that, say marginalise."
    yield "  columns:"
    yield from _aligned([(_entry(a), _why(a)) for a in entries], comments)


def _entry(advice: Advice) -> str:
    key = quoted(advice.name)
    start = f"    {key}:" if len(key) < SIMPLE_KEY else f"    ? {key}\n    :"
    options = advice.options
    if list(options) == ["type"]:
        return f"{start} {options['type']}"
    return f"{start} {{{', '.join(f'{k}: {_value(v)}' for k, v in options.items())}}}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return quoted(value) if isinstance(value, str) else repr(value)


def _why(advice: Advice) -> str:
    return advice.reason + ("" if advice.certain else f" {GUESS}")


def _aligned(lines: Sequence[tuple[str, str]], comments: bool) -> Iterable[str]:
    if not comments:
        return [line for line, _ in lines]
    width = max((len(line) for line, _ in lines if len(line) <= MARGIN), default=0)
    return [f"{line:<{width}}  {comment(why)}" if why else line for line, why in lines]


def _flow(rows: int, flow: Sequence[Advice]) -> Iterable[str]:
    """The flow and its training, by the number of rows and by the columns that are modelled."""
    columns = len(flow)
    many, size = columns > 100, f"{_counted(rows, 'row')}, {_counted(columns, 'column')} in the flow"
    discrete = sum(a.options["type"] != "real" for a in flow) > columns / 2
    hidden, train = "[128, 128]", ["epochs: 100", "patience: 10"]
    if rows < 1000:
        hidden, train = "[64, 64]", ["epochs: 100", "noise: 0.05"]
        why = f"{size}: a small flow, and noise that keeps it from learning so few rows by heart."
    elif rows <= 50_000:
        why = f"{size}: the defaults serve."
    else:
        train = ["epochs: 1000", "patience: 30", "max_time: 30m"]
        why = f"{size}: training until patience or max_time ends it."
        if discrete:
            hidden, train = "[512, 128]", [*train, "lr: 3e-3", "weight_decay: 0.1"]
            why += (
                " Many whole numbers and levels: a wide network, and decay that keeps it from learning rows by heart."
            )
    spline = rows >= 1000 and not many
    shape = f"layers: {3 if rows < 1000 or columns <= 2 else 5}, hidden: {hidden}"
    shape += f", bins: {8 if rows <= 50_000 else 16}" if spline else ""
    if rows >= 1000 and columns <= 2:
        why += " One or two columns need few layers."
    if many and rows >= 1000:
        why += " Splines are slow on more than 100 columns."
    yield comment(why, "")
    yield f"flow: {{type: maf, transform: {'spline' if spline else 'affine'}, {shape}}}"
    yield f"train: {{{', '.join(train)}}}"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def comment(text: str, indent: str = "") -> str:
    """A comment of one line, whatever stands in the text."""
    return f"{indent}# {_escaped(text.strip())}"


def quoted(text: str) -> str:
    """A string as a YAML scalar: plain where any reader takes it as text, else in double quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return _escaped(json.dumps(text, ensure_ascii=False))


def _escaped(text: str) -> str:
    """Characters that print nothing, or move a cursor, by their numbers."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 65536 else f"\\U{ord(c):08x}" for c in text)
