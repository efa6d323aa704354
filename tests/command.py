"""Run the command line in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("FLOWCLI_")} | {"OMP_NUM_THREADS": "1"}


@functools.cache
def _kept(program: str) -> subprocess.Popen[str]:
    """What a command imports takes seconds, so each is forked from one process that has it. It ends with this one."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(program))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def ask(program: str, request: object) -> Any:
    """The answer, a JSON line, of a program beside this one that is kept running."""
    process = _kept(program)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@functools.cache
def served() -> Path:
    """A folder with a ``flowcli`` for shell lines, of a process that is kept running (:mod:`pipes`)."""
    process = _kept("pipes.py")
    assert process.stdout is not None
    folder = process.stdout.readline().rstrip("\n")
    assert folder
    return Path(folder)


def flowcli(
    *arguments: object, cwd: Path | None = None, stdin: bytes | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process, with stdout and stderr as text. Standard input is empty unless given; ``environment`` is
    added to the usual one."""
    words = list(map(str, arguments))
    request: dict[str, Any] = {"arguments": words, "cwd": str(cwd or Path.cwd()), "stdin": (stdin or b"").hex()}
    answer = ask("zygote.py", request | {"environment": environment or {}})
    out = bytes.fromhex(answer["out"]).decode()
    return subprocess.CompletedProcess(["flowcli", *words], answer["code"], out, answer["err"])


def succeed(*arguments: object, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """stdout of a command that must succeed."""
    done = flowcli(*arguments, cwd=cwd, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout
