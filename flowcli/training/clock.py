"""Where the time of a fit goes: seconds by phase, which together are all of it."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

import torch

Phase = Literal[
    "start-up", "reading", "codec", "compiling", "data", "forward", "backward", "forward and backward", "optimizer",
    "evaluation", "saving", "other",
]  # fmt: skip


class Clock:
    """Is told whenever a phase ends. This one does not listen; a :class:`Profile` does."""

    def lap(self, phase: Phase) -> None:
        """What was done since the last lap was ``phase``."""


class Profile(Clock):
    """Counts the seconds of each phase since ``began``, a time of ``time.perf_counter``.

    CUDA computes while Python goes on, so each lap first waits for it: a profiled fit is somewhat slower there.
    """

    def __init__(self, began: float) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._last = began

    def lap(self, phase: Phase) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the beginning to the last lap: the sum of all phases."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """What ``profile.json`` holds."""
        phases = {
            phase: {"seconds": round(seconds, 6), "share": round(seconds / self.total, 6)}
            for phase, seconds in self.seconds.items()
        }
        return {"seconds": round(self.total, 6), "phases": phases}

    def lines(self) -> list[str]:
        """The same for people: the phases that there were."""
        width, rows = max(map(len, self.seconds)), [*self.seconds.items(), ("all", self.total)]
        return [f"{name:<{width}} {seconds:>10.2f} s {seconds / self.total:>6.1%}" for name, seconds in rows if seconds]
