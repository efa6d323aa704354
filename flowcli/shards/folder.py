"""The folder that parts are written to: what is there, whether it is sound, and when it is whole.

    _PLAN.json              the plan, written by whoever comes first
    part-00000000.parquet   a part, there when all of it is
    _done/00000000.json     its rows and SHA-256, written after it
    _SUCCESS.json           that everything is there: every part with its rows and SHA-256

Readers of folders of parquet pass over names that begin with ``_``. The folder may be a store's, where the same holds:
an object appears when all of it is there, and nothing is renamed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from flowcli.data import store
from flowcli.data.sink import parquet_writer
from flowcli.data.source import reading
from flowcli.data.whole import sweep, whole_file, write_whole, writing
from flowcli.errors import DataError, UsageError
from flowcli.places import is_object
from flowcli.shards.plan import Part, Plan
from flowcli.shards.shard import Shard

PLAN, DONE, SUCCESS = "_PLAN.json", "_done", "_SUCCESS.json"
CHECKERS = 8  # parts that are checked at the same time

Record = dict[str, Any]
Choose = Callable[[pa.RecordBatch], pa.RecordBatch]


class State(NamedTuple):
    """What a process found and did: its parts that were ``done`` before and those it has ``written``; how many of all
    are ``missing`` now; and how many rows the whole folder has, once none is."""

    done: int
    written: int
    missing: int
    rows: int = 0


@dataclass(frozen=True)
class Folder:
    """A plan's parts in a folder, or below a name in a store."""

    name: str
    plan: Plan

    def begin(self) -> None:
        """Write the plan, unless it is there. Raises UsageError when something else is."""
        if os.path.isfile(self.name):
            raise UsageError(f"{self.name}: is a file, and shards write a folder.")
        there = self._names()
        if PLAN not in there:
            if there:
                raise UsageError(f"{self.name}: holds other files; name a new or an empty folder.")
            self._write(PLAN, self.plan.described | {"sha256": self.plan.digest})
        found = self._read(PLAN)
        if found.get("sha256") != self.plan.digest:
            raise UsageError(
                f"{self.name}: was begun with another {self.plan.difference(found)}; name another folder, or remove "
                f"this one."
            )

    def recorded(self, parts: Sequence[Part]) -> list[Part]:
        """Those of the parts that have a record."""
        names = self._names(DONE)
        return [part for part in parts if part.record in names]

    def sound(self, parts: Sequence[Part]) -> list[Record | None]:
        """:meth:`_sound` of each."""
        with ThreadPoolExecutor(CHECKERS) as pool:
            return list(pool.map(self._sound, parts))

    def _sound(self, part: Part) -> Record | None:
        """The record of a part that is there as it was written, None of any other. Reads all of it."""
        record = self._read(f"{DONE}/{part.record}")
        if record.get("plan") != self.plan.digest or record.get("rows") != part.rows:
            return None
        with reading(self._path(part.name)):
            try:
                with self._open(part.name) as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != record.get("sha256"):  # type: ignore[arg-type]
                        return None
                    stream.seek(0)
                    written = pa.parquet.read_metadata(stream).num_rows
            except FileNotFoundError:
                return None
        return record if written == record.get("written") else None

    def write(self, part: Part, batches: Iterable[pa.RecordBatch], schema: pa.Schema, choose: Choose) -> None:
        """A part, of each batch what ``choose`` leaves of it, and when it is there, its record."""
        rows = written = 0
        with whole_file(self._path(part.name)) as beside:
            with parquet_writer(beside, schema) as sink:
                for batch in batches:
                    chosen = choose(batch)
                    sink.write(chosen)
                    rows, written = rows + batch.num_rows, written + chosen.num_rows
            if rows != part.rows:
                raise RuntimeError(f"{part.name} has {rows} rows, and not {part.rows}")
            with beside.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._write(
            f"{DONE}/{part.record}", {"plan": self.plan.digest, "rows": rows, "written": written, "sha256": digest}
        )

    def finish(self, shard: Shard) -> int:
        """Check every part and write ``_SUCCESS.json``, unless it is there: the rows of the whole folder. Raises
        DataError for a part that is not as it was written, naming the shard of so many that does it, and for parts that
        are none of the plan's."""
        found = self._read(SUCCESS)
        if found.get("plan") != self.plan.digest or not isinstance(found.get("rows"), int):
            strange = {n for n in self._names() if n.endswith(".parquet")} - {part.name for part in self.plan.parts}
            if strange:
                raise DataError(f"{self._path(min(strange))}: is no part of this job; move it away.")
            parts: list[Record] = []
            for part, record in zip(self.plan.parts, self.sound(self.plan.parts), strict=True):
                if record is None:
                    again = Shard(part.number % shard.of, shard.of)
                    raise DataError(f"{self._path(part.name)}: is not as it was written; run shard {again} again.")
                parts.append({"file": part.name} | {key: record[key] for key in ("rows", "written", "sha256")})
            found = {"plan": self.plan.digest, "rows": sum(part["written"] for part in parts), "parts": parts}
            self._write(SUCCESS, found)
        return int(found["rows"])

    def reopen(self, parts: Sequence[Part]) -> None:
        """Before parts are written: the folder is not whole, and what killed processes left of these is swept."""
        if is_object(self.name):
            with writing(self.name):
                if SUCCESS in self._names():
                    store.remove(self._path(SUCCESS))
            return
        folder = pathlib.Path(self.name)
        with writing(self.name):
            (folder / SUCCESS).unlink(missing_ok=True)
            sweep(folder, {part.name for part in parts})
            sweep(folder / DONE, {part.record for part in parts})

    def _path(self, name: str) -> str:
        return f"{self.name.rstrip('/')}/{name}"

    def _names(self, below: str = "") -> set[str]:
        """What is directly in the folder, or in one in it; nothing that is hidden."""
        where = self._path(below).rstrip("/")
        with reading(where):
            if is_object(where):
                return {name.rpartition("/")[2] for name in store.below(where, deep=False)}
            return {name for name in os.listdir(where) if name[0] != "."} if os.path.isdir(where) else set()

    def _open(self, name: str) -> IO[bytes]:
        path = self._path(name)
        return store.open_stream(path) if is_object(path) else open(path, "rb")

    def _read(self, name: str) -> Record:
        """What a JSON file holds, nothing when it is not there or damaged. Raises DataError when it cannot be read."""
        with reading(self._path(name)):
            try:
                with self._open(name) as stream:
                    found = json.load(stream)
            except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
                return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, content: Record) -> None:
        write_whole(self._path(name), json.dumps(content) + "\n")


def work(
    folder: Folder,
    shard: Shard,
    compute: Callable[[Sequence[Part]], Iterator[tuple[Part, pa.RecordBatch]]],
    schema: pa.Schema,
    choose: Choose = lambda batch: batch,
) -> State:
    """Do a shard's parts that are not done, and the last act if all are there then.

    ``compute`` gives the batches of parts, in order, of ``schema``; of each, what ``choose`` leaves is written. Every
    process looks after its last part, so that one of them at least sees them all. Raises UsageError and DataError as
    :class:`Folder` does.
    """
    folder.begin()
    own = shard.share(folder.plan.parts)
    recorded = folder.recorded(own)
    done = {part for part, record in zip(recorded, folder.sound(recorded), strict=True) if record}
    todo = [part for part in own if part not in done]
    if todo:
        folder.reopen(todo)
    for part, results in itertools.groupby(compute(todo), key=itemgetter(0)):
        folder.write(part, (batch for _, batch in results), schema, choose)
    missing = len(folder.plan.parts) - len(folder.recorded(folder.plan.parts))
    rows = 0 if missing else folder.finish(shard)
    return State(len(done), len(todo), missing, rows)
