"""What a recipe may say: the one definition that checking, defaults, the JSON Schema and the docs come from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flowcli.recipe.section import Positive, Section
from flowcli.recipe.target import MAX_NUMBERS, NAME, OWN_COLUMNS, Parameter, Target, parameter

Width = Annotated[int, Field(ge=1, le=65_536)]
Hidden = Annotated[list[Width], Field(min_length=1, max_length=16)]

ColumnType = Literal["auto", "real", "integer", "category", "bool", "datetime"]
BaseName = Literal["gaussian", "uniform", "student_t", "mixture"]
TransformName = Literal["affine", "spline"]
MethodName = Literal["auto", "nll", "typicality", "neighbours", "complexity", "either"]


class Column(Section):
    """How one column enters the flow."""

    type: ColumnType = "auto"
    """`auto` looks at the values: whole numbers are `integer`, other numbers `real`, text is `category`, dates and
    timestamps are `datetime`."""
    transform: Literal["none", "log", "asinh", "logit", "quantile"] = "none"
    """For `real` columns, before scaling: `log` for positive values, `logit` for values between `low` and `high`,
    `asinh` for heavy tails of both signs, `quantile` (a smooth monotone spline fitted to the values) for shapes that
    none of these fits."""
    low: float | None = None
    """The lower bound of `transform: logit`."""
    high: float | None = None
    """The upper bound of `transform: logit`."""
    missing: Literal["error", "indicator", "impute", "marginalise"] = "error"
    """What is done about missing values. `indicator`: whether a value is there is modelled too, and samples have
    missing values again. `impute`: the median or the most frequent level is put there. `marginalise`: the row is
    learned from and scored by what it has, which is right when values are missing for no reason that matters."""
    atoms: list[float] | Literal["auto"] = "auto"
    """Values of a `real` or `integer` column at which it has a spike (a repeated zero, a default): each gets a
    probability of its own beside the density of the rest. `auto`: values that make up 5 % of the rows or more, and
    stand out among whole numbers; all values of a real column that keep coming back. `[]`: none."""
    by: Annotated[list[str], Field(min_length=1, max_length=3)] | None = None
    """One to three other columns that tell this one (the distance, by origin and destination). It stays out of the
    flow: `sample` looks it up, and `score` marks a row that has another value."""

    @model_validator(mode="after")
    def _bounds(self) -> Column:
        if self.transform != "none" and self.type not in ("auto", "real"):
            raise ValueError(f"transform: {self.transform} is for real columns, and this one is {self.type}")
        bounds = [bound is not None for bound in (self.low, self.high)]
        if (self.transform == "logit") != all(bounds) or any(bounds) != all(bounds):
            raise ValueError("low and high go together with transform: logit")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    @model_validator(mode="after")
    def _spikes(self) -> Column:
        if self.atoms not in ("auto", []) and self.type not in ("auto", "real", "integer"):
            raise ValueError(f"atoms are for real and integer columns, and this one is {self.type}")
        if self.atoms != "auto" and len(set(self.atoms)) < len(self.atoms):
            raise ValueError("atoms: names a value twice")
        return self

    @model_validator(mode="after")
    def _told(self) -> Column:
        if self.by is None:
            return self
        if self.transform != "none" or self.atoms != "auto":
            raise ValueError("a column that others tell (by) is not modelled, so it has no transform and no atoms")
        if len(set(self.by)) < len(self.by):
            raise ValueError("by: names a column twice")
        return self


def _column(value: Any) -> Any:
    """``age: integer`` is short for ``age: {type: integer}``."""
    return {"type": value} if isinstance(value, str) else value


def _files(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Image(Section):
    """How images are read. Its presence says that the data are images."""

    bits: Annotated[int, Field(ge=1, le=16)] | Literal["auto"] = "auto"
    """Bits of a pixel that are modelled: as many as it has (8 or 16), or fewer for less detail and faster learning."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """How far pixels are kept off 0 and 1 before the logit."""
    resize: Annotated[list[Width], Field(min_length=2, max_length=2)] | None = None
    """Width and height that every image is brought to; without it all must have one size."""
    flip: bool = False
    """Mirror half of the training images left to right, others in each epoch."""
    column: str | None = None
    """The column of a parquet file that holds the images; the only one of a fitting type when left out."""
    on_error: Literal["error", "skip"] = "error"
    """What `fit` does about an image that cannot be read. `score` marks it `unreadable`."""


def reached(by: Mapping[str, Sequence[str]], names: Iterable[str]) -> set[str]:
    """``names``, the columns that tell them, those that tell these, and so on."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += by.get(name, ())
    return found


