"""Recipe and data brought together, before any training."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from flowcli import recipe as recipes
from flowcli.baseline import Baseline
from flowcli.build import dtype_of, new_flow
from flowcli.data.codec import Codec, Rows
from flowcli.data.columns import Constant, Gated, Told, arrow_type, is_number
from flowcli.data.groups import Groups
from flowcli.data.image import COLUMN as IMAGE
from flowcli.data.image import ImageCodec
from flowcli.data.kinds import plain_table, require
from flowcli.data.noise import uniforms
from flowcli.data.pictures import Pictures, hold_pictures
from flowcli.data.source import Source
from flowcli.data.table import TableCodec
from flowcli.errors import DataError, UsageError
from flowcli.flows.levels import Levels
from flowcli.model import Model
from flowcli.neighbours import MOST, Reference
from flowcli.places import from_folder
from flowcli.recipe import Image, Recipe
from flowcli.training.board import require_tensorboard
from flowcli.training.clock import Clock
from flowcli.training.encode import HELD_OUT
from flowcli.training.loop import batch_size
from flowcli.training.rows import Streamed, Together, TrainingRows, usable
from flowcli.training.survey import MIN_ROWS, Split, require_rows, survey
from flowcli.training.tree import parents
from flowcli.training.trim import trimmed

if TYPE_CHECKING:
    import pandas as pd

RECIPE_KINDS = {"counted": "integer"}  # what a recipe calls a kind of column, where it is not its name
MAX_NUMBERS = 1 << 25  # rows times columns that the baseline is taken from, at most
ENOUGH = 2_000  # held-out rows, from which on no fit follows to hold out others
LARGE = 1 << 30  # bytes of rows that are streamed rather than held in memory, unless the recipe says


class Prepared:
    """Codec, flow at its start, training and held-out rows. No training yet."""

    def __init__(self, recipe: Recipe, split: Split, files: Sequence[str] = ()) -> None:
        self.asked, self.splits = recipe, split.further
        self.files = tuple(files)  # that the rows came from
        whole = split.table
        if recipe.data.image or not isinstance(recipe.data.validation, str):  # else a file that need not be as the rows
            try:
                whole = pa.concat_tables([split.table, split.held_out], promote_options="permissive")
            except pa.ArrowException:
                raise DataError("data.validation: its pictures are not of the type of those to learn from.") from None
        self.codec: Codec = codec_of(recipe).fit(split.table, recipe.data, whole)
        some = _usable(self.codec.read(split.table.slice(0, split.sampled)), "training")
        batch = batch_size(recipe.train, len(split.stream or some))
        self.rows: TrainingRows = Streamed(split.stream, self.codec, batch) if split.stream else Together(some)
        kept_out = self.codec.read(split.held_out)
        self.held_out = _usable(kept_out, "held-out")
        # Unseen levels and impossible values are part of what held-out rows are: p-values must know of them.
        self.calibration = kept_out.take(torch.from_numpy(np.flatnonzero(~kept_out.lost)))
        self.recipe = _resolved(recipe, self.codec, batch, split.stream is not None)
        some = random_rows(some, MAX_NUMBERS // self.codec.features, recipe.train.seed)
        y, _ = self.codec.encode(some.raw, uniforms(recipe.train.seed, HELD_OUT + 1, 0, *some.raw.shape))
        self.baseline = Baseline.of(y, some.missing, self.codec.cells)
        told = parents(y, some.missing, self.codec.cells)
        if isinstance(self.codec, TableCodec) and told:
            before = tuple(told[i][0] if i in told else None for i in range(len(self.codec.cells)))
            self.codec = replace(self.codec, parents=before)
        torch.manual_seed(recipe.train.seed)
        self.flow = new_flow(self.recipe, self.codec)
        for levels in self.flow.modules():
            if isinstance(levels, Levels):
                for i, (_, log_ratio) in told.items():
                    levels.know(i, log_ratio)
        if some.missing is not None:
            y, _ = self.baseline.completed(y, some.missing, torch.randn_like(y))
        self.reference: Reference | None = None
        if recipe.score.method == "neighbours":
            if self.codec.shape:
                raise UsageError("score.method: neighbours is for tables, and these are images.")
            picked = np.random.default_rng(recipe.train.seed).permutation(len(y))[:MOST]
            beside = len(self.calibration) if len(picked) + len(self.calibration) <= MOST else 0
            kept = self.calibration.take(torch.arange(beside))
            middle, _ = self.codec.encode(kept.raw, torch.full_like(kept.raw, 0.5))
            self.reference = Reference(y[np.sort(picked)], self.baseline.expected(middle, kept.missing))
        first = self.codec.rows_at_once
        self.flow.double().start(y[:first], None if some.context is None else some.context[:first])
        self.flow.to(dtype_of(recipe))

    def further(self) -> Iterator[Prepared]:
        """The same with other rows held out, none of them twice: what ``score.folds`` asks for."""
        return (Prepared(self.asked, split()) for split in self.splits)

    def model(self, calibration: NDArray[np.float64], about: dict[str, Any]) -> Model:
        """A Model of the flow as it is now, calibrated on what held-out scores are made of, ``(k, rows)``."""
        least = np.finfo(np.float64).min  # a file keeps no infinities
        finite = torch.from_numpy(np.nan_to_num(calibration, nan=least, neginf=least))
        return Model(self.recipe, self.codec, self.flow, self.baseline, finite, about, self.reference)


def as_recipe(recipe: Recipe | Mapping[str, Any] | str, overrides: Sequence[str] = ()) -> Recipe:
    """A checked Recipe from any of the forms ``fit`` takes. Raises UsageError."""
    if isinstance(recipe, str):
        return recipes.load(recipe, overrides)
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    return recipes.from_dict(json.loads(json.dumps(recipe)), overrides)


def codec_of(recipe: Recipe) -> type[Codec]:
    """The kind of codec that a recipe's data have."""
    return ImageCodec if recipe.data.image else TableCodec


