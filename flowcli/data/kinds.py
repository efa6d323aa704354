"""What kind of column each of a training table is, and its codec; and a column's values as that codec takes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowcli.data.columns import (
    Category,
    ColumnCodec,
    Constant,
    Counted,
    Gated,
    Integer,
    Moment,
    Real,
    Told,
    arrow_type,
    is_number,
)
from flowcli.data.columns.column import dense
from flowcli.errors import DataError
from flowcli.recipe.schema import Column, Data

SPIKE = 0.05  # the share of rows at one value that makes it an atom, where the recipe leaves that open
STANDS_OUT = 10  # times the average frequency of a whole number, at which it is an atom
MOST_ATOMS = 1000
FEW = 8  # rows that a scale can be taken from, at least


def fit_columns(
    names: Iterable[str], table: pa.Table, data: Data, whole: pa.Table, counting: bool
) -> tuple[ColumnCodec, ...]:
    """Type and scale columns of a training table; what kind each is, ``whole``, the table it was taken from, says too.
    With ``counting`` few-valued whole numbers are counted, and spikes and missing values may be modelled.

    Raises DataError for a type that cannot be modelled.
    """
    columns: list[ColumnCodec] = []
    for name in names:
        options = data.options(name, is_number(plain_array(table.column(name).combine_chunks()).type))
        if options.by:
            columns.append(_told(name, options.by, whole, data))
        else:
            columns.append(
                _fit_column(
                    name,
                    plain_array(table.column(name).combine_chunks()),
                    plain_array(whole.column(name).combine_chunks()),
                    options,
                    counting,
                )
            )
    return tuple(columns)


def telling_rows(names: Iterable[str], table: pa.Table, data: Data) -> NDArray[np.int64]:
    """The rows that decide what :func:`fit_columns` makes of a table, but for the scale of its numbers: of each column
    the least and the greatest value, one that is no whole number, one that is missing, and each level's first.

    Raises DataError when a column has values that it may not.
    """
    rows: set[int] = set()
    for name in names:
        options = data.columns.get(name, Column())
        refuse_holes(name, table.column(name), options)
        values = plain_array(table.column(name).combine_chunks())
        rows |= {*np.flatnonzero(values.is_null(nan_is_null=True))[:1].tolist()}
        number = is_number(values.type)
        if (number and options.type not in ("category", "bool")) or pa.types.is_temporal(values.type):
            ends = pc.min_max(values).as_py()
            rows |= {pc.index(values, end).as_py() for end in ends.values() if end is not None}
            if pa.types.is_floating(values.type):
                rows |= {*np.flatnonzero(pc.not_equal(values, pc.floor(values)).fill_null(False))[:1].tolist()}
        elif number or _family(values.type) == "text" or str(values.type).startswith(("bool", "dictionary")):
            codes = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            firsts = np.sort(np.unique(np.asarray(codes.indices.fill_null(-1)), return_index=True)[1])
            # With more levels than may be a column is refused, however many more they are.
            rows |= {*firsts[: None if options.type == "category" else Category.MAX_LEVELS + 2].tolist()}
    return np.array(sorted(rows), np.int64)


def plain_table(table: pa.Table) -> pa.Table:
    """A table whose columns Arrow can compute with: :func:`plain_array` of each."""
    columns = [pa.chunked_array([plain_array(table.column(name).combine_chunks())]) for name in table.column_names]
    return pa.table(columns, names=table.column_names)


def plain_array(values: pa.Array) -> pa.Array:
    """Decimals and half floats as doubles, views of text as text, runs at full length, dictionaries of what is no level
    by itself without their dictionary, and −0 as 0, which it equals."""
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    if pa.types.is_dictionary(values.type):
        inner = values.type.value_type
        simple = pa.types.is_boolean(inner) or pa.types.is_integer(inner) or _family(inner) == "text"
        if simple and not pa.types.is_string_view(inner):
            return values
        values = values.dictionary_decode() if not pa.types.is_string_view(inner) else values.cast(pa.string())
    if pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    if pa.types.is_decimal(values.type) or pa.types.is_float16(values.type):
        values = values.cast(pa.float64())
    return pc.add(values, pa.scalar(0, values.type)) if pa.types.is_floating(values.type) else values


def _fit_column(name: str, values: pa.Array, whole: pa.Array, options: Column, counting: bool) -> ColumnCodec:
    rows, (values, whole) = len(values), (_present(values), _present(whole))
    if len(values) == 0:
        raise DataError(f"column '{name}': has no values; leave it out with -s 'data.exclude=[{name}]'.")
    gaps = rows - len(values) if counting and options.missing == "indicator" else 0
    kind = _kind(name, whole, options) if options.type == "auto" else options.type
    if not gaps and pc.count_distinct(dense(whole)).as_py() == 1:
        return Constant.fit(name, values)
    if kind in ("category", "bool"):
        return Category.fit(name, values, options.type == "category", gaps or None)
    if kind == "datetime":
        if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
            raise DataError(f"column '{name}': holds {values.type}, so it cannot be datetime.")
        moment = Moment.fit(name, values, counting, gaps or None)
        return (
            Gated(name, moment.arrow_type, moment, (), True, (len(values), gaps))
            if gaps and moment.continuous
            else moment
        )
    if not is_number(values.type):
        raise DataError(f"column '{name}': holds {values.type}, so it cannot be {kind}.")
    if kind == "integer":
        Integer.fit(name, whole)  # is every value a whole number?
        if counting and Counted.fits(values):  # each has a probability of its own, atoms as well
            return Counted.fit(name, values, gaps or None)
    atoms = _atoms(name, values, options, rows, kind == "integer") if counting else []
    rest, whole = _without(atoms, values), _without(atoms, whole)
    if pc.count_distinct(rest).as_py() == 1:  # which has no scale; held-out rows have other values
        rest = whole
    if kind == "integer":
        value: Real | Integer = Integer.fit(name, rest)
    else:
        Real.fit(name, whole, options.transform, options.low, options.high)  # is every value in the domain?
        value = Real.fit(name, rest, options.transform, options.low, options.high)
    if not atoms and not gaps:
        return value
    at = [int(pc.sum(pc.equal(values, pa.scalar(atom, values.type))).as_py() or 0) for atom in atoms]
    counts = (len(values) - sum(at), *at, *([gaps] if gaps else []))
    return Gated(name, value.arrow_type, value, tuple(atoms), gaps > 0, counts)


def _atoms(name: str, values: pa.Array, options: Column, rows: int, whole: bool) -> list[float]:
    """The values at which a column has spikes, in order: those that the recipe names; or that are frequent; or, of real
    numbers that keep coming back, all. Whole numbers have their masses anyway, so there a spike must stand out."""
    if options.atoms != "auto":
        try:
            exact = pa.array(sorted(options.atoms)).cast(values.type, safe=not pa.types.is_floating(values.type))
        except pa.ArrowInvalid:
            raise DataError(f"data.columns.{name}.atoms: not values of a column of {values.type}.") from None
        return list(exact.to_pylist())
    counts = values.value_counts()
    often = max(SPIKE * rows, FEW)
    if whole:
        often = max(often, STANDS_OUT * rows / len(counts))
    elif len(counts) <= min(MOST_ATOMS, rows / Counted.EVIDENCE):
        often = 1
    found: list[float] = sorted(
        counts.field("values").filter(pc.greater_equal(counts.field("counts"), often)).to_pylist()
    )
    return found


def _without(atoms: list[float], values: pa.Array) -> pa.Array:
    """The values that are at no atom; all, if too few are left to take a scale from."""
    rest = values.filter(pc.invert(pc.is_in(values, pa.array(atoms, values.type))))
    return rest if len(rest) >= FEW else values


def _told(name: str, by: Sequence[str], table: pa.Table, data: Data) -> Told:
    for key in by:
        require(table.schema, key, f"data.columns.{name}.by: the modelled data")
        if key in data.given:
            raise DataError(f"column '{name}': cannot be told by '{key}', which is given.")
    plain = pa.table({key: plain_array(table.column(key).combine_chunks()) for key in (*by, name)})
    for key in plain.column_names:
        if pc.any(plain.column(key).is_null(nan_is_null=True)).as_py():
            raise DataError(f"column '{name}': cannot be told by {', '.join(by)}: '{key}' has missing values.")
    return Told.fit(name, by, plain)


def _kind(name: str, values: pa.Array, options: Column) -> str:
    type_ = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_dictionary(values.type):
        return "category"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "datetime"
    if options.transform != "none" and is_number(type_):
        return "real"
    if pa.types.is_integer(type_):
        return "integer"
    if pa.types.is_floating(type_):
        # Whole numbers stored as floats repeat, and a density on repeated values is infinite.
        # Beyond 2^53 every double is whole, and says nothing.
        whole = pc.all(pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), 2.0**53)))
        return "integer" if whole.as_py() else "real"
    raise DataError(
        f"column '{name}': holds {values.type}, which flowcli does not model; "
        f"leave it out with -s 'data.exclude=[{name}]'."
    )


def _present(values: pa.Array) -> pa.Array:
    """Without missing values."""
    return values.filter(pc.invert(values.is_null(nan_is_null=True)))


def refuse_holes(name: str, values: pa.Array | pa.ChunkedArray, options: Column) -> None:
    """Raises DataError when a column has infinite values, or missing ones of which the recipe does not say more."""
    missing = int(np.asarray(values.is_null(nan_is_null=True)).sum())
    if missing and options.missing == "error":
        raise DataError(
            f"column '{name}': {missing} of {len(values)} values are missing; say what to make of them with "
            f"-s 'data.columns.{name}.missing=indicator' (or impute, or marginalise), or leave the column out "
            f"(data.exclude)."
        )
    if pa.types.is_floating(values.type):
        infinite = int(np.asarray(pc.is_inf(values).fill_null(False)).sum())
        if infinite:
            raise DataError(f"column '{name}': {infinite} of {len(values)} values are infinite.")


def values_of(batch: pa.RecordBatch | pa.Table, column: ColumnCodec) -> pa.Array:
    """The column's values in the type it was fitted on. Raises DataError when it is not there, or of another type."""
    require(batch.schema, column.name, "the data")
    values = batch.column(column.name)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    want = arrow_type(column.arrow_type)
    if values.type == want:
        return plain_array(values)
    found = dense(values)
    plain = want.value_type if pa.types.is_dictionary(want) else want
    if pa.types.is_null(found.type):
        return pa.nulls(len(values), plain)
    found = plain_array(found)
    same = _family(found.type) == _family(plain)
    if isinstance(column, Moment) and same:
        return found
    if isinstance(column, Category | Constant | Told):
        want = plain
    elif is_number(found.type) or pa.types.is_decimal(found.type):
        want = found.type  # a number of another width is read as it is: Integer checks for whole numbers itself
    try:
        if same:
            return found.cast(want)
    except pa.ArrowInvalid:
        if is_number(plain):
            return found.cast(pa.float64(), safe=False)  # of which each is another value
    raise DataError(f"column '{column.name}': holds {values.type}, and the model was fitted on {column.arrow_type}.")


def _family(type_: pa.DataType) -> str:
    if is_number(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "moment"
    text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return "text" if text else str(type_)


def require(schema: pa.Schema, name: str, where: str) -> None:
    """Raises DataError, with the nearest name, when there is no such column."""
    if name in schema.names:
        return
    near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"It has {listed(schema.names)}."
    raise DataError(f"{where} has no column '{name}'. {hint}")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names as part of a sentence."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
