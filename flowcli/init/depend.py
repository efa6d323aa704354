"""Which columns others tell: functions of a few columns, and straight lines of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowcli.init.columns import Advice
from flowcli.init.survey import MAX_DISTINCT, Column, Survey, numbers
from flowcli.recipe.schema import reached

EXACT = ("integer", "category", "bool")
SEEN = 10  # rows for each key, on average, that are evidence enough
ROWS = 8192  # that the search begins with, and so many
NUMBERS = 1 << 20  # numbers in them, at most
CROWDED = 0.9  # of these: sets of columns with so many keys have too many in all rows as well
BITS = 62  # columns that fit into a number
PAIRS = 512  # pairs of rows that a column has to tell apart, at most
TRIED = 32  # sets of columns that are tried on all of the sample
WIDE = {3: 30, 2: 60, 1: 1000}  # how many columns a table may have for sets of so many to be searched
STRAIGHT = 0.9999  # correlation
PAIRED = 2048  # columns of numbers that are compared with each other, at most

Codes = NDArray[np.int64]


def tell(survey: Survey, advice: dict[str, Advice], given: Sequence[str], exclude: Sequence[str]) -> None:
    """Find columns that one to three others tell, and write them into the advice. The sample proposes them, all rows
    confirm them where these can be read twice."""
    codes = {name: _codes(survey, name) for name in advice if name not in exclude and _few(survey.columns[name])}
    found: dict[str, tuple[str, ...]] = {}
    if survey.sample.num_rows >= 2 * SEEN:
        # What is drawn from a density of real numbers is never looked up, and what is given is not drawn.
        modelled = [n for n in codes if advice[n].modelled and n not in given]
        exact = [n for n in modelled if advice[n].options["type"] in EXACT]
        search = _Search(codes, exact)
        place = {name: i for i, name in enumerate(codes)}
        for name in sorted(codes, key=lambda name: (-(survey.columns[name].distinct or 0), -place[name])):
            if name not in given and (others := search.of(name, found)):
                found[name] = others
    certain = survey.complete or not survey.source.once
    if found and not survey.complete and certain:
        found = _confirmed(survey, found)
    rows = survey.rows if certain else survey.sample.num_rows
    for name, others in found.items():
        told = advice[name]
        told.options, told.excluded, told.certain = {"by": list(others)}, False, certain
        told.reason = f"told by {'it' if len(others) == 1 else 'them'} in all {rows:,} rows{'' if certain else ' seen'}"


def _few(column: Column) -> bool:
    """Whether a column can be told, or tell others: it has no missing values, and not too many different ones."""
    usable = column.family != "other" and not column.missing and not column.infinite
    return usable and column.distinct is not None and column.distinct > 1


def _codes(survey: Survey, name: str) -> Codes:
    return numbers(survey.values(name).dictionary_encode().indices).astype(np.int64)


class _Search:
    """Codes ``(rows,)`` of columns, and how rows that agree in some differ in others: in few rows first."""

    def __init__(self, codes: Mapping[str, Codes], members: Sequence[str]) -> None:
        self.codes, self.names = codes, list(codes)
        self.size = {name: int(c.max()) + 1 for name, c in codes.items()}
        rows = len(next(iter(codes.values()), ()))
        self.members = [name for name in members if self.size[name] * SEEN <= rows]
        widest = len(self.members) if len(codes) <= BITS else max(BITS, len(self.members))
        self.most = max((k for k, columns in WIDE.items() if widest <= columns), default=0)
        place = np.linspace(0, rows - 1, min(ROWS, rows, NUMBERS // max(1, len(codes)))).astype(int)
        self.some = {name: c[place] for name, c in codes.items()}
        whole = np.stack(list(self.some.values())) if codes else np.zeros((0, 0), np.int64)
        self.alone = {m: np.any(self._differing(whole, self.some[m]), axis=1) for m in self.members if self.most}
        self.sets = self._sets()
        self.masks = self._differences(whole) if self.most > 1 else np.zeros(0, np.int64)

    @staticmethod
    def _differing(whole: Codes, key: Codes) -> NDArray[np.bool_]:
        """In which columns ``(columns, pairs)`` rows differ that have one key and stand beside each other."""
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
        return np.not_equal(whole[:, order[1:][same]], whole[:, order[:-1][same]])

    def _differences(self, whole: Codes) -> Codes:
        """For pairs of rows that agree in one column or two: a bit for each column in which they differ."""
        bits, found = 1 << np.arange(len(whole)), [np.zeros(0, np.int64)]
        for a, b in itertools.combinations_with_replacement(self.members, 2):
            if a == b or self.most == 3:
                found.append(np.unique(bits @ self._differing(whole, self.some[a] * self.size[b] + self.some[b])))
        return np.unique(np.concatenate(found))

    def _sets(self) -> dict[int, list[tuple[str, ...]]]:
        """Sets of members by their size that have few enough keys, as far as some rows tell. One that has too many is
        in no larger one."""
        sets: dict[int, list[tuple[str, ...]]] = {1: [(m,) for m in self.members]}
        keys: dict[tuple[str, ...], Codes] = {(m,): self.some[m] for m in self.members}
        for k in range(2, self.most + 1):
            larger: dict[tuple[str, ...], Codes] = {}
            for some, m in itertools.product(sets[k - 1], self.members):
                if self.members.index(m) > self.members.index(some[-1]):
                    values, key = np.unique(keys[some] * self.size[m] + self.some[m], return_inverse=True)
                    if len(values) <= CROWDED * len(key):
                        larger[(*some, m)] = key
            sets[k], keys = list(larger), larger
        return sets

    def of(self, name: str, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The smallest set of columns that tells ``name``, the one with the fewest keys; none if there is none."""
        others = {m for m in self.members if m != name and name not in reached(found, [m])}
        column = self.names.index(name)
        for k in range(1, self.most + 1):
            sets = [s for s in self.sets[k] if others.issuperset(s) and self._may(s, name)]
            sets = [s for s in sets if not self.alone[s[0]][column]] if k == 1 else self._telling(sets, column)
            sets.sort(key=lambda s: math.prod(self.size[m] for m in s))
            keys = [(n, s) for s in sets[:TRIED] if (n := self._keys(s, name))]
            if keys:
                return min(keys, key=lambda key: key[0])[1]
        return ()

    def _may(self, members: Sequence[str], name: str) -> bool:
        """Whether so many keys can tell so many values."""
        return math.prod(self.size[m] for m in members) >= self.size[name]

    def _telling(self, sets: list[tuple[str, ...]], column: int) -> list[tuple[str, ...]]:
        """Those that differ in every known pair of rows that differs in a column."""
        bit = 1 << column
        masks = self.masks[(self.masks & bit) != 0] & ~bit
        masks = masks[np.argsort(np.bitwise_count(masks), kind="stable")][:PAIRS]
        place = {m: 1 << i for i, m in enumerate(self.names)}
        bits = np.array([sum(place[m] for m in s) for s in sets], np.int64)
        return [sets[i] for i in np.flatnonzero(((masks[:, None] & bits) != 0).all(0))]

    def _keys(self, members: Sequence[str], name: str) -> int:
        """How many keys ``members`` have, when they tell ``name`` in all rows, and each is seen often enough: also
        among the rows in which it is not what it is mostly. Else 0."""
        key = self.codes[members[0]]
        for member in members[1:]:
            key = np.unique(key * self.size[member] + self.codes[member], return_inverse=True)[1]
        value = self.codes[name]
        different, first, place = np.unique(key, return_index=True, return_inverse=True)
        if not (value[first][place] == value).all():
            return 0
        usual = np.bincount(value).argmax()
        rare = int((value != usual).sum())
        seen = (
            len(different) <= min(len(value) / SEEN, MAX_DISTINCT) and int((value[first] != usual).sum()) * SEEN <= rare
        )
        return len(different) if seen else 0


