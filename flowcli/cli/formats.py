"""What several commands do with their arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowcli.errors import UsageError

if TYPE_CHECKING:
    from flowcli.data.pictures import Pictures
    from flowcli.data.source import Source
    from flowcli.model import Model
    from flowcli.recipe import Recipe

FORMATS = ("parquet", "csv", "tsv", "jsonl", "arrow")


def check_format(format: str | None) -> None:
    """Raises UsageError for a format that is none."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format: '{format}' is not one of {', '.join(FORMATS)}.")


def require_disk(path: Path, why: str) -> None:
    """Raises UsageError with ``why`` for the name of an object, of which a path keeps one slash."""
    name = str(path)
    if name.startswith(("s3:", "gs:")):
        raise UsageError(f"{name.replace(':/', '://', 1)}: {why}")


def recipe_of(name: str, overrides: Sequence[str], device: str | None) -> Recipe:
    """A recipe with these overrides, on the device that is named; where none is, nor in the recipe, on FLOWCLI_DEVICE.
    Raises UsageError."""
    from flowcli import recipe as recipes

    overrides = [*overrides, *([] if device is None else [f"train.device={device}"])]
    found = recipes.load(name, overrides)
    usual = os.environ.get("FLOWCLI_DEVICE")
    if found.target is None and found.train.device == "auto" and usual:
        return recipes.load(name, [*overrides, f"train.device={usual}"])
    return found


def is_model(name: str) -> bool:
    """Whether a name is of a run folder or a model file, and not of data."""
    path = Path(name)
    return (path / "model.safetensors").is_file() if path.is_dir() else path.suffix == ".safetensors"


def loaded(model: str, device: str) -> Model:
    """The model of a run folder or a file, on the device asked for. Raises UsageError or ModelFileError."""
    from flowcli.model import Model
    from flowcli.training.device import choose

    fitted = Model.load(model)
    fitted.flow.to(choose(device))
    return fitted


def read_source(names: Sequence[str], model: Model, format: str | None = None) -> Source | Pictures:
    """What the model reads: pictures, or tables whose columns are read in the types the model was fitted on."""
    from flowcli.data.pictures import Pictures
    from flowcli.data.source import Source

    if model.recipe.data.image:
        return Pictures.of(names, model.recipe.data.image.column, format)
    return Source.of(names, format, model.codec.text_types)
