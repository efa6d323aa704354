"""Rows ↔ the flow's vectors: what every codec does, and the codec of tables."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data import columns as kinds
from flowcli.data.columns import Category, ColumnCodec, Constant, Integer, Real
from flowcli.data.noise import lattice
from flowcli.data.status import NAMES, OK, UNSEEN
from flowcli.errors import DataError
from flowcli.recipe.schema import Column, Data


@dataclass(frozen=True)
class Rows:
    """Rows read from Arrow and not yet encoded: raw numbers ``(n, features)``, context ``(n, context)`` or None, and
    each row's status."""

    raw: Tensor
    context: Tensor | None
    status: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, index: Tensor) -> Rows:
        """The rows at ``index``."""
        context = None if self.context is None else self.context[index]
        return Rows(self.raw[index], context, self.status[index.numpy()])


class Codec(ABC):
    """The reversible map between a user's rows and the flow's real vectors, with its log-determinant. Plain data."""

    given: tuple[ColumnCodec, ...]

    @property
    @abstractmethod
    def features(self) -> int:
        """Width of the flow's vector."""

    @property
    def context(self) -> int:
        """Width of the context vector."""
        return sum(column.context_width for column in self.given)

    @property
    @abstractmethod
    def discrete(self) -> bool:
        """Whether any number is dequantised."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width, when the vector is an image."""
        return None

    @property
    def text_types(self) -> dict[str, pa.DataType]:
        """What each column is read as from formats that carry no types. Whole numbers may be written ``1.0`` there, as
        many tools do beside a missing value, so those that fit into a double are read as one."""
        exact = 2**52
        return {
            name: pa.float64()
            if pa.types.is_integer(type_) and abs(getattr(self.column(name), "offset", 0)) < exact
            else type_.value_type
            if pa.types.is_dictionary(type_)
            else type_
            for name, type_ in self.types.items()
        }

    def column(self, name: str) -> ColumnCodec:
        """The codec of a column by its name."""
        return next(column for column in self.given if column.name == name)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The Arrow type of each column that is read."""
        return {column.name: kinds.arrow_type(column.arrow_type) for column in self.given}

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns that ``decode`` gives."""

    @staticmethod
    @abstractmethod
    def fit(table: pa.Table, data: Data, whole: pa.Table | None = None) -> Codec:
        """A codec for rows like these, of the columns that are ``used``; ``whole`` is the table that they were taken
        from. Raises DataError."""

    @staticmethod
    @abstractmethod
    def used(schema: pa.Schema, data: Data) -> list[str]:
        """The columns that are read. Raises DataError when one that the recipe names is not there."""

    @staticmethod
    @abstractmethod
    def numbers(table: pa.Table, data: Data) -> int:
        """About how many numbers a row of a table holds."""

    @staticmethod
    @abstractmethod
    def telling(table: pa.Table, data: Data) -> NDArray[np.int64]:
        """The rows of a table that decide what fitting a codec to it finds; what is left is told by any sample."""

    @abstractmethod
    def read(self, batch: pa.RecordBatch | pa.Table) -> Rows:
        """Raw numbers, context and statuses of a batch. Raises DataError for a missing column or a wrong type."""

    @abstractmethod
    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The flow's vectors ``(n, features)`` and log|dy/dx| ``(n,)``, float64; ``u (n, features)`` in (0, 1) says
        where in its cell each discrete value is put."""

    @property
    @abstractmethod
    def points(self) -> int:
        """How many places in its cell a row's density is averaged over, unless it is said otherwise."""

    @abstractmethod
    def places(self, raw: Tensor, samples: int | None) -> Iterator[Tensor]:
        """The places ``u (n or 1, features)`` in their cells over which a density is averaged; None is
        ``points``. A row's places do not depend on the other rows."""

    @abstractmethod
    def decode(self, y: Tensor) -> pa.RecordBatch:
        """Rows of ``schema`` for the flow's vectors ``(n, features)``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for the model file."""

    def augmented(self, raw: Tensor, coins: Tensor) -> Tensor:
        """Training rows varied as the recipe asks, by ``coins (n, 1)`` in (0, 1)."""
        return raw

    def read_given(self, batch: pa.RecordBatch | pa.Table) -> Tensor:
        """The context ``(n, context)`` of a batch that has the given columns. Raises DataError as :meth:`read` does,
        and when a value cannot be used."""
        context = []
        for column in self.given:
            numbers, codes = column.read(_values(batch, column))
            unseen = np.flatnonzero(codes == UNSEEN)
            if len(unseen) and isinstance(column, Category):
                value = str(batch.column(column.name)[int(unseen[0])].as_py())
                near = difflib.get_close_matches(value, [str(level) for level in column.levels], n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"It was fitted on {_list(map(str, column.levels))}."
                raise DataError(f"given column '{column.name}': '{value}' is not one of its levels. {hint}")
            bad = codes[codes != OK]
            if len(bad):
                raise DataError(f"given column '{column.name}': {len(bad)} values cannot be used ({NAMES[bad[0]]}).")
            context.append(column.embed(torch.from_numpy(numbers)))
        return torch.cat(context, 1)

    def _context(self, batch: pa.RecordBatch | pa.Table) -> tuple[Tensor | None, NDArray[np.int8]]:
        """The context of a batch, whatever its values, and what they make of each row's status."""
        status, context = np.zeros(batch.num_rows, np.int8), []
        for column in self.given:
            numbers, codes = column.read(_values(batch, column))
            status = np.maximum(status, codes)
            context.append(column.embed(torch.from_numpy(numbers)))
        return torch.cat(context, 1) if context else None, status


@dataclass(frozen=True)
class TableCodec(Codec):
    """The modelled columns, in order, and the given ones: chosen and typed once, at ``fit``, the same ever after."""

    columns: tuple[ColumnCodec, ...]
    given: tuple[ColumnCodec, ...] = ()

    POINTS: ClassVar[int] = 32  # places in each cell; four times that beyond two discrete columns

    @staticmethod
    def fit(table: pa.Table, data: Data, whole: pa.Table | None = None) -> TableCodec:
        """Type and scale the columns of a training table, which has those that are ``used``; ``whole`` is the table it
        was taken from. Raises DataError: missing or infinite values, unusable types, nothing left to model.
        """
        for name in table.column_names:
            refuse_holes(name, (whole or table).column(name))
        modelled = [name for name in table.column_names if name not in data.given]
        columns = fit_columns(modelled, table, data, whole or table)
        given = fit_columns(data.given, table, data, whole or table)
        if not any(column.width for column in columns):
            raise DataError("no column is left to model: all are excluded, given or constant.")
        return TableCodec(columns, given)

    @staticmethod
    def used(schema: pa.Schema, data: Data) -> list[str]:
        """The columns to model, in order, and then the given ones."""
        for name in (*(data.include or []), *data.exclude, *data.given, *data.columns):
            require(schema, name, "the data")
        left_out = {*data.exclude, *data.given}
        return [*(name for name in data.include or schema.names if name not in left_out), *data.given]

    @staticmethod
    def numbers(table: pa.Table, data: Data) -> int:
        """As many as it has columns, and a text column of the context has levels."""
        text = [n for n in data.given if not kinds.is_number(table.schema.field(n).type)]
        return len(table.column_names) + sum(len(_plain(table.column(n)).unique()) for n in text)

    @staticmethod
    def telling(table: pa.Table, data: Data) -> NDArray[np.int64]:
        """The rows that decide what :meth:`fit` makes of a table, but for the scale of its numbers: of each used column
        the least and the greatest value, one that is no whole number, and each level's first.

        Raises DataError when a used column has missing or infinite values.
        """
        return telling_rows(table.column_names, table, data)

    @property
    def modelled(self) -> tuple[ColumnCodec, ...]:
        """The columns that the flow sees: all but the constant ones."""
        return tuple(column for column in self.columns if column.width)

    @property
    def features(self) -> int:
        return len(self.modelled)

    @property
    def discrete(self) -> bool:
        return any(column.discrete for column in self.modelled)

    @property
    def types(self) -> dict[str, pa.DataType]:
        return {c.name: kinds.arrow_type(c.arrow_type) for c in self.columns} | super().types

    def column(self, name: str) -> ColumnCodec:
        return next(column for column in (*self.columns, *self.given) if column.name == name)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, self.types[column.name]) for column in self.columns])

    def read(self, batch: pa.RecordBatch | pa.Table) -> Rows:
        context, status = self._context(batch)
        raw = []
        for column in self.columns:
            numbers, codes = column.read(_values(batch, column))
            status = np.maximum(status, codes)
            if column.width:
                raw.append(torch.from_numpy(numbers))
        return Rows(torch.stack(raw, 1), context, status)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        parts = [column.encode(raw[:, i], u[:, i]) for i, column in enumerate(self.modelled)]
        return torch.stack([y for y, _ in parts], 1), torch.stack([d for _, d in parts]).sum(0)

    @property
    def points(self) -> int:
        discrete = sum(column.discrete for column in self.modelled)
        return (self.POINTS if discrete <= 2 else 4 * self.POINTS) if discrete else 1

    def places(self, raw: Tensor, samples: int | None) -> Iterator[Tensor]:
        """Spread evenly, the same for every row; one, the middle, where nothing is discrete."""
        yield from lattice((samples or self.points) if self.discrete else 1, self.features)[:, None]

    def decode(self, y: Tensor) -> pa.RecordBatch:
        """Types and levels are restored, constants put back."""
        y, place, arrays = y.double(), 0, []
        for column in self.columns:
            if column.width:
                raw = column.decode(y[:, place])
                place += 1
            else:
                raw = y.new_zeros(len(y))
            arrays.append(column.write(raw.numpy()))
        return pa.RecordBatch.from_arrays(arrays, names=[column.name for column in self.columns])

    def to_dict(self) -> dict[str, Any]:
        return {"columns": [c.to_dict() for c in self.columns], "given": [c.to_dict() for c in self.given]}

    @staticmethod
    def from_dict(codec: Mapping[str, Any]) -> TableCodec:
        """The codec that :meth:`to_dict` described. Raises ValueError, KeyError or TypeError for another."""
        plain = TableCodec(columns_of(codec["columns"]), columns_of(codec["given"]))
        names = [column.name for column in (*plain.columns, *plain.given)]
        if len(set(names)) < len(names) or not plain.features:
            raise ValueError("a column is there twice, or none is modelled")
        return plain


