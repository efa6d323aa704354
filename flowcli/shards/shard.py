"""Which of the parts a process does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flowcli.errors import UsageError

T = TypeVar("T")

ENVIRONMENT = "env"
# What torchrun, srun and an indexed job of Kubernetes tell a process; the last does not say of how many by itself.
VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)


@dataclass(frozen=True)
class Shard:
    """Process ``index`` (0, 1, …) of ``of``."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Every ``of``-th part."""
        return parts[self.index :: self.of]

    @staticmethod
    def named(asked: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """The shard that ``i/n`` says, or that ``env`` finds in the environment. Raises UsageError."""
        if asked == ENVIRONMENT:
            asked = _found(environment)
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", asked)
        if not match:
            raise UsageError(f"--shard: '{asked}' is neither i/n, such as 0/3, nor {ENVIRONMENT}.")
        index, of = int(match[1]), int(match[2])
        if index >= of:
            raise UsageError(f"--shard: {asked} is none of 0/n … n−1/n: shards count from 0.")
        return Shard(index, of)


def _found(environment: Mapping[str, str]) -> str:
    for index, of in VARIABLES:
        if index in environment and of in environment:
            return f"{environment[index]}/{environment[of]}"
    if "JOB_COMPLETION_INDEX" in environment:
        raise UsageError("--shard env: set JOB_COMPLETIONS to the job's completions, which Kubernetes does not tell.")
    pairs = ", ".join("/".join(pair) for pair in VARIABLES)
    raise UsageError(f"--shard env: the environment has none of {pairs}; say --shard i/n.")
