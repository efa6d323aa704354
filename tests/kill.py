"""Fits that are killed at an event and resumed, in processes forked from this one, which only watches.

    python tests/kill.py TRIALS [SEED] [stream]

Events are what a fit does to the world and to itself: every step, write, fsync and rename, in order. Killing by the
clock would mostly hit before the first save and prove nothing. Prints JSON: of ``trials``, how many ``resumed`` from a
state and how many ended ``identical`` to the undisturbed fit, byte for byte; and for every item that a state holds,
under ``mutants``, whether a resume without it also ended identical, which it must not. With ``stream`` the rows are
read anew in each epoch, in three windows, and states are saved between these too.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pathlib
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flowcli.errors import ModelFileError
from flowcli.training import rows
from flowcli.training.loop import Trainer
from flowcli.training.state import State

fitting = importlib.import_module("flowcli.training.fit")  # the package's own `fit` is the function

# So many steps on so few rows that the best epoch is neither the first nor the last, and patience ends the fit.
RECIPE = {
    "flow": {"type": "maf", "layers": 2, "hidden": [16]},
    "train": {"epochs": 40, "patience": 4, "batch_size": 32, "lr": 2e-2, "ema": 0.9},
    "score": {"dequantization_samples": 1},
}


STREAM = "rows.parquet"


def table() -> pa.Table:
    x = np.random.default_rng(1).standard_normal((120, 3))
    return pa.table({"a": x[:, 0], "b": x[:, 0] * x[:, 1], "k": np.floor(3 * x[:, 2])})


class Events:
    """Counts events, and kills the process at the one numbered ``fatal``: half-way through, if it is a write."""

    def __init__(self, fatal: int | None = None) -> None:
        self.count, self.fatal = 0, fatal
        self._watch(Trainer, "_step")
        self._watch(os, "fsync")
        self._watch(pathlib.Path, "replace")
        write = pathlib.Path.write_bytes

        def write_bytes(path: pathlib.Path, content: bytes) -> int:
            if self.happens():
                write(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, content)

        pathlib.Path.write_bytes = write_bytes  # type: ignore[method-assign]

    def happens(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def _watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            if self.happens():
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(owner, name, watched)


def child(work: Callable[[], None]) -> int:
    """The wait status of a forked process that does ``work``."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except ModelFileError:
            os._exit(5)
        except BaseException:  # noqa: BLE001 (the process ends here, whatever it is)
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def fit(run: pathlib.Path, resume: bool = False, force: bool = False) -> None:
    torch.set_num_threads(1)
    fitting.SAVE_SECONDS, fitting.SAVE_SHARE = 0.0, math.inf  # a save after every epoch and window
    rows.WINDOW, rows.BATCHES = 120, 1
    file = run.parent / STREAM
    if file.exists():
        overrides = [f"data.files={file}", "train.stream=true", "train.seed=7"]  # the best epoch is neither end
        fitting.fit(RECIPE, run=run, overrides=overrides, resume=resume, force=force)
    else:
        fitting.fit(RECIPE, table(), run=run, resume=resume, force=force)


def zeros(tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    return {k: torch.zeros_like(v) if k.endswith(ending) else v for k, v in tensors.items()}


def counter(**changed: Any) -> Callable[[State], None]:
    return lambda state: state.counters.__dict__.update(changed)


MUTANTS: dict[str, Callable[[State], None]] = {
    "weights": lambda state: state.__dict__.update(weights=state.average),
    "average": lambda state: state.__dict__.update(average=state.weights),
    "best weights": lambda state: state.__dict__.update(best=state.average),
    "optimizer": lambda state: state.__dict__.update(optimizer={}),
    "first moments": lambda state: state.__dict__.update(optimizer=zeros(state.optimizer, "exp_avg")),
    "second moments": lambda state: state.__dict__.update(optimizer=zeros(state.optimizer, "exp_avg_sq")),
    "optimizer steps": lambda state: state.__dict__.update(optimizer=zeros(state.optimizer, "step")),
    "schedule": counter(step=0),
    "place in the data and seeds": lambda state: counter(epoch=state.counters.epoch - 1)(state),
    "patience": lambda state: counter(best_epoch=state.counters.epoch)(state),
    "best figure": counter(best=-1e300),
    "rate after stepping back": counter(rate=0.5),
    "weights averaged": counter(averaged=0),
}


def mutated(run: pathlib.Path, change: Callable[[State], None]) -> None:
    of = State.of

    def changed(*arguments: Any) -> State:
        state = of(*arguments)
        change(state)
        return state

    State.of = staticmethod(changed)  # type: ignore[method-assign, assignment]
    fit(run, resume=True)


def main(trials: int, seed: int, stream: bool = False) -> dict[str, Any]:
    torch.optim.AdamW([torch.zeros(1)])  # what an optimizer imports at its first use is imported once, here
    folder = pathlib.Path(tempfile.mkdtemp())
    if stream:
        pq.write_table(table(), folder / STREAM, row_group_size=8)
    whole, counted = folder / "whole", folder / "count"

    def undisturbed() -> None:
        events = Events()
        fit(whole)
        counted.write_text(str(events.count))

    assert child(undisturbed) == 0
    total, model = int(counted.read_text()), (whole / "model.safetensors").read_bytes()
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    best, last = json.loads(lines[-1])["best_epoch"], json.loads(lines[-1])["epoch"]
    assert 4 < best < last - 2 < 38, (best, last)
    draw = random.Random(seed)

    def killed(run: pathlib.Path, event: int) -> None:
        def doomed() -> None:
            Events(event)
            fit(run)

        assert child(doomed) == signal.SIGKILL

    resumed = identical = 0
    for trial in range(trials):
        run = folder / f"trial-{trial}"
        killed(run, draw.randint(1, total))
        status = os.waitstatus_to_exitcode(child(lambda run=run: fit(run, resume=True)))
        if status == 5:  # killed before there was a state; nothing to resume
            assert not (run / "resume.json").exists()
            assert child(lambda run=run: fit(run, force=True)) == 0
        else:
            assert status == 0
            resumed += 1
        assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}
        identical += (run / "model.safetensors").read_bytes() == model
    mutants = {}
    places = [int(total * epoch / (last + 1)) for epoch in (best - 4, best + 2)]  # before the best epoch, and after
    if stream:  # within one epoch, which has three windows
        places = list(range(places[0], places[0] + total // (last + 1), 6))
    for name, change in ({"place in an epoch": counter(window=0)} if stream else MUTANTS).items():
        same = []
        for place in places:
            run = folder / f"{name}-{place}"
            killed(run, place)
            ended = child(lambda run=run, change=change: mutated(run, change))
            same.append(ended == 0 and (run / "model.safetensors").read_bytes() == model)
        mutants[name] = all(same)
    return {
        "events": total, "epochs": last, "best_epoch": best, "trials": trials, "resumed": resumed,
        "identical": identical, "mutants": mutants,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int((sys.argv[2:] or [0])[0]), "stream" in sys.argv)))
