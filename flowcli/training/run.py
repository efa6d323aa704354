"""The run folder: what ``fit`` leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import flowcli
from flowcli import tensorfile
from flowcli.data.source import STDIN
from flowcli.data.whole import sweep, sync, write_whole
from flowcli.errors import DataError, ModelFileError, UsageError
from flowcli.model import MODEL_FILE, Model
from flowcli.places import from_folder
from flowcli.recipe import Recipe, dump
from flowcli.training.clock import Profile
from flowcli.training.progress import Evaluation
from flowcli.training.state import State

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STATES = ("resume-a.safetensors", "resume-b.safetensors")  # the last two states, written in turn
STATES_FILE = "resume.json"  # which of them is the newer, and what their files must be
MANIFEST = "run.json"
METRICS = "metrics.jsonl"
PROFILE = "profile.json"
BOARD = "tensorboard"
OURS = {"recipe.yaml", MANIFEST, PROFILE, METRICS, MODEL_FILE, STATES_FILE, *STATES, BOARD}  # all that a fit writes

Fingerprint = dict[str, str]  # what a resumed fit must share with the one it goes on with, by name


class Run:
    """A folder with ``recipe.yaml run.json metrics.jsonl model.safetensors``, and what resuming needs.

    A fit that replaces a run writes beside it, and takes its place at the end: until then, and if it fails, the run
    that was there is as it was.
    """

    def __init__(self, target: pathlib.Path) -> None:
        # What a link points to is what is replaced, and the link stays.
        self.target = self.folder = target.resolve() if target.is_symlink() else target

    @staticmethod
    def create(target: pathlib.Path, force: bool) -> Run:
        """A new, empty run folder. Raises UsageError when something is there already, without ``force``, and when it is
        not only a run; DataError when the folder cannot be made."""
        run = Run(target)
        try:
            run._recover()
            if target.is_dir():
                sweep(target, OURS)
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                if not force:
                    raise UsageError(f"{target}: exists already; --force replaces it, --resume goes on with it.")
                if not (target / MODEL_FILE).is_file():
                    raise UsageError(f"{target}: is not a run folder, so --force does not replace it.")
                strangers = sorted({path.name for path in target.iterdir()} - OURS)
                if strangers:
                    raise UsageError(
                        f"{target}: holds '{strangers[0]}', which no fit wrote, so --force does not replace it."
                    )
                if target.is_mount():
                    raise UsageError(f"{target}: is a mount point, which cannot be replaced; name a folder in it.")
                run.folder = run._beside("next")
                shutil.rmtree(run.folder, ignore_errors=True)
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{target}: cannot be made: {error.strerror}.") from None
        return run

    @staticmethod
    def going_on(target: pathlib.Path) -> Run:
        """The run to resume: one that was to replace ``target``, or else ``target``."""
        run = Run(target)
        run._recover()
        beside = run._beside("next")
        if (beside / STATES_FILE).exists():
            run.folder = beside
        return run

    @staticmethod
    def begun(target: pathlib.Path, folder: pathlib.Path) -> Run:
        """The run that an earlier attempt of the same job began in ``folder``; anew, if that left no state."""
        run = Run(target)
        run._recover()
        if folder.is_dir():  # else it has taken its place already
            run.folder = folder
        return run if run.resumable else Run.create(target, force=True)

    @property
    def resumable(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.folder / STATES_FILE).exists()

    def finish(self) -> None:
        """Take the place of the run that was there. Raises DataError when that cannot be; it is then as it was."""
        if self.folder == self.target:
            return
        before = self._beside("old")
        try:
            self.target.rename(before)
            try:
                self.folder.rename(self.target)
            except OSError:
                before.rename(self.target)
                raise
            sync(self.target.parent)
        except OSError as error:
            raise DataError(f"{self.target}: cannot be replaced: {error.strerror}.") from None
        self.folder = self.target
        shutil.rmtree(before, ignore_errors=True)

    def clear(self) -> None:
        """Remove what a fit that failed left, if nothing can go on from it."""
        if not self.resumable:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _beside(self, what: str) -> pathlib.Path:
        here = self.target.absolute()
        return here.parent / f".{here.name}.{what}"

    def _recover(self) -> None:
        """Put back, or clear away, what a :meth:`finish` that was killed left."""
        before = self._beside("old")
        if before.exists() and not self.target.exists():
            before.rename(self.target)
        shutil.rmtree(before, ignore_errors=True)

    @property
    def finished(self) -> bool:
        """Whether all of it is written, and training did not give up."""
        manifest = self.folder / MANIFEST
        return manifest.exists() and "failed" not in json.loads(manifest.read_text())

    def write_recipe(self, recipe: Recipe) -> None:
        """The recipe as resolved, every default written out."""
        write_whole(self.folder / "recipe.yaml", dump(recipe))

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """``run.json``."""
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def write_profile(self, profile: Profile) -> None:
        """``profile.json``."""
        write_whole(self.folder / PROFILE, json.dumps(profile.to_dict(), indent=2) + "\n")

    def write_metrics(self, evaluations: Sequence[DataclassInstance]) -> None:
        """``metrics.jsonl``, a line for each evaluation; numbers that are not finite are null."""
        lines = (json.dumps(_plain(evaluation)) + "\n" for evaluation in evaluations)
        write_whole(self.folder / METRICS, "".join(lines))

    def write_model(self, model: Model) -> None:
        """``model.safetensors``."""
        model.save(self.folder / MODEL_FILE)

    def write_state(self, state: State, evaluations: list[Evaluation], fingerprint: Fingerprint) -> None:
        """A state in the place of the older of two, and then the manifest that makes it the newer."""
        about = {
            "counters": asdict(state.counters),
            "fingerprint": fingerprint,
            "evaluations": [_plain(evaluation) for evaluation in evaluations],
        }
        before = self._states() if self.resumable else []
        name = STATES[1] if before and before[0]["file"] == STATES[0] else STATES[0]
        tensorfile.write(self.folder / name, state.tensors(), about)
        states = [describe(str(self.folder / name)) | {"file": name}, *before[:1]]
        write_whole(self.folder / STATES_FILE, json.dumps(states, indent=2) + "\n")

    def read_state(self, fingerprint: Fingerprint, say: Callable[[str], None]) -> tuple[State, list[Evaluation]]:
        """The newest state that is whole; ``say`` hears of one that is not.

        Raises ModelFileError when there is none, UsageError when it belongs to another recipe or other data.
        """
        sweep(self.folder, OURS)
        if not self.resumable:
            raise ModelFileError(
                f"{self.folder / STATES_FILE}: no such file, so there is nothing to resume; --force begins anew."
            )
        for entry in self._states():
            path = self.folder / entry["file"]
            if describe(str(path)) != entry | {"file": str(path)}:
                say(f"{path}: missing or damaged; trying the state before it")
                continue
            tensors, about = tensorfile.read(path)
            theirs = about["fingerprint"]
            for name in sorted({*theirs, *fingerprint}):
                there, here = theirs.get(name, "not set"), fingerprint.get(name, "not set")
                if there != here:
                    raise UsageError(
                        f"{self.folder}: was begun with another recipe or other data: {name} was {there} and is "
                        f"{here}; --resume needs the same."
                    )
            evaluations = [evaluation_of(line) for line in about["evaluations"]]
            return State.of(tensors, about["counters"]), evaluations
        raise ModelFileError(f"{self.folder}: no state is left that is whole; --force begins anew.")

    def _states(self) -> list[dict[str, Any]]:
        """The states that the manifest lists, the newer first. Raises ModelFileError when it cannot be read."""
        path = self.folder / STATES_FILE
        try:
            states = json.loads(path.read_text())
            if [set(state) for state in states] == [{"file", "bytes", "sha256"}] * len(states) and (
                {state["file"] for state in states} <= set(STATES)
            ):
                return list(states)
        except (ValueError, TypeError):
            pass
        raise ModelFileError(f"{path}: damaged, so no state can be trusted; --force begins anew.")


def _plain(evaluation: DataclassInstance) -> dict[str, float | None]:
    """For JSON, which has neither NaN nor infinity."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(evaluation).items()}


def evaluation_of(line: Any) -> Evaluation:
    """The evaluation that a line of ``metrics.jsonl`` holds. Raises TypeError for another."""
    if not isinstance(line, dict) or not all(v is None or isinstance(v, int | float) for v in line.values()):
        raise TypeError("not an evaluation")
    numbers: dict[str, Any] = {k: math.nan if v is None else v for k, v in line.items()}
    return Evaluation(**numbers)


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


def describe_all(files: Sequence[str]) -> list[dict[str, Any]]:
    """Data files and objects by names that hold from everywhere. Standard input is none."""
    return [describe(from_folder(file, pathlib.Path.cwd())) for file in files if file != STDIN]


def describe(file: str) -> dict[str, Any]:
    """Name, size and SHA-256 of a data file; of an object, the name alone."""
    path = pathlib.Path(file)
    if not path.is_file():
        return {"file": file}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": file, "bytes": path.stat().st_size, "sha256": digest}
