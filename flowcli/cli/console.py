"""What a person sees: sentences on stderr, results on stdout, and the place where an exception becomes an exit code."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from flowcli.errors import DataError, FlowcliError

INTERRUPTED = 130
TERMINATED = 143


@dataclass
class Settings:
    """The switches that every command has, as the last one parsed left them."""

    quiet: bool = False
    verbose: bool = False
    color: bool | None = None
    progress: bool = True
    debug: bool = False


settings = Settings()


def printable(text: str) -> str:
    """``text`` without control characters: a column's name must not move the cursor of a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


def quoted(name: object) -> str:
    """A file's name as a shell reads it."""
    return shlex.quote(str(name))


def counted(n: int, one: str, many: str) -> str:
    """``n`` of something, whose name has a plural."""
    return f"{n:,} {one if n == 1 else many}"


def colors() -> bool:
    """Whether stderr gets colours: asked for, or a terminal and NO_COLOR not set (no-color.org)."""
    if settings.color is not None:
        return settings.color
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _tell(text: str) -> None:
    """A line on stderr. That no one can hear it is no reason to stop."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A sentence on stderr, unless quiet."""
    if not settings.quiet:
        _tell(printable(text))


def warn(text: str) -> None:
    """A warning on stderr."""
    note(f"{_paint('warning:', '33')} {text}" if colors() else f"warning: {text}")


def result(text: str) -> None:
    """The result, on stdout. Raises DataError when that is closed."""
    if sys.stdout is None:
        raise DataError("standard output is closed.")
    print(text, flush=True)


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def leave(error: BaseException) -> NoReturn:
    """End the process as ``error`` deserves: a sentence, an exit code, and a traceback only with ``--debug``."""
    if settings.debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        # Whoever read stdout has left; Python must not find out again while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    if isinstance(error, KeyboardInterrupt):
        _tell("interrupted")
        sys.exit(INTERRUPTED)
    head = _paint("error:", "1;31") if colors() else "error:"
    if isinstance(error, FlowcliError):
        for sentence in error.args:
            _tell(f"{head} {printable(sentence)}")
        sys.exit(error.exit_code)
    if isinstance(error, OSError):
        _tell(f"{head} {printable(str(error.filename or 'standard output'))}: {error.strerror or error}.")
        sys.exit(DataError.exit_code)
    if isinstance(error, MemoryError):
        _tell(f"{head} out of memory; try fewer rows or a smaller batch.")
        sys.exit(DataError.exit_code)
    sentence = f"this is a bug in flowcli: {type(error).__name__}: {printable(str(error))[:300]} (--debug shows where)"
    _tell(f"{head} {sentence}")
    sys.exit(1)


class Signals:
    """While open, the first SIGINT or SIGTERM is noted in ``number`` and the second ends the process at once, unless
    it is ``patient``."""

    def __init__(self, patient: bool = False) -> None:
        self.number, self.patient = 0, patient
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and not self.patient:
            os._exit(128 + number)
        self.number = number

    def seen(self) -> bool:
        """Whether a signal came."""
        return self.number != 0
