"""A run as it lies on the disk, and the rows it was made from, read again."""

from __future__ import annotations

import json
import pathlib
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
        lines = _text(folder / METRICS).splitlines()
        try:
            evaluations = [evaluation_of(json.loads(line)) for line in lines]
            manifest = _checked(json.loads(_text(folder / MANIFEST) or "{}"))
        except (TypeError, ValueError, KeyError):
            raise DataError(f"{path}: its {METRICS} or {MANIFEST} is damaged; name the model file in it.") from None
        return Past(path, model, evaluations, manifest)

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


KINDS = {
    "finished": str, "argv": list, "versions": dict, "device": str, "threads": int, "seed": int, "data": list,
    "seconds": dict,
}  # fmt: skip


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that is empty or has what is read of it. Raises ValueError, TypeError or KeyError for another."""
    if manifest:
        times = [manifest["seconds"][key] for key in ("total", "training")]
        names = [file["file"] for file in manifest["data"]]
        right = all(isinstance(manifest[key], kind) for key, kind in KINDS.items())
        if not right or not all(isinstance(t, int | float) for t in times) or not all(type(n) is str for n in names):
            raise ValueError("not a manifest")
    return manifest


def _text(path: pathlib.Path) -> str:
    """What a file holds; nothing, where there is none. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
