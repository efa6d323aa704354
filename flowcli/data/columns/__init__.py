"""The kinds of columns that a table can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from flowcli.data.columns.category import Category
from flowcli.data.columns.column import Cells, ColumnCodec, arrow_type, is_number, plainly, robust_scale
from flowcli.data.columns.constant import Constant
from flowcli.data.columns.gated import Gated
from flowcli.data.columns.integer import Counted, Integer
from flowcli.data.columns.moment import Moment
from flowcli.data.columns.real import Real
from flowcli.data.columns.told import Told

CODECS: dict[str, type[ColumnCodec]] = {
    c.kind: c for c in (Real, Integer, Counted, Category, Moment, Gated, Told, Constant)
}


def from_dict(column: Mapping[str, Any]) -> ColumnCodec:
    """The codec that :meth:`ColumnCodec.to_dict` described. Raises ValueError, KeyError or TypeError for another."""
    codec = plainly(CODECS[column["kind"]], {key: value for key, value in column.items() if key != "kind"})
    try:
        codec.check()
        codec.write(codec.usual()[None])
    except (pa.ArrowException, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"column '{codec.name}': {error}") from None
    return codec


def columns_of(columns: Iterable[Mapping[str, Any]]) -> tuple[ColumnCodec, ...]:
    """The columns that a codec's ``to_dict`` described."""
    return tuple(map(from_dict, columns))


__all__ = [
    "Category", "Cells", "ColumnCodec", "Constant", "Counted", "Gated", "Integer", "Moment", "Real", "Told",
    "arrow_type", "columns_of", "from_dict", "is_number", "plainly", "robust_scale",
]  # fmt: skip
