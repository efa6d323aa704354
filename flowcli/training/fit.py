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
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli import recipe as recipes
from flowcli.data.codec import Codec, Rows, TableCodec
from flowcli.data.image import COLUMN as IMAGE
from flowcli.data.image import ImageCodec
from flowcli.data.noise import uniforms
from flowcli.data.pictures import Pictures, hold_pictures
from flowcli.data.source import STDIN, Source
from flowcli.data.status import MISSING, OK
from flowcli.errors import DataError, TrainingError, UsageError
from flowcli.model import Baseline, Model, dtype_of, new_flow, rows_at_once
from flowcli.recipe import Column, Image, Recipe
from flowcli.scoring.method import ingredients
from flowcli.training.loop import HELD_OUT, Interrupted, Trainer, batch_size
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.run import Fingerprint, Run, describe, versions
from flowcli.training.state import State, copy_of

if TYPE_CHECKING:
    import pandas as pd

SAVE_SECONDS = 20.0  # between saves, at least
SAVE_SHARE = 0.05  # of the time is spent on saving, at most
MAX_CALIBRATION = 100_000
ROUND_TRIPS = 256  # held-out rows on which the inverse is measured
MIN_ROWS = 8
MAX_NUMBERS = 1 << 25  # rows times columns that the baseline is taken from, at most