class Data(Section):
    """Which files and columns."""

    files: Annotated[list[str], BeforeValidator(_files)] = []
    """Parquet, CSV, JSON lines or Arrow files; globs and folders too. Relative to the recipe. DATA on the command line
    takes their place."""
    include: list[str] | None = None
    """The columns to model; all when left out."""
    exclude: list[str] = []
    """Columns to leave out."""
    given: list[str] = []
    """Columns to condition on: the flow learns p(others | given)."""
    validation: Annotated[float, Field(gt=0, lt=1)] | str = 0.1
    """The share of rows held out, or a file of held-out rows."""
    trim: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """For tables in memory: the share of the rows that is left out before anything is learned, those furthest from the
    others. Say so many as may be anomalies: a density learns what is there, and then finds it usual."""
    image: Image | None = None
    """For images: how they are read. Found from the files' names when left out."""
    numbers: Literal["auto", "real"] = "auto"
    """What columns of numbers are of which `columns` gives no type. `real`: all are real numbers without spikes, as
    a score by distances wants, and a density that training noise smooths."""
    columns: dict[str, Annotated[Column, BeforeValidator(_column)]] = {}
    """What single columns are; the others are found from the data."""

    def options(self, name: str, number: bool) -> Column:
        """What the recipe says of a column; ``number`` is whether it holds numbers."""
        column = self.columns.get(name, Column())
        if column.type == "auto" and number and self.numbers == "real":
            return column.model_copy(update={"type": "real", "atoms": [] if column.atoms == "auto" else column.atoms})
        return column

    @model_validator(mode="after")
    def _once(self) -> Data:
        for key, names in (("include", self.include or []), ("exclude", self.exclude), ("given", self.given)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: names '{twice[0]}' twice")
        both = sorted(set(self.given) & {*self.exclude})
        if both:
            raise ValueError(f"'{both[0]}' cannot be both given and excluded")
        return self

    @model_validator(mode="after")
    def _told(self) -> Data:
        by = {name: column.by for name, column in self.columns.items() if column.by and name not in self.exclude}
        for name, others in by.items():
            if name in self.given:
                raise ValueError(f"'{name}' cannot be both given and told by others (by)")
            gone = sorted({*others} & {*self.exclude})
            if gone:
                raise ValueError(f"'{name}' is told by '{gone[0]}', which is excluded")
            if name in reached(by, others):
                raise ValueError(f"'{name}' is told by itself: {name} by {', '.join(others)}")
        return self


class FlowOptions(Section):
    """What every flow has."""

    base: BaseName = "student_t"
    """What the latent follows. `student_t` learns how heavy its tails are, so that a few rows far out do not decide
    the fit; `uniform` is the unit cube behind a sigmoid."""
    components: Annotated[int, Field(ge=1, le=1024)] = 8
    """Components of `base: mixture`."""
    whiten: bool = True
    """Begin with a triangular linear layer set from the training rows' covariance: the flow then starts with
    their centre, spread and correlations, as a Gaussian or Student-t by its base."""


class Planar(FlowOptions):
    """Planar layers: small and smooth; good for low dimensions and as a baseline."""

    type: Literal["planar"]
    layers: Annotated[int, Field(ge=1, le=1024)] = 32
    hidden: Hidden = [64]
    """Widths of the network that reads the `given` columns."""


class Radial(FlowOptions):
    """Radial layers: swell or shrink space about learned centres; a baseline."""

    type: Literal["radial"]
    layers: Annotated[int, Field(ge=1, le=1024)] = 32
    hidden: Hidden = [64]
    """Widths of the network that reads the `given` columns."""


Levels = Annotated[int, Field(ge=1, le=8)] | Literal["auto"]


class RealNVP(FlowOptions):
    """Coupling layers: scoring and sampling equally fast. On images, multi-scale with checkerboard masks."""

    type: Literal["realnvp"]
    layers: Annotated[int, Field(ge=1, le=256)] = 8
    hidden: Hidden = [128, 128]
    transform: TransformName = "affine"
    bins: Annotated[int, Field(ge=2, le=128)] = 8
    """Bins of `transform: spline`."""
    mixing: Literal["none", "lu"] = "lu"
    """`lu` puts a learned linear layer between couplings; not on images."""
    levels: Levels = "auto"
    """How often images are halved: `auto` is as often as their size allows, at most 3 times."""


class MAF(FlowOptions):
    """Masked autoregressive layers: the best densities for tables."""

    type: Literal["maf"]
    layers: Annotated[int, Field(ge=1, le=256)] = 5
    hidden: Hidden = [128, 128]
    transform: TransformName = "affine"
    bins: Annotated[int, Field(ge=2, le=128)] = 8
    """Bins of `transform: spline`."""
    order: Literal["reverse", "same"] = "reverse"
    """`reverse` turns the columns round between layers; `same` keeps the whole flow autoregressive in one order."""
    direction: Literal["maf", "iaf"] = "maf"
    """`iaf` makes sampling the one-pass direction and training the slow one."""


class Glow(FlowOptions):
    """Steps of scaling, 1×1 convolution and coupling at several scales: for images; on tables, without scales."""

    type: Literal["glow"]
    layers: Annotated[int, Field(ge=1, le=256)] = 8
    """Steps at each scale."""
    hidden: Hidden = [128, 128]
    transform: TransformName = "affine"
    bins: Annotated[int, Field(ge=2, le=128)] = 8
    """Bins of `transform: spline`."""
    levels: Levels = "auto"
    """How often images are halved: `auto` is as often as their size allows, at most 3 times."""


Flow = Annotated[Planar | Radial | RealNVP | MAF | Glow, Field(discriminator="type")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(duration: str) -> float:
    """``90s``, ``30m``, ``1.5h`` or ``2d`` in seconds. Raises ValueError."""
    match = _DURATION.fullmatch(duration.strip())
    if not match or float(match[1]) == 0:
        raise ValueError(f"'{duration}' is not a duration like 90s, 30m, 1.5h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def _duration(value: str) -> str:
    seconds(value)
    return value


class Train(Section):
    """How the flow is fitted."""

    epochs: Positive = 100
    batch_size: Positive | Literal["auto"] = "auto"
    """`auto`: a thirty-second part of the rows, between 64 and 512."""
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """AdamW's rate at its peak, after a warm-up and before a cosine to zero."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 5.0
    """Largest gradient norm."""
    patience: Positive = 10
    """Stop after so many epochs without a better held-out log-likelihood."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of Gaussian noise on the standardised training rows; regularises."""
    noise_shape: Literal["round", "data"] = "round"
    """`round`: the noise is the same in every column, and independent. `data`: it has the training rows' covariance,
    and so is as wide as they are in any direction."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the weights' moving average, which is what is evaluated and kept. 0 turns it off."""
    stream: bool | Literal["auto"] = "auto"
    """Read the rows anew in each epoch instead of holding them in memory: parquet with row groups of at most a million
    numbers from where it is, all else from a temporary copy. `auto`: from 1 GB of numbers on."""
    precision: Literal["float32", "float64", "mixed"] = "float32"
    """`mixed`, for image flows: float32, and bfloat16 inside the convolutions during training, which is faster on GPUs
    that have it. Scoring and sampling are float32."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the steps with `torch.compile`, for which the machine needs a C++ compiler. Where that fails, or gives
    another gradient, the fit goes on without. It takes 10 to 40 seconds, and makes steps 1.1 (wide affine networks) to
    2 times (splines, small networks) as fast. `auto`: for tables on a CPU, after 10,000 steps of a fit that may take
    20,000."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    max_time: Annotated[str, AfterValidator(_duration)] | None = None
    """Stop in good order after this long (`30m`): the learning rate is annealed to zero within it."""
    log: list[Literal["tensorboard"]] = []
    """Where each evaluation's figures go beside `metrics.jsonl`: `tensorboard` writes them into the run folder, for
    `tensorboard --logdir runs`."""


class Score(Section):
    """How log-densities become scores."""

    method: MethodName = "auto"
    """`nll`: the negative log-likelihood. `typicality`: how far it is from what it usually is, on either side.
    `neighbours`, for tables: how far a row is from the rows of the fit that it is nearest to, by its columns and by
    their ranks, and its latents from their centre; up to 20,000 rows are kept in the model for it.
    `complexity`, for images: it less the length of the image's PNG. `either`, for images: the greater of `nll` and
    `complexity`, each in standard deviations. `auto`: `either` for images, else `nll`."""
    folds: Annotated[int, Field(ge=1, le=100)] = 1
    """Fits, each of which holds out other rows than those before: p-values then compare with the rows that all of them
    held out. Few held-out rows have no small p-values. The first fit is the model; as many follow as it takes to hold
    out 2,000 rows, as `data.validation` has room for, and as `train.max_time` leaves time for."""
    dequantization_samples: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Places over which a row's density is averaged where it depends on them: of whole numbers with many values in
    their cells, of what is not there behind a spike or a gap, of pixels; time grows with it. `auto`: 32, with which the
    probabilities of a two-column table summed to 1 within 0.003; 128 where three or more columns depend on them; 1 for
    images."""


class Recipe(Section):
    """A flowcli recipe. Everything has a default but `flow.type`."""

    version: Literal[1] = 1
    data: Data = Data()
    target: Target | None = None
    """A log-density to fit in place of data: variational inference."""
    parameters: dict[str, Annotated[Parameter, BeforeValidator(parameter)]] = {}
    """The parameters of the target, by name."""
    flow: Flow
    train: Train = Train()
    score: Score = Score()

    @model_validator(mode="after")
    def _whole_rows(self) -> Recipe:
        if self.score.method == "neighbours" and (self.data.given or self.data.image or self.target):
            raise ValueError("score.method: neighbours is for tables without given columns")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if (self.target is None) != (not self.parameters):
            raise ValueError("target and parameters go together")
        if self.target is None:
            return self
        if self.data != Data():
            raise ValueError("a recipe has data or a target, not both")
        train = self.train
        for_data = {"noise": train.noise > 0, "stream": train.stream is True, "compile": train.compile is True}
        for_data |= {"precision: mixed": train.precision == "mixed"}
        wrong = [f"train.{key}" for key, said in for_data.items() if said]
        if wrong:
            raise ValueError(f"{wrong[0]} is for data, and this recipe has a target")
        for name, one in self.parameters.items():
            if not NAME.fullmatch(name) or name in OWN_COLUMNS:
                raise ValueError(f"'{name}' cannot be a parameter's name; take letters, digits and _")
            if math.prod(one.shape) > MAX_NUMBERS:
                raise ValueError(f"parameter '{name}' has more than {MAX_NUMBERS} numbers")
        return self
