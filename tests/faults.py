"""Commands whose disk fails at a given event, in processes forked from this one, which only watches.

    python tests/faults.py [FAULT ...]

Events are every write, fsync and rename of a command. At each in turn a FAULT happens: ``ENOSPC``, ``EIO``, or
``short``, half a write and then ENOSPC; the three take turns when none is named. Prints JSON: how many events each
command has, and every way in which one of the processes did not end as it should: exit code 3, one sentence, the files
that were there before as they were, and no temporary file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from forks import forked

FAULTS = ("ENOSPC", "EIO", "short")
SMALL = ["-s", "train.epochs=1", "-s", "flow.layers=1", "-s", "flow.hidden=[4]", "-s", "score.dequantization_samples=1"]
COMMANDS: dict[str, list[str]] = {
    "fit": ["fit", "maf-affine", "t.csv", "-o", "run", "--force", *SMALL],
    "fit anew": ["fit", "maf-affine", "t.csv", "-o", "new", *SMALL],
    "score": ["score", "run", "t.csv", "-o", "s.parquet", "--force"],
    "score to csv": ["score", "run", "t.csv", "-o", "s.csv", "--force"],
    "sample": ["sample", "run", "-n", "50", "-o", "d.arrow", "--force"],
}


class Disk:
    """Counts writes, fsyncs and renames, and lets the one numbered ``fatal`` fail."""

    def __init__(self, fatal: int | None = None, fault: str = "EIO") -> None:
        self.count, self.fatal, self.fault = 0, fatal, fault
        self._watch(os, "fsync")
        self._watch(pathlib.Path, "replace")
        self._watch(pathlib.Path, "rename")
        disk = self

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                whole = memoryview(content).cast("B")
                if disk.happens():
                    if disk.fault == "short":
                        super().write(whole[: len(whole) // 2])
                    disk.fails()
                return super().write(whole)

        opened = pathlib.Path.open

        def open_(path: pathlib.Path, mode: str = "r", *more: Any, **options: Any) -> Any:
            return File(path, "w") if mode == "wb" else opened(path, mode, *more, **options)

        pathlib.Path.open = open_  # type: ignore[method-assign, assignment]

    def happens(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def fails(self) -> None:
        number = errno.EIO if self.fault == "EIO" else errno.ENOSPC
        raise OSError(number, os.strerror(number))

    def _watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            if self.happens():
                self.fails()
            return original(*arguments)

        setattr(owner, name, watched)


def run(arguments: list[str], fatal: int | None = None, fault: str = "EIO") -> tuple[int, str, int]:
    """Exit code, stderr and number of events of a command in a process of its own."""
    with tempfile.TemporaryFile() as counted:

        def prepare() -> None:
            disk = Disk(fatal, fault)
            happens = disk.happens

            def counting() -> bool:
                fails = happens()
                os.pwrite(counted.fileno(), b"%8d" % disk.count, 0)
                return fails

            disk.happens = counting  # type: ignore[method-assign]

        done = forked(arguments, prepare)
        return done.code, done.err, int(os.pread(counted.fileno(), 8, 0) or 0)


def files() -> dict[str, str]:
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path().rglob("*")) if p.is_file()
    }


def main(faults: list[str]) -> dict[str, Any]:
    os.chdir(tempfile.mkdtemp())
    pathlib.Path("t.csv").write_text("a,b\n" + "".join(f"{i % 7}.5,{i * i % 11}.25\n" for i in range(60)))
    code, said, _ = run([*COMMANDS["fit"], "-s", "train.seed=1"])
    assert code == 0, said
    wrong, counts = [], {}
    for name, arguments in COMMANDS.items():
        old = dict.fromkeys(("s.parquet", "s.csv", "d.arrow"), "before")
        for file, content in old.items():
            pathlib.Path(file).write_text(content)
        shutil.rmtree("new", ignore_errors=True)
        before, kept = files(), tempfile.mkdtemp()
        shutil.copytree("run", f"{kept}/run")
        code, said, events = run(arguments)
        assert code == 0, said
        new = files()
        counts[name] = events
        for k in range(1, events + 1):
            for fault in faults or [FAULTS[k % 3]]:
                shutil.rmtree("run")
                shutil.rmtree("new", ignore_errors=True)
                shutil.rmtree(".run.next", ignore_errors=True)
                shutil.copytree(f"{kept}/run", "run")
                for file, content in old.items():
                    pathlib.Path(file).write_text(content)
                code, said, _ = run(arguments, k, fault)
                after = files()
                changed = {file for file in before if after.get(file) != before[file]}
                # Once it is renamed into place a result can no longer be taken back: it is there, and whole.
                same = {file for file in changed if not file.startswith("run/") or file == "run/model.safetensors"}
                replaced = same and all(after.get(file) == new[file] for file in same)
                late = k >= events - 1
                errors = [line for line in said.splitlines() if line.startswith("error: ")]
                good = code == 3 and len(errors) == 1 and "Traceback" not in said and "standard output" not in said
                if not good or any(file.endswith(".part") for file in after) or (changed and not (late and replaced)):
                    wrong.append([name, k, fault, code, said[-300:], sorted(changed)])
    return {"events": counts, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:]), indent=1))
