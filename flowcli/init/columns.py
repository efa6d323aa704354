"""What each column is by itself: its type and options in the recipe, or why it is left out."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowcli.errors import DataError, UsageError
from flowcli.init.shape import shape, spikes
from flowcli.init.survey import Column, Survey, numbers

MAX_LEVELS = 1000  # of a category
FEW = 32  # different values of a number that is told apart value by value
OFTEN = 10  # rows for each value, when it is a level rather than a number
RETURNING = 1000  # different decimals that `fit` makes an atom of each, at most
AGAIN = 20  # rows for each different number, with which `fit` gives each a probability of its own
SHAPED = 50_000  # values that a shape is found from

_CAMEL = re.compile(r"[a-z](?:Id|ID|Key|Idx)$")
_WORD = re.compile(r"(?:^|[^a-z])(?:id|key|index|idx|uuid|guid|rowid|pk)(?:$|[^a-z])")
_DATES = (
    "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d",
    "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d-%m-%Y", "%d %b %Y",
    "%b %d %Y", "%b %d, %Y", "%Y%m%dT%H%M%S",
)  # fmt: skip


@dataclass
class Advice:
    """What the recipe says of a column. Without ``type`` in its options it has no entry: it is left out, or constant.

    ``excluded`` says whether it is left out; ``certain`` is false for a guess.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    excluded: bool = False
    certain: bool = True

    @property
    def constant(self) -> bool:
        """Whether it has one value only, which `fit` finds itself."""
        return not self.options and not self.excluded

    @property
    def modelled(self) -> bool:
        """Whether it is in the flow, or given to it."""
        return "type" in self.options and not self.excluded

    def leave_out(self, reason: str, certain: bool = True) -> None:
        """Put it among the excluded columns."""
        self.reason, self.certain, self.excluded = reason, certain, True