class Prepared:
    """Recipe and data brought together: codec, flow at its start, training and held-out rows. No training yet."""

    def __init__(self, recipe: Recipe, table: pa.Table, held_out: pa.Table | None, files: Sequence[str] = ()) -> None:
        self.files = tuple(files)  # that the rows came from
        if table.num_rows < MIN_ROWS:
            raise DataError(f"{table.num_rows} rows are too few to fit anything; {MIN_ROWS} is the least.")
        whole = table
        if held_out is not None and recipe.data.image:  # what holds for the pictures to learn from holds for these too
            whole = pa.concat_tables([table, held_out], promote_options="permissive")
        if held_out is None:
            order = np.random.default_rng(recipe.train.seed).permutation(table.num_rows)
            assert isinstance(recipe.data.validation, float)
            held = max(1, round(recipe.data.validation * table.num_rows))
            if held >= table.num_rows - 1:
                raise UsageError(f"data.validation: {recipe.data.validation} leaves no rows to train on.")
            table, held_out = table.take(np.sort(order[held:])), table.take(np.sort(order[:held]))
        self.codec: Codec = (ImageCodec if recipe.data.image else TableCodec).fit(table, recipe.data, whole)
        self.rows = _usable(self.codec.read(table), "training")
        kept_out = self.codec.read(held_out)
        self.held_out = _usable(kept_out, "held-out")
        # Unseen levels and impossible values are part of what held-out rows are: p-values must know of them.
        self.calibration = kept_out.take(torch.from_numpy(np.flatnonzero(kept_out.status < MISSING)))
        self.recipe = _resolved(recipe, self.codec, len(self.rows))
        torch.manual_seed(recipe.train.seed)
        self.flow = new_flow(self.recipe, self.codec)
        some = _some(self.rows, MAX_NUMBERS // self.codec.features, recipe.train.seed)
        y, _ = self.codec.encode(some.raw, uniforms(recipe.train.seed, HELD_OUT + 1, 0, *some.raw.shape))
        self.baseline = Baseline.of(y)
        batch = rows_at_once(self.codec.features)
        self.flow.double().start(y[:batch], None if some.context is None else some.context[:batch])
        self.flow.to(dtype_of(recipe))

    def model(self, calibration: NDArray[np.float64], about: dict[str, Any]) -> Model:
        """A Model of the flow as it is now, calibrated on what held-out scores are made of, ``(k, rows)``."""
        least = np.finfo(np.float64).min  # a file keeps no infinities
        finite = torch.from_numpy(np.nan_to_num(calibration, nan=least, neginf=least))
        return Model(self.recipe, self.codec, self.flow, self.baseline, finite, about)


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
    return train(prepared, run, progress, force, resume, init_from, stopped)


def train(
    prepared: Prepared,
    run: str | pathlib.Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
    resume: bool = False,
    init_from: Model | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Model:
    """The part of :func:`fit` that comes after reading. ``stopped`` is asked often; what there is by then is saved.

    Raises UsageError, TrainingError, ModelFileError, and Interrupted when ``stopped`` says so.
    """
    progress = progress or Progress()
    began, folder = time.monotonic(), pathlib.Path(run) if run is not None else None
    if init_from is not None:
        _start_from(prepared, init_from)
    trainer = Trainer(prepared.flow, prepared.codec, prepared.rows, prepared.held_out, prepared.recipe.train, progress)
    fingerprint = _fingerprint(prepared)
    start: State | None = None
    evaluations: list[Evaluation] = []
    record: Run | None = None
    if folder is not None and resume:
        record = Run.going_on(folder)
        start, evaluations = record.read_state(fingerprint, progress.say)
        if start.counters.finished:
            model = Model.load(record.folder)
            if record.finished:
                progress.say(f"{folder}: is finished already; nothing to do")
            else:
                record.write_manifest(_manifest(prepared, model, start, start.counters.seconds))
            record.finish()
            return model
    elif folder is not None:
        record = Run.create(folder, force)
    due = 0.0

    def on_evaluation(evaluation: Evaluation, state: State) -> None:
        nonlocal due
        evaluations.append(evaluation)
        if record and time.monotonic() > due:
            start = time.monotonic()
            save(record, state)
            cost = time.monotonic() - start
            due = time.monotonic() + max(SAVE_SECONDS, cost / SAVE_SHARE)

    def save(record: Run, state: State) -> Model:
        """Write all that there is at an epoch's end; return the best model so far."""
        now = copy_of(prepared.flow)
        prepared.flow.load_state_dict(state.best)
        model = _best(prepared, state)
        record.write_model(model)  # first, since it is what makes the folder a run's
        record.write_recipe(prepared.recipe)
        prepared.flow.load_state_dict(now)
        record.write_metrics(evaluations)
        record.write_state(state, evaluations, fingerprint)
        return model

    try:
        state = trainer.run(start, on_evaluation, stopped)
        prepared.flow.to("cpu")
        if record is None:
            return _best(prepared, state)
        model = save(record, state)
        record.write_manifest(_manifest(prepared, model, state, time.monotonic() - began))
        record.finish()
        return model
    except (Interrupted, TrainingError):
        if record and trainer.state:
            save(record, trainer.state)
        raise
    finally:
        if record:
            record.clear()


def as_recipe(recipe: Recipe | Mapping[str, Any] | str, overrides: Sequence[str] = ()) -> Recipe:
    """A checked Recipe from any of the forms ``fit`` takes. Raises UsageError."""
    if isinstance(recipe, str):
        return recipes.load(recipe, overrides)
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    return recipes.from_dict(json.loads(json.dumps(recipe)), overrides)


def prepare(recipe: Recipe, frame: pd.DataFrame | pa.Table | None = None) -> Prepared:
    """Read the data, fit the codec, build the flow. What ``fit --dry-run`` does. Raises UsageError or DataError."""
    files: list[str] = []
    if frame is not None:
        table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
        if recipe.data.image and IMAGE not in table.column_names:
            raise DataError(f"the frame has no column '{IMAGE}', and the recipe says that the data are images.")
    elif recipe.data.files:
        if recipe.data.image is None and hold_pictures(recipe.data.files):
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image": Image()})})
        source = _source(recipe, recipe.data.files)
        table, files = source.table(), list(source.files)
    else:
        raise UsageError("no data: name files after the recipe, or under data.files in it.")
    if table.num_columns == 0 or table.num_rows == 0:
        raise DataError("the data has no rows.")
    held_out = None
    if isinstance(recipe.data.validation, str):
        types = {field.name: field.type for field in table.schema}
        source = _source(recipe, [recipe.data.validation], types)
        held_out, files = source.table(), [*files, *source.files]
    return Prepared(recipe, table, held_out, files)


def _source(recipe: Recipe, names: Sequence[str], types: Mapping[str, pa.DataType] | None = None) -> Source | Pictures:
    image = recipe.data.image
    return Pictures.of(names, image.column) if image else Source.of(names, types=types)


def _usable(rows: Rows, which: str) -> Rows:
    """The rows that have a density. Raises DataError when there is none."""
    keep = torch.from_numpy(np.flatnonzero(rows.status == OK))
    if len(keep) == 0:
        raise DataError(f"no {which} row can be used: each has a missing, unseen or infinite value, or is unreadable.")
    return rows if len(keep) == len(rows) else rows.take(keep)


def _some(rows: Rows, n: int, seed: int) -> Rows:
    """``n`` rows at random, or all of them, in random order."""
    order = np.random.default_rng(seed).permutation(len(rows))[: max(n, 1)]
    return rows.take(torch.from_numpy(order))


def _resolved(recipe: Recipe, codec: Codec, rows: int) -> Recipe:
    """The recipe with what was found in the data written into it."""
    columns = dict(recipe.data.columns)
    for column in (*(codec.columns if isinstance(codec, TableCodec) else ()), *codec.given):
        options = columns.get(column.name, Column())
        if column.kind != "constant":
            kind = "bool" if column.arrow_type == "bool" else column.kind
            columns[column.name] = options.model_copy(update={"type": kind})
    train = recipe.train.model_copy(update={"batch_size": batch_size(recipe.train, rows)})
    data = recipe.data
    image = data.image.model_copy(update={"bits": codec.bits}) if isinstance(codec, ImageCodec) and data.image else None
    found = {
        "image": image,
        "columns": columns,
        "files": [file if file == STDIN else str(pathlib.Path(file).absolute()) for file in data.files],
        "validation": data.validation
        if isinstance(data.validation, float)
        else str(pathlib.Path(data.validation).absolute()),
    }
    return recipe.model_copy(update={"data": data.model_copy(update=found), "train": train})


def _start_from(prepared: Prepared, model: Model) -> None:
    ours, theirs = prepared.flow.state_dict(), model.flow.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise UsageError("--init-from: that model's flow has another shape than this recipe's on this data.")
    prepared.flow.load_state_dict(theirs)


def _best(prepared: Prepared, state: State) -> Model:
    """A Model of the best weights, which the flow has now, calibrated with the density that ``score`` will compute."""
    rows = prepared.calibration
    if len(rows) > MAX_CALIBRATION:
        picked = np.random.default_rng(prepared.recipe.train.seed).choice(len(rows), MAX_CALIBRATION, replace=False)
        rows = rows.take(torch.from_numpy(np.sort(picked)))
    prepared.flow.eval()
    draft = prepared.model(np.zeros((1, 1)), {})
    parts = ingredients(draft, rows)
    baseline = draft.rows_log_prob(rows, draft.baseline.log_prob)
    some = _some(prepared.held_out, ROUND_TRIPS, prepared.recipe.train.seed)
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
    return prepared.model(parts, about)


def _manifest(prepared: Prepared, model: Model, state: State, seconds: float) -> dict[str, Any]:
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "versions": versions(),
        "device": str(prepared.recipe.train.device),
        "threads": torch.get_num_threads(),
        "seed": prepared.recipe.train.seed,
        "data": [describe(file) for file in prepared.files if file != STDIN],
        "split": {"train": len(prepared.rows), "held_out": len(prepared.held_out)},
        "seconds": {"total": round(seconds, 3), "training": round(state.counters.seconds, 3)},
        "metrics": model.about,
    }


def _fingerprint(prepared: Prepared) -> Fingerprint:
    """What a resumed fit must share with the one it goes on with: recipe, columns and rows."""
    recipe = prepared.recipe.model_dump(mode="json")
    recipe["train"].pop("max_time")
    recipe["data"].pop("files")
    found = {
        f"{section}.{key}": json.dumps(value)
        for section, options in recipe.items()
        if isinstance(options, dict)
        for key, value in options.items()
    }
    found["the codec"] = hashlib.sha256(json.dumps(prepared.codec.to_dict(), sort_keys=True).encode()).hexdigest()
    for name, rows in (("the training rows", prepared.rows), ("the held-out rows", prepared.held_out)):
        digest = hashlib.sha256()
        for part in (rows.raw, rows.context):
            digest.update(b"" if part is None else part.numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def _mean(log_prob: NDArray[np.float64]) -> float | None:
    """The mean over the rows that have a density, as ``evaluate`` takes it; None when there is none."""
    finite = log_prob[np.isfinite(log_prob)]
    return float(finite.mean()) if len(finite) else None
