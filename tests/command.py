"""Run the real command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("FLOWCLI_")} | {"OMP_NUM_THREADS": "1"}


def flowcli(
    *arguments: object, cwd: Path | None = None, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process, with stdout and stderr as text. Standard input is empty unless given."""
    done = subprocess.run(
        [sys.executable, "-m", "flowcli", *map(str, arguments)],
        cwd=cwd,
        input=stdin or b"",
        capture_output=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def succeed(*arguments: object, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """stdout of a command that must succeed."""
    done = flowcli(*arguments, cwd=cwd, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout
