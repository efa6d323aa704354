"""The progress of a fit: a live line on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from flowcli.cli import console
from flowcli.training.progress import Evaluation, Progress


def display() -> Progress:
    """What suits this stderr and the switches given."""
    if console.settings.quiet or not console.settings.progress:
        return Told()
    return Live() if sys.stderr.isatty() and sys.stderr.encoding.lower().startswith("utf") else Lines()


def _summary(parameters: int, rows: int, held_out: int, device: str) -> str:
    return f"{rows:,} rows to learn from, {held_out:,} held out; {parameters:,} parameters; on {device}"


def _left(done: float, began: float) -> str:
    """Time left as h:mm:ss, from the share that is done."""
    if done <= 0:
        return "-:--:--"
    seconds = int((time.monotonic() - began) * (1 - done) / done)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Told(Progress):
    """What is said of any fit; of its epochs, nothing."""

    def again(self, number: int, of: int, held_out_log_prob: float) -> None:
        console.note(f"fit {number}/{of}, other rows held out: {held_out_log_prob:.4f}")

    def note(self, sentence: str) -> None:
        console.note(sentence)

    def say(self, sentence: str) -> None:
        console.warn(sentence)


class Lines(Told):
    """One line an epoch."""

    def begin(self, epochs: int, steps: int, parameters: int, rows: int, held_out: int, device: str) -> None:
        self.epochs, self.began, self.done = epochs, time.monotonic(), 0.0
        console.note(_summary(parameters, rows, held_out, device))

    def step(self, epoch: int, done: float) -> None:
        self.done = done

    def evaluated(self, evaluation: Evaluation) -> None:
        mark = " *" if evaluation.best_epoch == evaluation.epoch else ""
        console.note(
            f"epoch {evaluation.epoch}/{self.epochs}  train {evaluation.train_log_prob:.4f}  "
            f"held out {evaluation.held_out_log_prob:.4f}{mark}  {evaluation.rows_per_second:,.0f} rows/s  "
            f"left {_left(self.done, self.began)}"
        )


class Live(Told):
    """A bar with the latest figures, 80 columns wide at most."""

    def begin(self, epochs: int, steps: int, parameters: int, rows: int, held_out: int, device: str) -> None:
        console.note(_summary(parameters, rows, held_out, device))
        screen = Console(stderr=True, no_color=not console.colors())
        self.epochs, self.began, self.shown, self.last = epochs, time.monotonic(), 0.0, (math.nan, math.nan, 0.0)
        self.bars = Bars(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(14), TextColumn("{task.fields[figures]}"),
            console=screen, auto_refresh=False, transient=True,
        )  # fmt: skip
        self.task: TaskID = self.bars.add_task("fit", total=1.0, epoch=f"1/{epochs}", figures="")
        self.bars.start()

    def step(self, epoch: int, done: float) -> None:
        now = time.monotonic()
        if now - self.shown > 0.1:
            self.shown = now
            self._show(epoch, done)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.last = (evaluation.train_log_prob, evaluation.held_out_log_prob, evaluation.rows_per_second)

    def _show(self, epoch: int, done: float) -> None:
        train, held_out, speed = self.last
        figures = f"train {train:.3f}  held out {held_out:.3f}  {speed:,.0f} rows/s" if speed else "first epoch"
        self.bars.update(
            self.task, completed=done, epoch=f"{epoch}/{self.epochs}", figures=f"{figures}  {_left(done, self.began)}"
        )
        self.bars.refresh()

    def end(self) -> None:
        self.bars.stop()