def prepare(
    recipe: Recipe,
    frame: pd.DataFrame | pa.Table | None = None,
    say: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
    fold: int | None = None,
) -> Prepared:
    """Read the data, fit the codec, build the flow. What ``fit --dry-run`` does. ``fold`` is one of the splits of a
    frame that hold out different rows (:func:`folds`), and has no further ones.

    Raises UsageError or DataError.
    """
    if recipe.train.log:
        require_tensorboard()
    split, recipe, files = read(recipe, frame, say, fold)
    clock = clock or Clock()
    clock.lap("reading")
    prepared = Prepared(recipe, split, files)
    clock.lap("codec")
    return prepared


def read(
    recipe: Recipe,
    frame: pd.DataFrame | pa.Table | None = None,
    say: Callable[[str], None] = lambda _: None,
    fold: int | None = None,
) -> tuple[Split, Recipe, Sequence[str]]:
    """The rows, the recipe with what is known once their files are, and the files' names. Raises UsageError or
    DataError."""
    if frame is not None:
        if recipe.train.stream is True:
            raise UsageError("train.stream: a frame is in memory already; name files to stream.")
        table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
        if recipe.data.image and IMAGE not in table.column_names:
            raise DataError(f"the frame has no column '{IMAGE}', and the recipe says that the data are images.")
        table = _trimmed(recipe, _used(recipe, table), say)
        held_out, files = _held_out(recipe, table.schema)
        return _split(recipe, table, held_out, fold), recipe, files
    source, recipe = source_of(recipe)
    if recipe.train.stream is True or (recipe.train.stream == "auto" and source.bytes > LARGE):
        if recipe.data.trim:
            raise UsageError("data.trim: compares all rows, and these are streamed; train.stream=false holds them.")
        say("the data are streamed: a first pass over them fits the codec")
        groups = Groups(source, codec_of(recipe), recipe.data)
        held_out, files = _held_out(recipe, groups.schema)
        split = survey(groups, recipe, codec_of(recipe), held_out)
    else:
        table = source.table()
        table = _trimmed(recipe, _used(recipe, table), say)
        held_out, files = _held_out(recipe, table.schema)
        split = _split(recipe, table, held_out)
    return split, recipe, [*source.files, *files]


def source_of(recipe: Recipe) -> tuple[Source | Pictures, Recipe]:
    """Where the rows are, and the recipe, which now says whether they are images. Raises UsageError or DataError."""
    if not recipe.data.files:
        raise UsageError("no data: name files after the recipe, or under data.files in it.")
    if recipe.data.image is None and hold_pictures(recipe.data.files):
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image": Image()})})
    return _source(recipe, recipe.data.files), recipe


