"""Shards that are killed at an event and run again, in processes forked from this one, which only watches.

    python tests/kill_shards.py KILLS [SEED]

Events are what a shard does: every batch scored, write, fsync and rename, in order. Two to four shards of a job run
side by side; each is killed at a random event, or ends; then all run again, until none is killed. After every round the
folder is looked at: ``_SUCCESS.json`` must not be there while a part is not, and what is there must be whole. Jobs go
on until there were so many kills. Prints JSON: ``kills``, ``jobs``, how many of them ended ``identical`` to one that
nobody disturbed, file by file, and with ``every_row_once``, and ``early``, how often success was said too early.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pyarrow.parquet as pq
import torch
from shard_cases import make_lake

from flowcli.cli.sharded import score_shard
from flowcli.model import Model
from flowcli.scoring import Level, RowScorer, Scorer
from flowcli.shards import inputs

SHARDS = (2, 3, 4)
ALIVE = 0.2  # share of the processes that are left alone


class Events:
    """Counts events, and kills the process at the one numbered ``fatal``: half-way through, if it is a write."""

    def __init__(self, fatal: int | None = None) -> None:
        self.count, self.fatal = 0, fatal
        self._watch(RowScorer, "__call__")
        self._watch(os, "fsync")
        self._watch(pathlib.Path, "replace")
        events, opened, write_bytes = self, pathlib.Path.open, pathlib.Path.write_bytes

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                whole = memoryview(content).cast("B")
                if events.happens():
                    super().write(whole[: len(whole) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(whole)

        def open_(path: pathlib.Path, mode: str = "r", *more: Any, **options: Any) -> Any:
            return File(path, "w") if mode == "wb" else opened(path, mode, *more, **options)

        def write_half(path: pathlib.Path, content: bytes) -> int:
            if self.happens():
                write_bytes(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write_bytes(path, content)

        pathlib.Path.open = open_  # type: ignore[method-assign, assignment]
        pathlib.Path.write_bytes = write_half  # type: ignore[method-assign, assignment]

    def happens(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def _watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            if self.happens():
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(owner, name, watched)


def started(work: Callable[[], None]) -> int:
    """A forked process that does ``work``."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 (the process ends here, whatever it is)
            traceback.print_exc()
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """What a reader of the folder sees."""
    paths = folder.rglob("*")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file() and p.name[0] != "."}


def success_is_early(folder: pathlib.Path, whole: dict[str, bytes]) -> bool:
    return (folder / "_SUCCESS.json").exists() and content(folder) != whole


def main(kills: int, seed: int) -> dict[str, Any]:
    inputs.PART_ROWS = 200  # several parts a file
    made = make_lake(pathlib.Path(tempfile.mkdtemp()))
    scorer = RowScorer(Scorer(Model.load(made / "model.safetensors"), Level(alpha=0.1)), ("id",))

    def shard(name: str, output: pathlib.Path, fatal: int | None = None, counted: pathlib.Path | None = None) -> int:
        def work() -> None:
            events = Events(fatal)
            score_shard(name, scorer, [str(made / "lake")], str(output), False)
            if counted:
                counted.write_text(str(events.count))

        return started(work)

    assert ended(shard("0/1", made / "whole", counted=made / "count")) == 0
    total, whole = int((made / "count").read_text()), content(made / "whole")
    rows = pq.read_table(made / "whole").num_rows
    draw, killed, jobs, identical, early, once = random.Random(seed), 0, 0, 0, 0, 0
    while killed < kills:
        job, n = made / f"job-{jobs}", draw.choice(SHARDS)
        jobs += 1
        dead = True
        while dead:
            fatal = [None if draw.random() < ALIVE else draw.randint(1, total // n) for _ in range(n)]
            codes = [ended(pid) for pid in [shard(f"{i}/{n}", job, fatal[i]) for i in range(n)]]
            assert set(codes) <= {0, -signal.SIGKILL}, codes
            killed, dead = killed + codes.count(-signal.SIGKILL), -signal.SIGKILL in codes
            early += success_is_early(job, whole)
        identical += content(job) == whole
        once += sorted(pq.read_table(job)["row_id"].to_pylist()) == list(range(rows))
    return {
        "events": total, "parts": sum(name.startswith("part-") for name in whole), "kills": killed, "jobs": jobs,
        "identical": identical, "every_row_once": once, "early": early,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int((sys.argv[2:] or [0])[0]))))
