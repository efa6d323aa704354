"""Data larger than memory: groups of rows that can be read in any order."""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from flowcli.data.codec import Codec
from flowcli.data.pictures import Pictures
from flowcli.data.source import Source, reading
from flowcli.errors import DataError
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
        straight = _as_they_are(source)
        files = straight or [_copied(source, codec, data)]
        self.groups = [(file, i) for file in files for i in range(file.meta.num_row_groups)]
        sizes = [file.meta.row_group(i).num_rows for file, i in self.groups]
        self.starts: list[int] = np.cumsum([0, *sizes]).tolist()
        if self.starts[-1] == 0:
            raise DataError(f"{', '.join(source.files)}: no rows.")
        schemas = [file.meta.schema.to_arrow_schema() for file in files]
        whole = pa.unify_schemas(schemas, promote_options="permissive")
        self.names = codec.used(whole, data) if straight else whole.names  # a copy has no others
        self.schema = pa.schema([whole.field(name) for name in self.names])

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
            if isinstance(file.file, str) and os.stat(file.file).st_mtime_ns != file.changed:
                raise DataError(f"{file.file}: was changed while it was read.")
            with pa.parquet.ParquetFile(file.file, metadata=file.meta, pre_buffer=False) as parquet:
                table = parquet.read_row_group(i, self.names)
                table.validate(full=True)
                return table.cast(self.schema)


def _as_they_are(source: Source | Pictures) -> list[_File]:
    """The files, when all are parquet and their groups small; else none."""
    files: list[_File] = []
    if not isinstance(source, Source) or source.formats != {"parquet"} or source.once:
        return files
    source.schemas()
    for name in source.files:
        with reading(name):
            meta = pa.parquet.read_metadata(name)
            files.append(_File(name, meta, os.stat(name).st_mtime_ns))
        if any(meta.row_group(i).num_rows * meta.num_columns > MAX_GROUP for i in range(meta.num_row_groups)):
            return []
    return files


def _copied(source: Source | Pictures, codec: type[Codec], data: Data) -> _File:
    """A temporary file of a source's rows, gone when it is closed."""
    if isinstance(source, Pictures):
        return _copy(source, codec, data)
    try:
        return _copy(source.settled(), codec, data)
    except DataError as error:
        # In a column of text that began with whole numbers there may be a fraction further down.
        if not isinstance(error.__context__, pa.ArrowInvalid) or source.once:
            raise
        return _copy(source.settled(wide=True), codec, data)


def _copy(source: Source | Pictures, codec: type[Codec], data: Data) -> _File:
    batches = (pa.Table.from_batches([batch]) for _, batch in source.batches())
    first = next(batches, None)
    if first is None:
        raise DataError(f"{', '.join(source.files)}: no rows.")
    names = codec.used(first.schema, data)
    schema = first.select(names).schema
    rows = min(GROUP_ROWS, max(1, MAX_GROUP // codec.numbers(first.select(names), data)))
    try:
        with tempfile.NamedTemporaryFile(prefix="flowcli-") as copy:
            with pa.parquet.ParquetWriter(copy.name, schema) as writer:
                for table in itertools.chain([first], batches):
                    writer.write_table(table.select(names).cast(schema), rows)
            # Arrow's own file, open when its name goes: a Python file would be read in threads that outlive Python.
            spool = pa.OSFile(copy.name)
        return _File(spool, pa.parquet.read_metadata(spool))
    except OSError as error:
        raise DataError(
            f"a temporary copy of the data cannot be written: {error.strerror}. TMPDIR names a folder with more room."
        ) from None