def folds(most: int, share: float, rows: int, enough: int) -> int:
    """How many fits, ``most`` at most, it takes to hold out ``enough`` rows, a share of the rows each time and none of
    them twice."""
    held = max(1, round(share * rows))
    return max(1, min(most, rows // held, math.ceil(enough / held)))


def _split(recipe: Recipe, table: pa.Table, held_out: pa.Table | None, fold: int | None = None) -> Split:
    """Training and held-out rows of a table in memory; all are for training when there is a file of held-out ones."""
    if table.num_columns == 0 or table.num_rows == 0:
        raise DataError("the data has no rows.")
    require_rows(table.num_rows)
    if held_out is not None:
        return Split(table, held_out, table.num_rows)
    share, rows = recipe.data.validation, table.num_rows
    assert isinstance(share, float)
    held = max(1, round(share * rows))
    if held >= rows - 1:
        raise UsageError(f"data.validation: {share} leaves no rows to train on.")
    order = np.random.default_rng(recipe.train.seed).permutation(rows)

    def holding_out(fold: int, further: Sequence[Callable[[], Split]] = ()) -> Split:
        turned = np.roll(order, -fold * held)
        return Split(table.take(np.sort(turned[held:])), table.take(np.sort(turned[:held])), rows, None, further)

    if fold is not None:
        return holding_out(fold)
    count = folds(recipe.score.folds, share, rows, ENOUGH)
    return holding_out(0, [partial(holding_out, fold) for fold in range(1, count)])


def _used(recipe: Recipe, table: pa.Table) -> pa.Table:
    """The columns that are read, in types that Arrow can compute with."""
    table = table.select(codec_of(recipe).used(table.schema, recipe.data))
    return table if recipe.data.image else plain_table(table)


def _trimmed(recipe: Recipe, table: pa.Table, say: Callable[[str], None]) -> pa.Table:
    """The table without the rows that ``data.trim`` leaves out."""
    if not recipe.data.trim or len(table) < MIN_ROWS:
        return table
    if recipe.data.image:
        raise UsageError("data.trim: is for tables, and the data are images.")
    kept = trimmed(table, recipe)
    say(f"data.trim: {len(table) - len(kept):,} of {len(table):,} rows are left out, the furthest from the others")
    return kept


def _held_out(recipe: Recipe, schema: pa.Schema) -> tuple[pa.Table | None, Sequence[str]]:
    """The held-out rows that have a file of their own, and its names."""
    if not isinstance(recipe.data.validation, str):
        return None, ()
    source = _source(recipe, [recipe.data.validation], {field.name: field.type for field in schema})
    table = source.table()
    for name in schema.names:
        require(table.schema, name, "data.validation")
    table = table.select(schema.names)
    return table if recipe.data.image else plain_table(table), source.files


def _source(recipe: Recipe, names: Sequence[str], types: Mapping[str, pa.DataType] | None = None) -> Source | Pictures:
    image = recipe.data.image
    return Pictures.of(names, image.column) if image else Source.of(names, types=types)


def _usable(rows: Rows, which: str) -> Rows:
    """The rows that have a density. Raises DataError when there is none."""
    found = usable(rows)
    if len(found) == 0:
        raise DataError(f"no {which} row can be used: each has a missing, unseen or infinite value, or is unreadable.")
    return found


def random_rows(rows: Rows, n: int, seed: int) -> Rows:
    """``n`` rows at random, or all of them, in random order."""
    order = np.random.default_rng(seed).permutation(len(rows))[: max(n, 1)]
    return rows.take(torch.from_numpy(order))


def _resolved(recipe: Recipe, codec: Codec, batch: int, stream: bool) -> Recipe:
    """The recipe with what was found in the data written into it."""
    columns = dict(recipe.data.columns)
    for column in (*(codec.columns if isinstance(codec, TableCodec) else ()), *codec.given):
        options = recipe.data.options(column.name, is_number(arrow_type(column.arrow_type)))
        value = column.value if isinstance(column, Gated) else column
        if not isinstance(column, Constant | Told):
            kind = "bool" if column.arrow_type == "bool" else RECIPE_KINDS.get(value.kind, value.kind)
            columns[column.name] = options.model_copy(update={"type": kind})
    train = recipe.train.model_copy(update={"batch_size": batch, "stream": stream})
    data = recipe.data
    image = data.image.model_copy(update={"bits": codec.bits}) if isinstance(codec, ImageCodec) and data.image else None
    found = {
        "image": image,
        "columns": columns,
        "files": [from_folder(file, pathlib.Path.cwd()) for file in data.files],
        "validation": data.validation
        if isinstance(data.validation, float)
        else from_folder(data.validation, pathlib.Path.cwd()),
    }
    return recipe.model_copy(update={"data": data.model_copy(update=found), "train": train})