def advise(survey: Survey, given: Sequence[str], exclude: Sequence[str]) -> dict[str, Advice]:
    """The advice on each column, in the table's order. Raises UsageError for the name of a column that is not there,
    and DataError for a given one that cannot be used."""
    for option, names in (("--given", given), ("--exclude", exclude)):
        for name in names:
            if name not in survey.columns:
                near = difflib.get_close_matches(name, list(survey.columns), n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UsageError(f"{option}: the data has no column '{name}'.{hint}")
    both = sorted({*given} & {*exclude})
    if both:
        raise UsageError(f"'{both[0]}' cannot be both given and excluded.")
    advice = {}
    for name, column in survey.columns.items():
        advice[name] = found = Advice(name)
        if name in exclude:
            found.leave_out("asked for")
            continue
        _advise(found, column, survey)
        if name in given and "missing" in found.options:
            found.options["missing"] = "impute"  # a context must have a value
        if name in given and found.excluded:
            if "type" not in found.options:
                raise DataError(f"--given: column '{name}' cannot be used: {found.reason}.")
            found.excluded = False
    return advice


def _advise(found: Advice, column: Column, survey: Survey) -> None:
    if column.family == "other":
        found.leave_out(f"holds {column.type}, which is not modelled")
    elif column.missing == column.rows:
        found.leave_out("no value at all")
    elif column.infinite:
        found.leave_out(f"{column.infinite:,} values are infinite: mend them, or mark them as missing", certain=False)
    elif column.levels is not None and len(column.levels) == 1:
        found.reason = f"always {_shown(column.levels[0], column)}"
        if column.missing:
            found.leave_out(f"{found.reason}, or missing ({_share(column.missing / column.rows)})", certain=False)
    else:
        _KINDS["dictionary" if pa.types.is_dictionary(column.type) else column.family](found, column, survey)
        if column.missing and not found.excluded:
            found.options["missing"] = "indicator"
            found.reason += f"; {_share(column.missing / column.rows)} missing"


def _bool(found: Advice, column: Column, survey: Survey) -> None:
    found.options["type"] = "bool"
    found.reason = f"true in {_share(_mean(survey.values(found.name)))} of the rows"


def _time(found: Advice, column: Column, survey: Survey) -> None:
    found.options["type"] = "datetime"
    found.reason = f"{_instant(column.least)} to {_instant(column.greatest)}"
    if column.increasing and not column.missing and column.rows > FEW:
        found.reason += ", strictly increasing: leave it out if it only numbers the rows"
        found.certain = False


def _text(found: Advice, column: Column, survey: Survey) -> None:
    values = survey.values(found.name).drop_null()
    some = values.slice(0, 10_000).unique() if column.levels is None else column.levels
    if _dates(some):
        found.options["type"] = "category"
        if column.distinct is None or column.distinct > FEW:
            found.leave_out(f"dates as text ({some[0]}): store them as timestamps to have them modelled")
            return
    _levels(found, column, survey)
    numeric = pc.match_substring_regex(some, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
    share = _mean(pc.is_in(values, some.filter(numeric)))
    if share >= 0.1:
        others = some.filter(pc.invert(numeric))
        if len(others):
            found.reason += f"; {_share(share)} are numbers, and others like {_shown(others[0], column)} not"
        else:
            found.reason += "; numbers stored as text"
        found.certain = False


def _dates(values: pa.Array) -> bool:
    """Whether all of the texts are dates in one of the usual formats."""
    return any(_all_dates(values.slice(0, 1), format) and _all_dates(values, format) for format in _DATES)


def _all_dates(values: pa.Array, format: str) -> bool:
    return bool(pc.strptime(values, format, "s", error_is_null=True).null_count == 0)


def _levels(found: Advice, column: Column, survey: Survey) -> None:
    """A category, or text or an id that has too many levels for one."""
    found.options["type"] = "category"
    n, there = column.distinct, column.rows - column.missing
    if n is None or n > MAX_LEVELS:
        found.leave_out(f"text, or an id: {'more than 65,536' if n is None else f'{n:,}'} different values")
    elif n == there or n > there / 2 > 10:
        found.leave_out(f"text, or an id: {n:,} different values in {there:,} rows", certain=n > FEW)
    else:
        found.reason = f"{n:,} levels"


def _number(found: Advice, column: Column, survey: Survey) -> None:
    x = numbers(survey.values(found.name).drop_null())
    x = x.astype(np.float64)[~np.isnan(x.astype(np.float64))]
    n, there = column.distinct, column.rows - column.missing
    span = f"{_number_text(column.least, column.whole)} to {_number_text(column.greatest, column.whole)}"
    several = "" if n is None else f"; {n:,} different values"
    if column.whole:
        found.options["type"] = "integer"
        found.reason = span + several
        _identity(found, column, len(np.unique(x)) / max(1, len(x)))
        if found.options["type"] == "integer" and not found.excluded and (n is None or n > there / AGAIN):
            _spikes(found, x)
        return
    found.options["type"] = "real"
    found.reason = span
    if n is not None and n <= RETURNING and there >= AGAIN * n:
        found.reason += f"; decimals, but only {n} different values: each has a probability of its own"
        return
    rest = _spikes(found, x)
    # A logarithm wants what is above 0; a few zeros are then a spike of their own.
    zeros = column.least == 0
    rest = rest[rest > 0] if zeros else rest
    if len(rest) >= 20:
        best = shape(
            rest[:: math.ceil(len(rest) / SHAPED)], float(rest.min()) if zeros else column.least, column.greatest
        )
        if zeros and best.options.get("transform") == "log":
            found.options["atoms"] = sorted({0, *found.options.get("atoms", [])})
        found.options = {"type": "real"} | best.options | found.options
        found.reason += f"; {best.reason}" if best.reason else ""


def _spikes(found: Advice, x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Write the atoms of a column into its advice, and give the values beside them."""
    values, others = spikes(x)
    if values or others:
        found.options["atoms"] = [int(v) if v.is_integer() and abs(v) < 2**53 else v for v in values]
    if not values:
        found.reason += "; some values are common, none is a spike" if others else ""
        return x
    rest = x[~np.isin(x, values)]
    found.reason += f"; {_share(1 - len(rest) / len(x))} are {' or '.join(f'{v:g}' for v in values[:4])}"
    found.reason += " …" if len(values) > 4 else ""
    return rest


_KINDS = {"bool": _bool, "text": _text, "dictionary": _levels, "time": _time, "number": _number}


def _identity(found: Advice, column: Column, different: float) -> None:
    """Leave out whole numbers that only name the rows; make those levels that name something else."""
    name = found.name
    called = bool(_WORD.search(name.lower()) or _CAMEL.search(name))
    n, there = column.distinct, column.rows - column.missing
    if there < 4:
        return
    counter = column.increasing and not column.missing and column.greatest - column.least == column.rows - 1
    if counter:
        found.leave_out(f"counts the rows from {column.least:.0f}", certain=column.least in (0, 1) or called)
    elif column.increasing and not column.missing:
        found.leave_out("every row has a greater value than the one before: an id or a clock", certain=False)
    elif called and different > 0.9:
        found.leave_out(f"called like an id, and {_share(different)} of its values are different", certain=False)
    elif called and (n is None or n > MAX_LEVELS):
        found.leave_out(f"called like an id, with {f'{n:,}' if n else 'more than 65,536'} of them", certain=False)
    elif called and n is not None and n > 2 and there >= OFTEN * n:
        found.options["type"] = "category"
        found.reason, found.certain = f"called like an id: {n:,} levels rather than numbers", False
    elif different > 0.99 and column.greatest - column.least > 2.0**53:
        found.leave_out("wide whole numbers, nearly all different: an id or a hash", certain=False)


def _mean(values: pa.Array) -> float:
    """The share of true ones; 0 where there are none at all."""
    return float(pc.mean(values.cast(pa.int8())).as_py() or 0.0)


def _shown(value: pa.Scalar, column: Column) -> str:
    if column.family == "text":
        return f"'{str(value)[:30]}'"
    if column.family == "time":
        return _instant(column.least)
    return _number_text(column.least, column.whole) if column.family == "number" else str(value).lower()


def _number_text(value: float, whole: bool) -> str:
    return f"{value:.0f}" if whole and abs(value) < 2.0**63 and float(value).is_integer() else f"{value:.4g}"


def _instant(seconds: float) -> str:
    text = str(np.datetime64(int(seconds), "s"))
    return text.removesuffix("T00:00:00").replace("T", " ")


def _share(share: float) -> str:
    """A share in percent that is 0 % or 100 % only when it is."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"
