"""A run as it lies on the disk, and the rows it was made from, read again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowcli.data.source import STDIN
from flowcli.errors import DataError
from flowcli.model import Model
from flowcli.training.prepare import read
from flowcli.training.progress import Evaluation
from flowcli.training.run import MANIFEST, METRICS, describe, evaluation_of
from flowcli.training.survey import Split


@dataclass(frozen=True)
class Past:
    """A run folder, or a model file alone: then there are no ``evaluations``, and the ``manifest`` is empty, as it is
    in a run that was interrupted."""

    name: str
    model: Model
    evaluations: list[Evaluation]
    manifest: dict[str, Any]

    @staticmethod
    def load(path: str) -> Past:
        """Raises ModelFileError as :meth:`Model.load` does, and DataError when what lies beside it is damaged."""
        model, folder = Model.load(path), pathlib.Path(path)
        if not folder.is_dir():
            return Past(path, model, [], {})
        lines, manifest = records(path)
        try:
            return Past(path, model, [evaluation_of(line) for line in lines], checked(manifest))
        except (AttributeError, TypeError, ValueError, KeyError):
            raise damaged(path) from None

    def rows(self) -> Split:
        """The training and the held-out rows. Raises DataError: they cannot be read again, or have changed."""
        if not self.evaluations:
            raise DataError(f"{self.name}: a model file alone does not tell which rows it has learned from.")
        files = self.model.recipe.data.files
        if not files or STDIN in files:
            came = "through standard input" if files else "in a frame"
            raise DataError(f"{self.name}: its rows came {came} and cannot be read again.")
        for file in self.manifest.get("data", []):
            if describe(file["file"]) != file:
                raise DataError(f"{file['file']}: is not there any more, or has changed since {self.name} was fitted.")
        return read(self.model.recipe)[0]


def records(path: str) -> tuple[list[Any], dict[str, Any]]:
    """The lines of a run folder's metrics and its manifest; empty, where there is none. Raises DataError."""
    folder = pathlib.Path(path)
    try:
        lines = [json.loads(line) for line in _text(folder / METRICS).splitlines()]
        manifest = json.loads(_text(folder / MANIFEST) or "{}")
    except ValueError:
        raise damaged(path) from None
    if not isinstance(manifest, dict):
        raise damaged(path)
    return lines, manifest


def damaged(path: str) -> DataError:
    """What is said of a run folder whose records are not what a fit writes."""
    return DataError(f"{path}: its {METRICS} or {MANIFEST} is damaged; name the model file in it.")


KINDS = {
    "finished": str, "argv": list, "versions": dict, "device": str, "threads": int, "seed": int, "seconds": dict,
}  # fmt: skip


def checked(
    manifest: dict[str, Any], files: str = "data", times: Sequence[str] = ("total", "training")
) -> dict[str, Any]:
    """A manifest that is empty or has what is read of it: the key ``files``, and seconds for ``times``. Raises
    ValueError, TypeError or KeyError for another."""
    if manifest:
        took = [manifest["seconds"][key] for key in times]
        names = [file["file"] for file in manifest[files]]
        right = all(isinstance(manifest[key], kind) for key, kind in {**KINDS, files: list}.items())
        if not right or not all(isinstance(t, int | float) for t in took) or not all(type(n) is str for n in names):
            raise ValueError("not a manifest")
    return manifest


def _text(path: pathlib.Path) -> str:
    """What a file holds; nothing, where there is none. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