def columns_of(columns: Iterable[Mapping[str, Any]]) -> tuple[ColumnCodec, ...]:
    """The columns that a codec's ``to_dict`` described."""
    return tuple(kinds.from_dict(column) for column in columns)


def fit_columns(names: Iterable[str], table: pa.Table, data: Data, whole: pa.Table) -> tuple[ColumnCodec, ...]:
    """Type and scale columns of a training table; what kind each is, ``whole``, the table it was taken from, says too.

    Raises DataError for a type that cannot be modelled.
    """
    return tuple(
        _fit_column(name, _plain(table.column(name)), _plain(whole.column(name)), data.columns.get(name, Column()))
        for name in names
    )


def telling_rows(names: Iterable[str], table: pa.Table, data: Data) -> NDArray[np.int64]:
    """:meth:`TableCodec.telling` of the named columns."""
    rows: set[int] = set()
    for name in names:
        refuse_holes(name, table.column(name))
        values, asked = _plain(table.column(name)), data.columns.get(name, Column()).type
        number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if number and asked not in ("category", "bool"):
            ends = pc.min_max(values).as_py()
            rows |= {pc.index(values, ends["min"]).as_py(), pc.index(values, ends["max"]).as_py()}
            if pa.types.is_floating(values.type):
                rows |= {*np.flatnonzero(pc.not_equal(values, pc.floor(values)))[:1].tolist()}
        elif number or _family(values.type) == "text" or str(values.type).startswith(("bool", "dictionary")):
            codes = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            firsts = np.sort(np.unique(np.asarray(codes.indices), return_index=True)[1])
            # With more levels than may be a column is refused, however many more they are.
            rows |= {*firsts[: None if asked == "category" else Category.MAX_LEVELS + 1].tolist()}
    return np.array(sorted(rows), np.int64)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array; decimals and half floats, which Arrow computes little with, as doubles, and views of text as text."""
    values = column.combine_chunks()
    if pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    narrow = pa.types.is_decimal(values.type) or pa.types.is_float16(values.type)
    return values.cast(pa.float64()) if narrow else values


def _fit_column(name: str, values: pa.Array, whole: pa.Array, options: Column) -> ColumnCodec:
    kind = _kind(name, whole, options)
    kind = options.type if options.type != "auto" else kind
    distinct = pc.count_distinct(whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole)
    if distinct.as_py() == 1:
        value = values[0].as_py()
        return Constant(name, str(values.type), value)
    if kind in ("category", "bool"):
        return Category.fit(name, values, asked=options.type == "category")
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"column '{name}': holds {values.type}, so it cannot be {kind}.")
    if kind == "integer":
        Integer.fit(name, whole)  # is every value a whole number?
        return Integer.fit(name, values)
    if options.transform == "quantile":
        raise DataError(f"column '{name}': transform: quantile cannot be fitted yet.")
    Real.fit(name, whole, options.transform, options.low, options.high)  # is every value in the domain?
    return Real.fit(name, values, options.transform, options.low, options.high)


def _kind(name: str, values: pa.Array, options: Column) -> str:
    type_ = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "category"
    if pa.types.is_dictionary(values.type):
        return "category"
    if options.transform != "none" and (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
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


def refuse_holes(name: str, values: pa.Array | pa.ChunkedArray) -> None:
    """Raises DataError when a column has missing or infinite values."""
    missing = int(np.asarray(values.is_null(nan_is_null=True)).sum())
    if missing:
        raise DataError(
            f"column '{name}': {missing} of {len(values)} values are missing; drop these rows or leave the column out "
            f"(data.exclude)."
        )
    if pa.types.is_floating(values.type):
        infinite = int((~np.asarray(pc.is_finite(values))).sum())
        if infinite:
            raise DataError(f"column '{name}': {infinite} of {len(values)} values are infinite.")


def _values(batch: pa.RecordBatch | pa.Table, column: ColumnCodec) -> pa.Array:
    """The column's values in the type it was fitted on."""
    require(batch.schema, column.name, "the data")
    values = batch.column(column.name)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    want = kinds.arrow_type(column.arrow_type)
    if values.type == want:
        return values
    dense = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if pa.types.is_null(dense.type):
        return pa.nulls(len(values), want if not pa.types.is_dictionary(want) else want.value_type)
    if isinstance(column, Category | Constant):
        want = want.value_type if pa.types.is_dictionary(want) else want
        same = _family(dense.type) == _family(want)
    else:
        same = _family(dense.type) == "number"
        want = dense.type  # a number of another width is read as it is: Integer checks for whole numbers itself
    try:
        if same:
            return dense.cast(want)
    except pa.ArrowInvalid:
        pass
    raise DataError(f"column '{column.name}': holds {values.type}, and the model was fitted on {column.arrow_type}.")


def _family(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return "text" if text else str(type_)


def require(schema: pa.Schema, name: str, where: str) -> None:
    """Raises DataError, with the nearest name, when there is no such column."""
    if name in schema.names:
        return
    near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"It has {_list(schema.names)}."
    raise DataError(f"{where} has no column '{name}'. {hint}")


def _list(names: Sequence[str] | Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
