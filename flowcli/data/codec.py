"""Rows ↔ the flow's vectors: what every codec does."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcli.data.columns import Category, Cells, ColumnCodec, arrow_type
from flowcli.data.columns.column import Codes, Floats
from flowcli.data.kinds import listed, values_of
from flowcli.data.status import MISSING, NAMES, OK, UNSEEN
from flowcli.errors import DataError
from flowcli.recipe.schema import Data


@dataclass(frozen=True)
class Rows:
    """Rows read from Arrow and not yet encoded: raw numbers ``(n, features)``, context ``(n, context)`` or None, and
    each row's status. ``lost`` are those of which nothing can be said; ``missing (n, features)`` are the numbers that
    are not there, None where there are none such."""

    raw: Tensor
    context: Tensor | None
    status: NDArray[np.int8]
    lost: NDArray[np.bool_]
    missing: Tensor | None = None

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, index: Tensor) -> Rows:
        """The rows at ``index``."""
        context, missing = (None if part is None else part[index] for part in (self.context, self.missing))
        picked = index.numpy()
        return Rows(self.raw[index], context, self.status[picked], self.lost[picked], missing)

    @property
    def holes(self) -> NDArray[np.bool_]:
        """Which rows have a number that is not there, ``(n,)``."""
        return np.zeros(len(self), bool) if self.missing is None else self.missing.any(1).numpy()


class Codec(ABC):
    """The reversible map between a user's rows and the flow's real vectors, with its log-determinant. Plain data."""

    given: tuple[ColumnCodec, ...]
    imputed: tuple[str, ...] = ()  # columns whose missing values are taken for usual ones

    @property
    @abstractmethod
    def features(self) -> int:
        """Width of the flow's vector."""

    @property
    def context(self) -> int:
        """Width of the context vector."""
        return sum(column.context_width for column in self.given)

    @property
    def cells(self) -> tuple[Cells, ...]:
        """What each of the discrete numbers can be, which come first in the flow's vector."""
        return ()

    @property
    def rows_at_once(self) -> int:
        """How many rows go through a flow at once: 8192, and fewer of wide ones, which need more memory each."""
        cells = sum(len(column.frequencies) for column in self.cells)
        return max(64, min(8192, (1 << 20) // self.features, (1 << 24) // max(cells, 1)))

    @property
    def parents(self) -> tuple[int | None, ...]:
        """Of each discrete number, the one before it that the flow begins from; empty where none has one."""
        return ()

    @property
    @abstractmethod
    def dequantised(self) -> bool:
        """Whether a row's density depends on where in a cell its numbers are put, and is averaged over places."""

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
            if pa.types.is_integer(type_) and abs(self.column(name).largest) < exact
            else type_.value_type
            if pa.types.is_dictionary(type_)
            else pa.timestamp("s")  # which JSON has a way to read
            if pa.types.is_date(type_)
            else type_
            for name, type_ in self.types.items()
        }

    def column(self, name: str) -> ColumnCodec:
        """The codec of a column by its name."""
        return next(column for column in self.given if column.name == name)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The Arrow type of each column that is read."""
        return {column.name: arrow_type(column.arrow_type) for column in self.given}

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

    def placeless(self, raw: Tensor) -> Tensor:
        """Which rows' density does not depend on the places, ``(n,)``."""
        return torch.full((len(raw),), not self.dequantised)

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
            numbers, codes = self._filled(column, *column.read(values_of(batch, column)))
            unseen = np.flatnonzero(codes == UNSEEN)
            if len(unseen) and isinstance(column, Category):
                value = str(batch.column(column.name)[int(unseen[0])].as_py())
                near = difflib.get_close_matches(value, [str(level) for level in column.levels], n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"It was fitted on {listed(map(str, column.levels))}."
                raise DataError(f"given column '{column.name}': '{value}' is not one of its levels. {hint}")
            bad = codes[codes != OK]
            if len(bad):
                raise DataError(f"given column '{column.name}': {len(bad)} values cannot be used ({NAMES[bad[0]]}).")
            context.append(column.embed(torch.from_numpy(numbers)))
        return torch.cat(context, 1)

    def given_status(self, batch: pa.RecordBatch | pa.Table) -> Codes:
        """What the given columns make of each row's status ``(n,)``: only rows that are ``OK`` can be drawn for. Raises
        DataError as :meth:`read` does."""
        return self._context(batch)[1]

    def _filled(self, column: ColumnCodec, numbers: Floats, codes: Codes) -> tuple[Floats, Codes]:
        """Raw numbers ``(n, width)``, usual ones where a value is missing, which is all right if that is imputed."""
        gone = codes == MISSING
        filled = np.where(gone[:, None], column.usual(), numbers)
        return filled, np.where(gone, np.int8(OK), codes) if column.name in self.imputed else codes

    def _context(self, batch: pa.RecordBatch | pa.Table) -> tuple[Tensor | None, NDArray[np.int8]]:
        """The context of a batch, whatever its values, and what they make of each row's status."""
        status, context = np.zeros(batch.num_rows, np.int8), []
        for column in self.given:
            numbers, codes = self._filled(column, *column.read(values_of(batch, column)))
            status = np.maximum(status, codes)
            context.append(column.embed(torch.from_numpy(numbers)))
        return torch.cat(context, 1) if context else None, status
