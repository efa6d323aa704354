"""Data larger than memory: groups of rows that can be read in any order."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from flowcli.data import store
from flowcli.data.codec import Codec
from flowcli.data.pictures import Pictures
from flowcli.data.source import Source, first_line, footer, open_parquet, reading
from flowcli.errors import DataError
from flowcli.places import is_object
from flowcli.recipe.schema import Data

GROUP_ROWS = 16_384  # of a group in a copy, at most
MAX_GROUP = 1 << 20  # numbers in a group, at most: a good shuffle has many groups in memory at once


@dataclass(frozen=True)
class _File:
    """A parquet file, by its path or, if it is a copy, open; ``changed`` is when it was last, in nanoseconds."""

    file: str | pa.NativeFile
    meta: pa.parquet.FileMetaData
    changed: int = 0


class Groups:
    """The columns of a source that a codec uses, in groups of rows: the row groups of its parquet files; or those of a
    temporary copy, in parquet, where there are none or too large ones. ``TMPDIR`` says where the copy lies.

    ``starts`` are the number of rows before each group, and the number of all at its end.
    """

    def __init__(self, source: Source | Pictures, codec: type[Codec], data: Data) -> None:
        """Raises DataError as ``source`` and the codec's ``used`` do, and when there is no room for the copy."""
        files = _as_they_are(source)
        if files and isinstance(source, Source):
            whole = source.schema()
            names = codec.used(whole, data)
        else:
            files = [_copied(source, codec, data)]
            whole = files[0].meta.schema.to_arrow_schema()
            names = whole.names  # a copy has no others
        if not names:
            raise DataError("no column is left to model: all are excluded.")
        self.schema = pa.schema([whole.field(name) for name in names])
        # Files and groups without rows may have any columns.
        parts = [(file, i) for file in files for i in range(file.meta.num_row_groups)]
        self.groups = [(file, i) for file, i in parts if file.meta.row_group(i).num_rows]
        sizes = [file.meta.row_group(i).num_rows for file, i in self.groups]
        self.starts: list[int] = np.cumsum([0, *sizes]).tolist()
        if not sizes:
            raise DataError(f"{', '.join(source.files)}: no rows.")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def rows(self) -> int:
        """Of all groups together."""
        return self.starts[-1]

    def read(self, group: int) -> pa.Table:
        """The rows of a group. Raises DataError when its file cannot be read, or is another than it was."""
        file, i = self.groups[group]
        with reading(str(file.file)):
            if isinstance(file.file, str) and _changed(file.file) != file.changed:
                raise DataError(f"{file.file}: was changed while it was read.")
            with open_parquet(file.file, file.meta) as parquet:
                table = parquet.read_row_group(i, self.schema.names)
                table.validate(full=True)
                return table.select(self.schema.names).cast(self.schema)


def _changed(name: str) -> int:
    """When a file or an object was changed last, in nanoseconds."""
    return int(store.info(name).mtime_ns) if is_object(name) else os.stat(name).st_mtime_ns


def _as_they_are(source: Source | Pictures) -> list[_File]:
    """The files, when all are parquet and their groups small; else none."""
    files: list[_File] = []
    if not isinstance(source, Source) or source.formats != {"parquet"} or source.once:
        return files
    for name in source.files:
        with reading(name):
            meta = footer(name)
            files.append(_File(name, meta, _changed(name)))
        if any(meta.row_group(i).num_rows * meta.num_columns > MAX_GROUP for i in range(meta.num_row_groups)):
            return []
    return files


def _copied(source: Source | Pictures, codec: type[Codec], data: Data) -> _File:
    """A temporary file of the used columns of a source's rows, gone when it is closed."""
    if isinstance(source, Pictures) or source.once:
        return _copy(source, codec, data)
    whole = source.schema()
    # What is not used may hold anything.
    types = {name: whole.field(name).type for name in codec.used(whole, data)}
    try:
        return _copy(dataclasses.replace(source, types=types), codec, data, whole)
    except DataError as error:
        integers = [name for name, type_ in types.items() if pa.types.is_integer(type_)]
        if not isinstance(error.__context__, pa.ArrowInvalid) or not integers:
            raise
    types |= dict.fromkeys(_not_whole(source, types, integers), pa.float64())
    whole = pa.schema([(name, types.get(name, whole.field(name).type)) for name in whole.names])
    return _copy(dataclasses.replace(source, types=types), codec, data, whole)


def _not_whole(source: Source, types: dict[str, pa.DataType], integers: list[str]) -> list[str]:
    """The columns of text that began with whole numbers and further down have others, or larger ones than an integer
    holds. Raises DataError when they have something that is no number."""
    found: set[str] = set()
    for _, batch in dataclasses.replace(source, types=types | dict.fromkeys(integers, pa.float64())).batches():
        for name in integers:
            x = batch.column(name).cast(pa.float64(), safe=False)
            other = pc.or_(pc.not_equal(x, pc.floor(x)), pc.greater_equal(pc.abs(x), 2.0**63))
            found |= {name} if pc.any(other).as_py() else set()
    return sorted(found)


def _copy(source: Source | Pictures, codec: type[Codec], data: Data, whole: pa.Schema | None = None) -> _File:
    """The copy, in the types of ``whole`` or else of the first batch."""
    tables = (pa.Table.from_batches([batch]) for _, batch in source.batches())
    first = next(tables, None)
    if first is None:
        raise DataError(f"{', '.join(source.files)}: no rows.")
    whole = whole or first.schema
    schema = pa.schema([whole.field(name) for name in codec.used(whole, data)])
    rows = min(GROUP_ROWS, max(1, MAX_GROUP // max(1, codec.numbers(first.select(schema.names), data))))
    try:
        with tempfile.NamedTemporaryFile(prefix="flowcli-") as copy:
            with pa.parquet.ParquetWriter(copy.name, schema) as writer:
                for table in _gathered(itertools.chain([first], tables), schema, rows):
                    writer.write_table(table, rows)
            # Arrow's own file, open when its name goes: a Python file would be read in threads that outlive Python.
            spool = pa.OSFile(copy.name)
        return _File(spool, pa.parquet.read_metadata(spool))
    except OSError as error:
        raise DataError(
            f"a temporary copy of the data cannot be written: {error.strerror}. TMPDIR names a folder with more room."
        ) from None
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{', '.join(source.files)}: the parts do not fit together: {first_line(error)}") from None


def _gathered(tables: Iterable[pa.Table], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The tables' columns in a schema, small ones put together until they have so many rows."""
    parts: list[pa.Table] = []
    for table in tables:
        parts.append(table.select(schema.names).cast(schema))
        if sum(map(len, parts)) >= rows:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)
