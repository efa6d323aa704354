"""The code blocks of README.md and of recipes/*.md, and a shell that runs them.

A block with a language is run by a test, or the line before it says why not: ``<!-- not run in a test: why -->``. One
without a language is what a command prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from command import ENVIRONMENT, served

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- not run in a test: [^\n]+ -->\n\n?)?^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PROGRAMS = {"torchrun": "-m torch.distributed.run", "python": ""}


def blocks(text: str, language: str) -> list[str]:
    """The blocks of a language that are to be run."""
    return [code for unrun, name, code in BLOCK.findall(text) if name == language and not unrun]


def languages(text: str) -> set[str]:
    """The languages of the blocks that are to be run."""
    return {name for unrun, name, _ in BLOCK.findall(text) if not unrun}


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, by bash that stops at the first error, with this interpreter and its flowcli."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name, words in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder,
        env=ENVIRONMENT | {"PATH": f"{programs}:{served()}:{ENVIRONMENT['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
