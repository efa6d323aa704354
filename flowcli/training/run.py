"""The run folder: what ``fit`` leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import platform
import sys
from dataclasses import asdict
from typing import Any

import flowcli
from flowcli import tensorfile
from flowcli.data.whole import write_whole
from flowcli.errors import DataError, ModelFileError, UsageError
from flowcli.model import MODEL_FILE, Model
from flowcli.recipe import Recipe, dump
from flowcli.training.progress import Evaluation
from flowcli.training.state import State

RESUME_FILE = "resume.safetensors"
OURS = {"recipe.yaml", "run.json", "metrics.jsonl", MODEL_FILE, RESUME_FILE}  # all that a fit writes


class Run:
    """A folder with ``recipe.yaml run.json metrics.jsonl model.safetensors resume.safetensors``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    @staticmethod
    def create(folder: pathlib.Path, force: bool) -> Run:
        """A new, empty run folder. Raises UsageError when something is there already, without ``force``."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not force:
                raise UsageError(f"{folder}: exists already; --force replaces it, --resume goes on with it.")
            if not (folder / MODEL_FILE).is_file():
                raise UsageError(f"{folder}: is not a run folder, so --force does not replace it.")
            strangers = sorted({path.name for path in folder.iterdir()} - OURS)
            if strangers:
                raise UsageError(
                    f"{folder}: holds '{strangers[0]}', which no fit wrote, so --force does not replace it."
                )
            for name in OURS:
                (folder / name).unlink(missing_ok=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made: {error.strerror}.") from None
        return Run(folder)

    def write_recipe(self, recipe: Recipe) -> None:
        """The recipe as resolved, every default written out."""
        write_whole(self.folder / "recipe.yaml", dump(recipe))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """``run.json``."""
        write_whole(self.folder / "run.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def write_metrics(self, evaluations: list[Evaluation]) -> None:
        """``metrics.jsonl``, a line for each evaluation; numbers that are not finite are null."""
        lines = (json.dumps(_plain(evaluation)) + "\n" for evaluation in evaluations)
        write_whole(self.folder / "metrics.jsonl", "".join(lines))

    def write_model(self, model: Model) -> None:
        """``model.safetensors``."""
        model.save(self.folder / MODEL_FILE)

    def write_state(self, state: State, evaluations: list[Evaluation], fingerprint: str) -> None:
        """``resume.safetensors``; ``fingerprint`` says which recipe and data it belongs to."""
        about = {
            "counters": asdict(state.counters),
            "fingerprint": fingerprint,
            "evaluations": [_plain(evaluation) for evaluation in evaluations],
        }
        tensorfile.write(self.folder / RESUME_FILE, state.tensors(), about)

    def read_state(self, fingerprint: str) -> tuple[State, list[Evaluation]]:
        """What :meth:`write_state` wrote. Raises ModelFileError when it is not there or damaged, UsageError when it
        belongs to another recipe or other data."""
        path = self.folder / RESUME_FILE
        if not path.exists():
            raise ModelFileError(f"{path}: no such file, so there is nothing to resume.")
        tensors, about = tensorfile.read(path)
        if about["fingerprint"] != fingerprint:
            raise UsageError(f"{self.folder}: was begun with another recipe or other data; --resume needs the same.")
        evaluations = []
        for entry in about["evaluations"]:
            numbers: dict[str, Any] = {k: math.nan if v is None else v for k, v in entry.items()}
            evaluations.append(Evaluation(**numbers))
        return State.of(tensors, about["counters"]), evaluations


def _plain(evaluation: Evaluation) -> dict[str, float | None]:
    """For JSON, which has neither NaN nor infinity."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(evaluation).items()}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import numpy
    import pyarrow
    import torch

    return {
        "flowcli": flowcli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "platform": sys.platform,
    }


def describe(file: str) -> dict[str, Any]:
    """Name, size and SHA-256 of a data file."""
    path = pathlib.Path(file)
    if not path.is_file():
        return {"file": file}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": file, "bytes": path.stat().st_size, "sha256": digest}
