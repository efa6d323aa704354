"""A posterior's run as it lies on the disk, read again without its target."""

from __future__ import annotations

import math
import pathlib
from dataclasses import dataclass
from typing import Any

from flowcli.training.again import checked, damaged, records
from flowcli.variational.ascent import Evaluation
from flowcli.variational.posterior import Posterior


@dataclass(frozen=True)
class PastPosterior:
    """A run folder, or a model file alone: then there are no ``evaluations``, and the ``manifest`` is empty."""

    name: str
    posterior: Posterior
    evaluations: list[Evaluation]
    manifest: dict[str, Any]

    @staticmethod
    def load(path: str) -> PastPosterior:
        """Runs no code. Raises ModelFileError as :meth:`Posterior.load` does, and DataError when what lies beside it is
        damaged."""
        posterior = Posterior.load(path)
        if not pathlib.Path(path).is_dir():
            return PastPosterior(path, posterior, [], {})
        lines, manifest = records(path)
        try:
            found = [_evaluation(line) for line in lines]
            return PastPosterior(path, posterior, found, checked(manifest, "target", ("total",)))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise damaged(path) from None


def _evaluation(line: dict[str, Any]) -> Evaluation:
    """What a line of ``metrics.jsonl`` holds. Raises TypeError or AttributeError for another."""
    numbers: dict[str, Any] = {k: math.nan if v is None else v + 0 for k, v in line.items()}
    return Evaluation(**numbers)
