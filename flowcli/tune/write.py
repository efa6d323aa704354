"""The best recipe, with what speaks for it."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import yaml

from flowcli import __version__
from flowcli.data.whole import write_whole
from flowcli.places import from_folder
from flowcli.recipe import Recipe
from flowcli.scoring.compare import Compared, compare
from flowcli.tune.space import changed
from flowcli.tune.study import BEST, Study, Trial


@dataclass(frozen=True)
class Best:
    """The recipe that a study recommends: its file, its trial, and on test rows, which no trial has seen, the recipe as
    it was and this one."""

    path: pathlib.Path
    trial: Trial
    before: Compared
    after: Compared


def best_recipe(study: Study) -> Best:
    """Measure the best trial on the test rows and write its recipe. Raises DataError: none of them has a density."""
    trial, first = study.best, study.trials[0]
    before, after = compare([study.model(first), study.model(trial)], [[study.test], [study.test]])
    path = study.folder / BEST
    lines = [f"# {line}" for line in _evidence(study, trial, before, after)]
    write_whole(path, "\n".join([*lines, _plain(changed(study.recipe, trial.parameters))]))
    return Best(path, trial, before, after)


def _evidence(study: Study, trial: Trial, before: Compared, after: Compared) -> list[str]:
    states = [t.state for t in study.trials]
    pruned, failed = states.count("pruned"), states.count("failed")
    folds = f" of {study.folds} folds" if study.folds > 1 else ""
    lines = [
        f"By flowcli tune {__version__}: trial {trial.number + 1} of {len(states)}, of which {pruned} were pruned "
        f"and {failed} failed.",
        f"Log-likelihood of held-out rows{folds}, nats a row: {trial.value:.4f}; the recipe as it was: "
        f"{study.trials[0].value:.4f}.",
    ]
    if not trial.number:
        return [
            *lines,
            "No trial was ahead of it by two standard errors of the difference: it stays as it was.",
        ]
    return [
        *lines,
        f"Difference on the same rows: {trial.difference:+.4f} ± {trial.difference_error:.4f}. The best of many trials "
        f"is ahead by chance, too.",
        f"On {after.rows:,} test rows, which no trial saw: {after.log_prob:.4f}; as it was: {before.log_prob:.4f}; "
        f"difference {after.difference:+.4f} ± {after.difference_error:.4f}.",
    ]


def _plain(recipe: Recipe) -> str:
    """A recipe as YAML without its defaults; paths that hold wherever it lies."""
    files = [from_folder(file, pathlib.Path.cwd()) for file in recipe.data.files]
    validation = recipe.data.validation
    if isinstance(validation, str):
        validation = from_folder(validation, pathlib.Path.cwd())
    data = recipe.data.model_copy(update={"files": files, "validation": validation})
    plain = recipe.model_copy(update={"data": data}).model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text