def _confirmed(survey: Survey, found: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Those that hold in every row, each key with one value."""
    seen: dict[str, pa.Table] = {}
    holds = dict(found)
    for table in survey.batches():
        for name, others in list(holds.items()):
            part = table.select([*others, name])
            part = pa.table([_decoded(c) for c in part.columns], names=part.column_names)
            if name in seen:
                part = pa.concat_tables([seen[name], _different(part)], promote_options="permissive")
            seen[name] = _different(part)
            keys = len(_different(seen[name].select(list(others))))
            if keys < len(seen[name]) or keys > MAX_DISTINCT:
                del holds[name], seen[name]
    return holds


def _different(table: pa.Table) -> pa.Table:
    return table.group_by(table.column_names, use_threads=False).aggregate([])


def _decoded(values: pa.ChunkedArray) -> pa.Array:
    dense = values.combine_chunks()
    return dense.dictionary_decode() if pa.types.is_dictionary(dense.type) else dense


def lines(survey: Survey, advice: dict[str, Advice], given: Sequence[str]) -> None:
    """Leave out columns of numbers that are a straight line of another one: their density would lie on it. Of two, the
    first in the table stays; one that is given or tells others does in any case."""
    needed = {*given, *itertools.chain.from_iterable(a.options.get("by", ()) for a in advice.values())}
    kinds = ("real", "integer", "datetime")
    numeric = [name for name, a in advice.items() if a.modelled and a.options["type"] in kinds]
    names = sorted(numeric, key=lambda name: name not in needed)
    if survey.sample.num_rows < 2 * SEEN or not 2 <= len(names) <= PAIRED:
        return
    step = max(1, survey.sample.num_rows // ROWS)
    x = np.stack([_standard(numbers(survey.values(name))[::step]) for name in names], 1)
    there = (~np.isnan(x)).astype(np.float64)
    x = np.nan_to_num(x)
    # Sums over the rows in which both of two columns have a value.
    n, one, square, both = there.T @ there, x.T @ there, (x * x).T @ there, x.T @ x
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * both - one * one.T) / np.sqrt((n * square - one**2) * (n * square.T - one.T**2))
    straight = np.tril((np.abs(r) > STRAIGHT) & (n >= 2 * SEEN), -1)
    for j, i in np.argwhere(straight):
        if names[j] not in needed and advice[names[i]].modelled:
            advice[names[j]].leave_out(f"a straight line of {names[i]} (correlation {r[j, i]:.6f})")


def _standard(x: NDArray[Any]) -> NDArray[np.float64]:
    """Doubles with centre 0 and spread 1, those far out drawn in: one pair of wild values is no line."""
    x = x.astype(np.float64)
    if np.isnan(x).all():
        return x
    x = x / (np.nanmax(np.abs(x)) or 1.0)
    x = np.clip(x, *np.nanquantile(x, [0.005, 0.995]))
    spread = np.nanstd(x)
    return (x - np.nanmean(x)) / spread if spread > 0 else x * 0
