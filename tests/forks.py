"""The command line in processes forked from one that has imported everything: hundreds of them in a minute.

Only for programs of their own (:mod:`zygote`, :mod:`faults`, :mod:`hostile`), which do not compute anything themselves.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from flowcli.cli import main as command_line

for module in ("scoring", "training.fit", "data.gallery", "data.sink", "cli.formats", "report", "tune"):
    importlib.import_module(f"flowcli.{module}")
torch.optim.AdamW([torch.zeros(1)])  # which imports much at its first use


@dataclass
class Done:
    """How a process ended; ``memory`` is what it needed at most beyond what it began with, in bytes."""

    code: int
    out: bytes
    err: str
    seconds: float
    memory: int


def forked(
    arguments: list[str], prepare: Callable[[], None] = lambda: None, stdin: bytes = b"", limit: float = 60.0
) -> Done:
    """Run ``flowcli`` with ``arguments`` after ``prepare``; a process that takes longer than ``limit`` is killed."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate((given, out, err)):
                os.dup2(stream.fileno(), number)
            torch.set_num_threads(1)
            signal.alarm(int(limit))
            code: object = 0
            sys.argv = ["flowcli", *arguments]
            at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                prepare()
                command_line()
            except SystemExit as error:
                code = error.code
            for text in (sys.stdout, sys.stderr):
                text.flush()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first
            os.write(2, b"\0%d" % (grown * 1024))
            os._exit(code if isinstance(code, int) else int(code is not None))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        said, _, grown = err.read().partition(b"\0")
        return Done(status, out.read(), said.decode(errors="replace"), seconds, int(grown or 0))
