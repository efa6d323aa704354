"""``fit``: recipe and rows → Model, and a run folder if asked."""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowcli.data.codec import Rows
from flowcli.errors import TrainingError, UsageError
from flowcli.model import Model
from flowcli.recipe import Recipe
from flowcli.scoring.method import ingredients
from flowcli.training.board import Board
from flowcli.training.clock import Clock, Profile
from flowcli.training.group import Group
from flowcli.training.loop import Diverged, Interrupted, Trainer
from flowcli.training.prepare import Prepared, as_recipe, prepare, random_rows
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.rows import digest
from flowcli.training.run import BOARD, Fingerprint, Run, describe_all, versions
from flowcli.training.state import State, copy_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SAVE_SECONDS = 20.0  # between saves, at least
SAVE_SHARE = 0.05  # of the time is spent on saving, at most
MAX_CALIBRATION = 100_000
ROUND_TRIPS = 256  # held-out rows on which the inverse is measured


def fit(
    recipe: Recipe | Mapping[str, Any] | str,
    frame: pd.DataFrame | pa.Table | None = None,
    *,
    run: str | pathlib.Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    force: bool = False,
    resume: bool = False,
    init_from: Model | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Model:
    """Fit a recipe (a Recipe, its dict, a path or a shipped name) to a frame, or to the recipe's ``data.files``.

    ``run`` is a folder to write; ``resume`` goes on with the one that is there; ``init_from`` starts from a fitted
    model's weights. Raises UsageError, DataError, TrainingError or ModelFileError, with a sentence for the user.
    """
    prepared = prepare(as_recipe(recipe, overrides), frame)
    model = train(prepared, run, progress, force, resume, init_from, stopped)
    assert model is not None  # of one process
    return model


def train(
    prepared: Prepared,
    run: str | pathlib.Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
    resume: bool = False,
    init_from: Model | None = None,
    stopped: Callable[[], bool] = lambda: False,
    profile: Profile | None = None,
    group: Group | None = None,
) -> Model | None:
    """The part of :func:`fit` that comes after reading. ``stopped`` is asked often; what there is by then is saved.
    ``profile`` counts where the time goes, and is written into the run. Of a ``group`` the first process writes the
    run and has the Model; the others have None.

    Raises UsageError, DataError, TrainingError, ModelFileError, and Interrupted when ``stopped`` says so.
    """
    group = group or Group()
    progress, clock = progress or Progress(), profile or Clock()
    began, folder = time.monotonic(), pathlib.Path(run) if run is not None else None
    if init_from is not None:
        _start_from(prepared, init_from)
    fingerprint = _fingerprint(prepared)
    group.same(fingerprint)
    clock.lap("other")
    trainer = Trainer(
        prepared.flow, prepared.codec, prepared.baseline, prepared.rows, prepared.held_out, prepared.recipe.train,
        progress, clock, group,
    )  # fmt: skip
    start: State | None = None
    evaluations: list[Evaluation] = []
    record: Run | None = None
    if folder is not None and group.first:
        if group.begun is not None:
            record = Run.begun(folder, pathlib.Path(group.begun))
        else:
            record = Run.going_on(folder) if resume else Run.create(folder, force)
        if resume or record.resumable:
            start, evaluations = record.read_state(fingerprint, progress.say)
        group.begin(str(record.folder))
    start = group.state(start)
    if group.any(start is not None and start.counters.finished and record is not None and record.finished):
        if not record:
            return None
        progress.say(f"{record.target}: is finished already; nothing to do")
        record.finish()
        return Model.load(record.folder)
    if start and start.counters.processes != group.size:
        progress.say(
            f"{folder}: was fitted by {_processes(start.counters.processes)} and goes on with "
            f"{_processes(group.size)}, which add in another order: the result will not be the same to the last digit."
        )
    board: Board | None = None
    due, before = 0.0, start.counters.step if start else 0

    def on_state(state: State, evaluation: Evaluation | None) -> None:
        nonlocal due, board
        evaluations.extend([evaluation] if evaluation else [])
        if record and time.monotonic() > due:
            start = time.monotonic()
            save(record, state)
            cost = time.monotonic() - start
            due = time.monotonic() + max(SAVE_SECONDS, cost / SAVE_SHARE)
        if record and prepared.recipe.train.log and evaluation:  # after the first save: the folder is then a run's
            board = board or Board(record.folder / BOARD, before)
            board.write(evaluation)

    def save(record: Run, state: State, beside: Sequence[NDArray[np.float64]] = ()) -> Model:
        """Write all that there is at an epoch's end; return the best model so far. ``beside`` is what other fits have
        of the rows that they held out."""
        now = copy_of(prepared.flow)
        prepared.flow.load_state_dict(state.best)
        clock.lap("saving")
        model = _best(prepared, state, beside)
        clock.lap("evaluation")
        record.write_model(model)  # first, since it is what makes the folder a run's
        record.write_recipe(prepared.recipe)
        prepared.flow.load_state_dict(now)
        record.write_metrics(evaluations)
        record.write_state(state, evaluations, fingerprint)
        return model

    try:
        state = trainer.run(start, on_state, stopped)
        prepared.flow.to("cpu").zero_grad()
        clock.lap("other")
        if record and prepared.splits:
            save(record, state)
        beside = _further(prepared, trainer, stopped)
        if record is None:
            group.wait()
            return _best(prepared, state, beside) if group.first else None
        model = save(record, state, beside)
        record.write_manifest(_manifest(prepared, model, state, time.monotonic() - began, trainer.threads))
        clock.lap("saving")
        if profile:
            record.write_profile(profile)
        record.finish()
        group.wait()
        return model
    except (Interrupted, TrainingError) as error:
        clock.lap("other")
        if record and trainer.state:
            model = save(record, trainer.state)
            if isinstance(error, TrainingError):
                failed = {"failed": str(error)}
                record.write_manifest(
                    _manifest(prepared, model, trainer.state, time.monotonic() - began, trainer.threads) | failed
                )
        clock.lap("saving")
        group.wait()
        raise
    finally:
        if board:
            board.close()
        if record:
            record.clear()


def _processes(number: int) -> str:
    return f"{number} processes" if number > 1 else "one process"


def _further(prepared: Prepared, first: Trainer, stopped: Callable[[], bool]) -> list[NDArray[np.float64]]:
    """What the held-out rows' scores are made of, for each of the fits that hold out other rows than the ``first``: as
    many as end in the fit's time, if each takes as long as that (cross-conformal prediction: Vovk 2015). One that goes
    wrong is left out: the first is what it was.

    Raises as :meth:`Trainer.run` does otherwise.
    """
    found: list[NDArray[np.float64]] = []
    each, began = first.counters.seconds, time.monotonic()
    for number, other in enumerate(prepared.further(), 2):
        spent = first.group.firsts(each + time.monotonic() - began)
        if spent + each > first.max_seconds:
            left = len(prepared.splits) + 2 - number
            first.progress.say(f"train.max_time: leaves no time for {left} of the fits that hold out other rows")
            break
        trainer = Trainer(
            other.flow, other.codec, other.baseline, other.rows, other.held_out, other.recipe.train, Progress(),
            first.clock, first.group,
        )  # fmt: skip
        try:
            counters = trainer.run(stopped=stopped).counters
        except Diverged:
            first.progress.say(f"fit {number}/{len(prepared.splits) + 1} did not stay finite, and is left out")
            first.clock.lap("other")
            continue
        other.flow.to("cpu").zero_grad()
        if first.group.first:
            found.append(_calibrated(other)[2])
        first.clock.lap("evaluation")
        first.progress.again(number, len(prepared.splits) + 1, counters.best)
    return found


def _start_from(prepared: Prepared, model: Model) -> None:
    ours, theirs = prepared.flow.state_dict(), model.flow.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise UsageError("--init-from: that model's flow has another shape than this recipe's on this data.")
    prepared.flow.load_state_dict(theirs)


def _best(prepared: Prepared, state: State, beside: Sequence[NDArray[np.float64]]) -> Model:
    """A Model of the best weights, which the flow has now, calibrated with the density that ``score`` will compute."""
    draft, rows, parts = _calibrated(prepared)
    baseline = draft.density(rows, draft.baseline.log_prob).complete
    some = random_rows(prepared.held_out, ROUND_TRIPS, prepared.recipe.train.seed)
    about = {
        "rows": len(prepared.rows),
        "held_out_rows": len(prepared.held_out),
        "held_out_log_prob": _mean(parts[0]),
        "held_out_gaussian_log_prob": _mean(baseline),
        "round_trip_error": draft.round_trip_error(some),
        "parameters": sum(p.numel() for p in prepared.flow.parameters()),
        "best_epoch": state.counters.best_epoch,
        "epochs": state.counters.epoch,
        "steps": state.counters.step,
        "skipped_steps": state.counters.skipped,
    }
    return prepared.model(np.concatenate([parts, *beside], 1), about)


def _calibrated(prepared: Prepared) -> tuple[Model, Rows, NDArray[np.float64]]:
    """A Model of the weights that the flow has now, held-out rows, and what their scores are made of."""
    rows = prepared.calibration
    if len(rows) > MAX_CALIBRATION:
        picked = np.random.default_rng(prepared.recipe.train.seed).choice(len(rows), MAX_CALIBRATION, replace=False)
        rows = rows.take(torch.from_numpy(np.sort(picked)))
    prepared.flow.eval()
    draft = prepared.model(np.zeros((1, 1)), {})
    return draft, rows, ingredients(draft, rows, own=True)


def _manifest(prepared: Prepared, model: Model, state: State, seconds: float, threads: int) -> dict[str, Any]:
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "versions": versions(),
        "device": str(prepared.recipe.train.device),
        "processes": state.counters.processes,
        "threads": threads,
        "seed": prepared.recipe.train.seed,
        "data": describe_all(prepared.files),
        "split": {"train": len(prepared.rows), "held_out": len(prepared.held_out)},
        "seconds": {"total": round(seconds, 3), "training": round(state.counters.seconds, 3)},
        "metrics": model.about,
    }


def _fingerprint(prepared: Prepared) -> Fingerprint:
    """What a resumed fit must share with the one it goes on with: recipe, columns and rows, and what states hold."""
    recipe = prepared.recipe.model_dump(mode="json")
    for name in ("max_time", "log"):
        recipe["train"].pop(name)
    recipe["data"].pop("files")
    found = {
        f"{section}.{key}": json.dumps(value)
        for section, options in recipe.items()
        if isinstance(options, dict)
        for key, value in options.items()
    }
    found["the optimizer"] = "AdamW of one vector"
    found["the codec"] = hashlib.sha256(json.dumps(prepared.codec.to_dict(), sort_keys=True).encode()).hexdigest()
    found["the training rows"], found["the held-out rows"] = prepared.rows.digest, digest(prepared.held_out)
    return found


def _mean(log_prob: NDArray[np.float64]) -> float | None:
    """The mean over the rows that have a density, as ``evaluate`` takes it; None when there is none."""
    finite = log_prob[np.isfinite(log_prob)]
    return float(finite.mean()) if len(finite) else None
