"""One pass over a table in bounded memory: what every column holds, and a sample of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowcli.data.source import BATCH_ROWS, Source, first_line
from flowcli.errors import DataError

MAX_DISTINCT = 65_536  # different values of a column that are told apart
MAX_TEXT = 256  # characters of a text that are looked at
SAMPLE_ROWS = 200_000
SAMPLE = 1 << 23  # numbers in the sample
AT_ONCE = 1 << 27  # bytes of text files that are read at once, so that types settle over all of their lines


@dataclass
class Column:
    """What all the values of a column say. ``least`` and ``greatest`` are of the finite ones: numbers, or seconds since
    1970 for dates and timestamps. ``levels`` are the different values, None when these are more than MAX_DISTINCT."""

    name: str
    type: pa.DataType
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    least: float = np.inf
    greatest: float = -np.inf
    whole: bool = True
    increasing: bool = True
    levels: pa.Array | None = None
    last: Any = None

    def __post_init__(self) -> None:
        self.levels = pa.nulls(0, _dense(self.type))

    @property
    def family(self) -> str:
        """``bool``, ``number``, ``text``, ``time`` (dates and timestamps) or ``other``, which cannot be modelled."""
        return family(self.type)

    @property
    def distinct(self) -> int | None:
        """How many different values there are; None for too many to tell apart."""
        return None if self.levels is None else len(self.levels)

    def add(self, values: pa.Array) -> None:
        """Count the values of a further batch. Raises ArrowException when their type does not go with the others'."""
        both = pa.unify_schemas(
            [pa.schema([("", self.type)]), pa.schema([("", values.type)])], promote_options="permissive"
        )
        self.type = both.field(0).type
        self.rows += len(values)
        if self.family == "other":
            self.missing += values.null_count
            return
        dense = plain(values)
        there = dense.filter(pc.invert(dense.is_null(nan_is_null=True)))
        self.missing += len(values) - len(there)
        if self.levels is not None:
            # In two steps, so that what is put together is small.
            target = _dense(self.type)
            found = pa.concat_arrays([self.levels.cast(target), there.unique().cast(target)]).unique()
            self.levels = found if len(found) <= MAX_DISTINCT else None
        if self.family in ("number", "time"):
            self._measure(numbers(there))

    def _measure(self, x: NDArray[Any]) -> None:
        if x.dtype.kind == "f":
            finite = np.isfinite(x)
            self.infinite += int(len(x) - finite.sum())
            x = x if finite.all() else x[finite]
            self.whole = self.whole and bool((x == np.floor(x)).all() and (np.abs(x) < 2.0**53).all())
        if not len(x):
            return
        self.least, self.greatest = min(self.least, x.min().item()), max(self.greatest, x.max().item())
        first = self.last is None or x[0] > self.last
        self.increasing = self.increasing and bool(first and (x[1:] > x[:-1]).all())
        self.last = x[-1]


@dataclass
class Survey:
    """What a pass over ``source`` found; ``sample`` holds some rows, evenly spread, of the columns that can be used."""

    source: Source
    rows: int = 0
    columns: dict[str, Column] = field(default_factory=dict)
    sample: pa.Table = None

    @property
    def complete(self) -> bool:
        """Whether the sample is all there is."""
        return bool(self.sample.num_rows == self.rows)

    def values(self, name: str) -> pa.Array:
        """The sampled values of a column, dense."""
        return plain(self.sample.column(name).combine_chunks())

    def batches(self) -> Iterator[pa.Table]:
        """The rows once more. Raises DataError as :meth:`Source.batches` does."""
        return _tables(self.source)


def look(source: Source) -> Survey:
    """Survey all rows. Raises DataError when there are none, or they cannot be read."""
    try:
        return _look(source)
    except DataError as error:
        if not isinstance(error.__context__, pa.ArrowInvalid) or source.once or not source.formats & {"csv", "tsv"}:
            raise
    # Columns that began with whole numbers and go on with others.
    types = {f.name: pa.float64() if pa.types.is_integer(f.type) else f.type for f in source.schema()}
    return _look(dataclasses.replace(source, types=types))


