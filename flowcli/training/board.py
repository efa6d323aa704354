"""``train.log: [tensorboard]``: the figures of each evaluation, to look at while a fit goes on."""

from __future__ import annotations

import math
import pathlib
from dataclasses import asdict

from flowcli.errors import UsageError
from flowcli.training.progress import Evaluation

SCALARS = ("train_log_prob", "held_out_log_prob", "lr", "skipped_steps", "rows_per_second")


class Board:
    """Writes to ``folder``, where a fit that goes on from ``step`` may have got further before."""

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, evaluation: Evaluation) -> None:
        """Its figures that are finite, by step, so that they can be seen at once."""
        figures = asdict(evaluation)
        for name in SCALARS:
            if math.isfinite(figures[name]):
                self.writer.add_scalar(name, figures[name], evaluation.step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def require_tensorboard() -> None:
    """Raises UsageError where it is not installed."""
    try:
        import tensorboard  # noqa: F401 (as late as possible: it takes half a second)
    except ImportError:
        raise UsageError(
            "train.log: tensorboard is not installed here; pip install 'flowcli[tensorboard]' brings it."
        ) from None
