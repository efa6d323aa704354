"""What the loop tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """One line of ``metrics.jsonl``. Log-likelihoods are means in nats, in the user's units."""

    epoch: int
    step: int
    train_log_prob: float
    held_out_log_prob: float
    best_epoch: int
    lr: float
    skipped_steps: int
    rows_per_second: float
    seconds: float


class Progress:
    """Hears what happens during a fit. This one keeps quiet; the command line's print."""

    def begin(self, epochs: int, steps: int, parameters: int, rows: int, held_out: int, device: str) -> None:
        """Training starts: ``steps`` an epoch, ``rows`` to learn from."""

    def step(self, epoch: int, done: float) -> None:
        """A step was taken; ``done`` is the share of the whole fit, in [0, 1]."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """An epoch ended."""

    def again(self, number: int, of: int, held_out_log_prob: float) -> None:
        """Fit ``number`` of so many ended, which held out other rows than the first."""

    def note(self, sentence: str) -> None:
        """What the fit is at, where that takes long."""

    def say(self, sentence: str) -> None:
        """Something a user should know."""

    def end(self) -> None:
        """Training ended, well or not."""
