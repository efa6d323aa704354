"""What every part of a job is: the same for every process, and for any number of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flowcli import __version__

FORMAT = 1
PART_ROWS = 1 << 18  # rows that are put together to a part, at most


@dataclass(frozen=True)
class Part:
    """Rows from number ``row`` on, in order; of an input, the row groups from ``groups[0]`` to before ``groups[1]`` of
    file number ``file``."""

    number: int
    row: int
    rows: int
    file: int = 0
    groups: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Of the part's file; names are in the order of rows."""
        return f"part-{self.number:08d}.parquet"

    @property
    def record(self) -> str:
        """The name of what is written after the part."""
        return f"{self.number:08d}.json"


@dataclass(frozen=True)
class Plan:
    """The parts, and everything that their contents follow from: ``settings`` are the model and the options; ``inputs``
    each file's name, the number of its first row, its rows and the SHA-256 of its footer. All of it is JSON."""

    command: str
    settings: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Of all parts together."""
        return self.parts[-1].row + self.parts[-1].rows

    @cached_property
    def described(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return {
            "format": FORMAT,
            "flowcli": __version__,
            "command": self.command,
            "settings": dict(self.settings),
            "inputs": [dict(file) for file in self.inputs],
            "rows": self.rows,
            "parts": [[part.row, part.rows, part.file, *part.groups] for part in self.parts],
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()

    def difference(self, other: Mapping[str, Any]) -> str:
        """What is not the same in another plan, as JSON has it."""
        mine = self.described
        settings = other.get("settings") or {}
        changed = [name for name, value in self.settings.items() if settings.get(name) != value]
        if self.command != other.get("command"):
            return "command"
        if mine["inputs"] != other.get("inputs"):
            changed.append("set of inputs")
        return changed[0] if changed else "version of flowcli"


def plan_rows(total: int, size: int) -> tuple[Part, ...]:
    """Parts of ``total`` rows, each of as many batches of ``size`` rows as fit into ``PART_ROWS``, and of one at
    least."""
    rows = max(1, PART_ROWS // size) * size
    starts = range(0, total, rows)
    return tuple(Part(i, start, min(rows, total - start)) for i, start in enumerate(starts))