def _look(source: Source) -> Survey:
    survey, sampler = Survey(source), None
    for table in _tables(source):
        survey.columns = survey.columns or {f.name: Column(f.name, f.type) for f in table.schema}
        sampler = sampler or _Sampler(min(SAMPLE_ROWS, SAMPLE // max(1, table.num_columns)))
        try:
            for name, column in survey.columns.items():
                column.add(table.column(name).combine_chunks())
        except pa.ArrowException as error:
            raise DataError(
                f"column '{name}': the parts of the data do not fit together: {first_line(error)}"
            ) from None
        survey.rows += table.num_rows
        sampler.add(table.select([name for name, column in survey.columns.items() if column.family != "other"]))
    if sampler is None or not survey.rows:
        raise DataError(f"{', '.join(source.files)}: no rows.")
    survey.sample = sampler.table()
    return survey


def _tables(source: Source) -> Iterator[pa.Table]:
    if not source.once and not source.types and source.formats & {"csv", "tsv"} and source.bytes <= AT_ONCE:
        batches = source.table().to_batches(BATCH_ROWS)
    else:
        batches = (batch for _, batch in source.batches())
    for batch in batches:
        if batch.num_rows:
            yield pa.Table.from_batches([batch])


class _Sampler:
    """Rows whose number, scattered by a hash, is small: the same rows every time, with no period of their own."""

    def __init__(self, most: int) -> None:
        self.most, self.seen, self.limit = most, 0, 2**64 - 1
        self.parts: list[tuple[NDArray[np.uint64], pa.Table]] = []

    def add(self, table: pa.Table) -> None:
        places = _scattered(self.seen, table.num_rows)
        self.seen += table.num_rows
        self.parts.append(self._thinned(places, table))
        while sum(len(places) for places, _ in self.parts) > self.most:
            self.limit //= 2
            self.parts = [self._thinned(*part) for part in self.parts]

    def _thinned(self, places: NDArray[np.uint64], table: pa.Table) -> tuple[NDArray[np.uint64], pa.Table]:
        keep = places <= np.uint64(self.limit)
        return (places, table) if keep.all() else (places[keep], table.filter(_mask(keep)))

    def table(self) -> pa.Table:
        return pa.concat_tables([table for _, table in self.parts], promote_options="permissive")


def _mask(keep: NDArray[np.bool_]) -> pa.Array:
    """A mask as Arrow has it; ``pa.array`` would import pandas."""
    bits = pa.py_buffer(np.packbits(keep, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(keep), [None, bits])


def _scattered(first: int, n: int) -> NDArray[np.uint64]:
    """Row numbers from ``first`` on through splitmix64's finaliser."""
    x = np.arange(first, first + n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def family(type_: pa.DataType) -> str:
    """See :attr:`Column.family`."""
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "time"
    text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return "text" if text or pa.types.is_null(type_) else "other"


def _dense(type_: pa.DataType) -> pa.DataType:
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    if family(type_) == "text":
        return pa.string()
    return pa.float64() if pa.types.is_decimal(type_) or pa.types.is_float16(type_) else type_


def plain(values: pa.Array) -> pa.Array:
    """Values without a dictionary: text as strings, cut where it is long; decimals and half floats as doubles."""
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    values = values.cast(_dense(values.type))
    long = pa.types.is_string(values.type) and values.nbytes > MAX_TEXT * len(values)
    return pc.utf8_slice_codeunits(values, 0, MAX_TEXT) if long else values


def numbers(values: pa.Array) -> NDArray[Any]:
    """Dense values of the families number and time as numpy has them, times as seconds; doubles with NaN for missing
    ones where there are any. Not by ``to_numpy``, which imports pandas."""
    if family(values.type) == "time":
        if not pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("ms"))
        ticks = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[values.type.unit]
        return numbers(values.cast(pa.int64())) / ticks
    if values.null_count:
        values = values.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.from_dlpack(values)
