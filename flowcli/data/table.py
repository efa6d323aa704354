"""The codec of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.codec import Codec, Rows
from flowcli.data.columns import Cells, ColumnCodec, Counted, Gated, Integer, Told, arrow_type, columns_of, is_number
from flowcli.data.columns.column import Codes, Floats
from flowcli.data.kinds import fit_columns, refuse_holes, require, telling_rows, values_of
from flowcli.data.noise import lattice
from flowcli.data.status import MISSING
from flowcli.errors import DataError
from flowcli.recipe.schema import Column, Data, reached


@dataclass(frozen=True)
class TableCodec(Codec):
    """The modelled columns, in order, and the given ones: chosen and typed once, at ``fit``, the same ever after.

    The flow's vector has the discrete numbers of all columns first and then the continuous ones. ``parents`` has for
    each discrete number one before it that the flow begins from, or None; or it is empty.
    """

    columns: tuple[ColumnCodec, ...]
    given: tuple[ColumnCodec, ...] = ()
    imputed: tuple[str, ...] = ()
    parents: tuple[int | None, ...] = ()

    @staticmethod
    def fit(table: pa.Table, data: Data, whole: pa.Table | None = None) -> TableCodec:
        """Type and scale the columns of a training table, which has those that are ``used``; ``whole`` is the table it
        was taken from. Raises DataError: values that may not be missing or infinite, unusable types, nothing left to
        model."""
        whole = whole or table
        for name in table.column_names:
            refuse_holes(name, whole.column(name), data.columns.get(name, Column()))
        modelled = [name for name in table.column_names if name not in data.given]
        columns = fit_columns(modelled, table, data, whole, counting=True)
        given = fit_columns(data.given, table, data, whole, counting=False)
        if not any(column.width for column in columns):
            raise DataError("no column is left to model: all are excluded, given or constant.")
        for name in data.given:
            if data.columns.get(name, Column()).missing in ("indicator", "marginalise"):
                refuse_holes(name, whole.column(name), Column())  # a context must have a value, if an imputed one
        imputed = tuple(c.name for c in (*columns, *given) if data.columns.get(c.name, Column()).missing == "impute")
        return TableCodec(columns, given, imputed)

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
        text = [n for n in data.given if not is_number(table.schema.field(n).type)]
        return len(table.column_names) + sum(len(table.column(n).combine_chunks().unique()) for n in text)

    @staticmethod
    def telling(table: pa.Table, data: Data) -> NDArray[np.int64]:
        return telling_rows(table.column_names, table, data)

    @cached_property
    def slots(self) -> list[list[int]]:
        """Where in the flow's vector the numbers of each column are: the discrete ones with few cells first, the hour
        before the minute before the flight, then the continuous ones as they stand."""
        place = {column.name: [i] for i, column in enumerate(self._discrete)}
        ends = accumulate((int(column.continuous) for column in self.columns), initial=len(place))
        return [
            [*place.get(column.name, []), *range(end, end + column.continuous)]
            for column, end in zip(self.columns, ends, strict=False)
        ]

    @cached_property
    def _discrete(self) -> list[ColumnCodec]:
        """The columns that have a discrete number, in the order of these."""
        having = [column for column in self.columns if column.cells is not None]
        return sorted(having, key=lambda column: len(column.cells.frequencies) if column.cells else 0)

    @cached_property
    def features(self) -> int:
        return sum(column.width for column in self.columns)

    @cached_property
    def cells(self) -> tuple[Cells, ...]:
        return tuple(column.cells for column in self._discrete if column.cells is not None)

    @property
    def dequantised(self) -> bool:
        return self.points > 1

    @property
    def types(self) -> dict[str, pa.DataType]:
        return {c.name: arrow_type(c.arrow_type) for c in self.columns} | super().types

    def column(self, name: str) -> ColumnCodec:
        return next(column for column in (*self.columns, *self.given) if column.name == name)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, self.types[column.name]) for column in self.columns])

    def read(self, batch: pa.RecordBatch | pa.Table) -> Rows:
        context, status = self._context(batch)
        lost = status == MISSING
        raw = torch.empty(batch.num_rows, self.features, dtype=torch.float64)
        missing = torch.zeros(batch.num_rows, self.features, dtype=torch.bool)
        for column, slots in zip(self.columns, self.slots, strict=True):
            numbers, codes = self._read_column(batch, column)
            missing[:, slots] = torch.from_numpy(codes == MISSING)[:, None]
            status = np.maximum(status, codes)
            raw[:, slots] = torch.from_numpy(numbers)
        return Rows(raw, context, status, lost, missing if missing.any() else None)

    def statuses(self, batch: pa.RecordBatch | pa.Table) -> NDArray[np.int8]:
        """Each column's status in each row, ``(n, columns)``."""
        return np.stack([self._read_column(batch, column)[1] for column in self.columns], 1)

    def _read_column(self, batch: pa.RecordBatch | pa.Table, column: ColumnCodec) -> tuple[Floats, Codes]:
        values = values_of(batch, column)
        numbers, codes = column.read(values)
        if isinstance(column, Told):
            codes = column.read_beside(values, [values_of(batch, self.column(key)) for key in column.by])
        return self._filled(column, numbers, codes)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slopes = self.encode_columns(raw, u)
        return y, log_slopes.sum(1)

    def encode_columns(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The flow's vectors ``(n, features)`` and each column's part of log|dy/dx|, ``(n, columns)``."""
        y, parts = torch.empty_like(raw), []
        for column, slots in zip(self.columns, self.slots, strict=True):
            y[:, slots], log_slope = column.encode(raw[:, slots], u[:, slots])
            parts.append(log_slope)
        return y, torch.stack(parts, 1)

    def decode_raw(self, y: Tensor) -> Tensor:
        """Raw numbers for the flow's vectors, both ``(n, features)``."""
        raw = torch.empty_like(y)
        for column, slots in zip(self.columns, self.slots, strict=True):
            raw[:, slots] = column.decode(y[:, slots])
        return raw

    @property
    def points(self) -> int:
        """What its columns need; four times that where three or more depend on where in their cells they are."""
        points = [column.points for column in self.columns]
        return max(points) * (4 if sum(n >= Integer.points for n in points) > 2 else 1)

    def placeless(self, raw: Tensor) -> Tensor:
        parts = [column.placeless(raw[:, slots]) for column, slots in zip(self.columns, self.slots, strict=True)]
        return torch.stack(parts).all(0)

    def places(self, raw: Tensor, samples: int | None) -> Iterator[Tensor]:
        """Spread evenly, the same for every row; one, the middle, where they do not matter to any."""
        yield from lattice(1 if self.placeless(raw).all() else samples or self.points, self.features)[:, None]

    def decode(self, y: Tensor) -> pa.RecordBatch:
        """Types and levels are restored, constants put back, and what others tell is looked up."""
        raw, arrays = self.decode_raw(y.double()).numpy(), {}
        for column, slots in zip(self.columns, self.slots, strict=True):
            arrays[column.name] = column.write(raw[:, slots])
        waiting = [column for column in self.columns if isinstance(column, Told)]
        while waiting:  # those whose columns are there by now
            names = {column.name for column in waiting}
            ready = [column for column in waiting if not names & {*column.by}]
            for column in ready:
                arrays[column.name] = column.write_beside([arrays[key] for key in column.by])
            waiting = [column for column in waiting if column not in ready]
        return pa.RecordBatch.from_arrays([*arrays.values()], schema=self.schema)

    def to_dict(self) -> dict[str, Any]:
        return {
            "columns": [c.to_dict() for c in self.columns],
            "given": [c.to_dict() for c in self.given],
            "imputed": [*self.imputed],
            "parents": [*self.parents],
        }

    @staticmethod
    def from_dict(codec: Mapping[str, Any]) -> TableCodec:
        """The codec that :meth:`to_dict` described. Raises ValueError, KeyError or TypeError for another."""
        plain = TableCodec(
            columns_of(codec["columns"]), columns_of(codec["given"]), tuple(codec["imputed"]), tuple(codec["parents"])
        )
        names = [column.name for column in (*plain.columns, *plain.given)]
        if len(set(names)) < len(names) or not plain.features or not {*plain.imputed} <= {*names}:
            raise ValueError("a column is there twice, or none is modelled")
        before = [parent is None or (type(parent) is int and 0 <= parent < i) for i, parent in enumerate(plain.parents)]
        if len(before) not in (0, len(plain.cells)) or not all(before):
            raise ValueError("a column begins from one that is not before it")
        if any(
            isinstance(column, Gated | Told | Counted) or getattr(column, "missing", None) for column in plain.given
        ):
            raise ValueError("a given column is of a kind that cannot be")
        types = {name: str(getattr(type_, "value_type", type_)) for name, type_ in plain.types.items()}
        for column in plain.columns:
            if isinstance(column, Told) and [*column.types] != [types.get(key) for key in column.by]:
                raise ValueError(f"column '{column.name}' is told by columns of other types")
        told = {column.name: column.by for column in plain.columns if isinstance(column, Told)}
        for name, by in told.items():
            if name in reached(told, by) or not {*by} <= {column.name for column in plain.columns}:
                raise ValueError(f"column '{name}' is told by what is not there")
        return plain
