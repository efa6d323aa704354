"""Trials, one after the other, each written down when it is over: a study that was killed goes on where it was."""

from __future__ import annotations

import json
import pathlib
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from flowcli.data.whole import whole_file, write_whole, writing
from flowcli.errors import DataError, ModelFileError, TrainingError, UsageError
from flowcli.model import Model
from flowcli.recipe import Recipe
from flowcli.scoring.evaluate import mean_and_error
from flowcli.training.fit import train
from flowcli.training.loop import NO_DENSITY, Interrupted
from flowcli.training.prepare import folds, prepare, source_of
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.run import describe_all
from flowcli.tune.space import changed, space

TRIALS, STUDY = "trials.jsonl", "study.json"
FIRST = "trial-0.npy"  # the held-out log-densities of the recipe as it was
BEST = "best.yaml"
_OURS = rf"({re.escape(STUDY)}|{re.escape(TRIALS)}|{re.escape(FIRST)}|{re.escape(BEST)}|trial-\d+\.safetensors)"
OURS = re.compile(rf"{_OURS}|\.{_OURS}\.[0-9a-f]{{8}}\.part")  # all that a study writes, one that was killed too
FOLDS, FOLD_ROWS = 5, 500  # folds, at most, and the held-out rows in them that are enough
SURE = 2.0  # standard errors; about what the best of twenty trials is ahead by chance
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
RANDOM = 5  # trials before the sampler and the pruner begin to learn from them
WARMUP = 3  # epochs in which no trial is pruned


@dataclass(frozen=True)
class Trial:
    """Fits of one recipe and what came of them: ``complete``, ``pruned`` or ``failed``. The first has the recipe as it
    was.

    ``value`` is the mean log-likelihood of held-out rows, nats a row; ``difference`` the mean of their own differences
    from the first trial, with its standard error. ``epochs`` are the held-out log-likelihoods after each epoch of the
    first fold.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    value: float | None
    difference: float | None
    difference_error: float | None
    seconds: float
    why: str = ""
    epochs: dict[str, float] = field(default_factory=dict)


class _Found(NamedTuple):
    """What a trial came to; None where it did not end."""

    value: float | None = None
    difference: float | None = None
    difference_error: float | None = None


class Study:
    """Trials in a folder, of a recipe on all of its rows but a share ``test``, which none of them sees.

    Where few rows are held out, each recipe is fitted several times, to other rows: the best of many trials on fifty
    rows is mostly the luckiest.
    """

    def __init__(self, folder: pathlib.Path, recipe: Recipe, test: float, seed: int, resume: bool, force: bool) -> None:
        """Raises UsageError: the recipe does not score by likelihood, there is a study already, or one of another
        recipe or other data; DataError: the data cannot be read, or are too few."""
        if recipe.score.method == "neighbours":
            raise UsageError(
                "score.method: neighbours does not score by likelihood, by which tune chooses; tune a recipe that does."
            )
        self.folder, self.seed = folder, seed
        source, self.recipe = source_of(recipe)
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": describe_all(source.files),
            "test": test,
            "seed": seed,
        }
        self.trials: list[Trial] = self._begin(about, resume, force)
        self.space = space(self.recipe)
        table = source.table()
        order = np.random.default_rng([seed, 1]).permutation(table.num_rows)
        held = round(test * table.num_rows)
        if not 0 < held < table.num_rows:
            raise DataError(f"--test: {test:g} of {table.num_rows} rows leaves none on one side.")
        self.rows, self.test = table.take(np.sort(order[held:])), table.take(np.sort(order[:held]))
        share = self.recipe.data.validation
        self.folds = 1 if isinstance(share, str) else folds(FOLDS, share, len(self.rows), FOLD_ROWS)
        self.search = optuna.create_study(
            direction="maximize", pruner=optuna.pruners.MedianPruner(RANDOM, n_warmup_steps=WARMUP)
        )
        for trial in self.trials:
            self._remember(trial)

    def _begin(self, about: dict[str, Any], resume: bool, force: bool) -> list[Trial]:
        """The trials that there are; of a new study none."""
        place = self.folder / STUDY
        if resume:
            try:
                there = json.loads(place.read_text())
                lines = (self.folder / TRIALS).read_text().splitlines() if (self.folder / TRIALS).exists() else []
                trials = [Trial(**json.loads(line)) for line in lines]
            except FileNotFoundError:
                raise UsageError(f"{place}: no such file, so there is nothing to resume.") from None
            except (TypeError, ValueError):
                raise ModelFileError(f"{self.folder}: {STUDY} or {TRIALS} is damaged; --force begins anew.") from None
            for key in about:
                if there.get(key) != about[key]:
                    raise UsageError(f"{self.folder}: was begun with another {key}; --resume needs the same.")
            return trials
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            if not (force and place.is_file()):
                raise UsageError(f"{self.folder}: exists already; --resume goes on with a study, --force replaces it.")
            self._clear()
        write_whole(place, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        return []

    def _clear(self) -> None:
        """Remove a study that is there. Raises UsageError when the folder holds more than that, DataError when it
        cannot be."""
        strangers = sorted(p.name for p in self.folder.iterdir() if p.is_dir() or not OURS.fullmatch(p.name))
        if strangers:
            raise UsageError(
                f"{self.folder}: holds '{strangers[0]}', which no study wrote; --force does not replace it."
            )
        with writing(self.folder):
            (self.folder / TRIALS).unlink(missing_ok=True)  # first: what is left is then a study without trials
            for path in self.folder.iterdir():
                if path.name != STUDY:
                    path.unlink()

    @property
    def best(self) -> Trial:
        """The trial with the highest held-out log-likelihood, if it is surely ahead of the first; else the first."""
        best = self._leader
        ahead = best.difference is not None and best.difference_error is not None
        return best if ahead and (best.difference or 0) > SURE * (best.difference_error or 0) else self.trials[0]

    @property
    def _leader(self) -> Trial:
        return max((t for t in self.trials if t.value is not None), key=lambda t: t.value or 0.0)

    def model(self, trial: Trial) -> Model:
        """The fitted model of the first trial or of the best."""
        return Model.load(self._model_file(trial.number))

    def _model_file(self, number: int) -> pathlib.Path:
        return self.folder / f"trial-{number}.safetensors"

    def run(self, trials: int, stopped: Callable[[], bool], say: Callable[[Trial], None]) -> None:
        """Go on until there are so many trials; ``say`` hears of each that is over.

        Raises Interrupted when ``stopped`` says so, and what a fit raises when the recipe as it was cannot be
        fitted.
        """
        while len(self.trials) < trials:
            trial = self._next(len(self.trials), stopped)
            self.trials.append(trial)
            lines = (json.dumps(asdict(t), ensure_ascii=False) + "\n" for t in self.trials)
            write_whole(self.folder / TRIALS, "".join(lines))
            for done in self.trials[1:]:
                if done != self._leader:
                    self._model_file(done.number).unlink(missing_ok=True)
            say(trial)

    def _next(self, number: int, stopped: Callable[[], bool]) -> Trial:
        """One trial. What it tries is a function of the seed, its number and the trials before it."""
        began, asked = time.monotonic(), None
        if number:
            self.search.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=self.seed + number)
            asked = self.search.ask(self.space)
        watch = _Watch(asked, stopped)
        parameters, state, why, found = asked.params if asked else {}, "complete", "", _Found()
        try:
            found = self._fitted(changed(self.recipe, parameters), watch, number)
        except Interrupted:
            if not watch.pruned:
                raise
            state = "pruned"
        except (DataError, TrainingError, UsageError) as error:
            if not number:
                raise
            state, why = "failed", str(error)
        if state == "complete" and found.value is None:
            state = "pruned"
        if asked:
            self.search.tell(asked, found.value, STATES[state])
        seconds = round(time.monotonic() - began, 3)
        trial = Trial(number, state, parameters, *found, seconds, why, watch.epochs)
        if not asked:
            self._remember(trial)
        return trial

    def _fitted(self, recipe: Recipe, watch: _Watch, number: int) -> _Found:
        """Fits to all folds, and what they come to; nothing, when it is surely behind the first trial after some.

        The rows of the folds have none in common, so their differences from the first trial's are independent.
        """
        log_probs: list[NDArray[np.float64]] = []
        difference = error = 0.0
        for watch.fold in range(self.folds):
            model = train(prepare(recipe, self.rows, fold=watch.fold), progress=watch, stopped=watch.stopped)
            assert model is not None  # as to the first process of a group
            log_probs.append(_held_out(model))
            if watch.fold == 0:
                model.save(self._model_file(number))
            if number:
                so_far = np.concatenate(log_probs)
                difference, error = mean_and_error(so_far - np.load(self.folder / FIRST)[: len(so_far)])
                if difference < -SURE * error:
                    return _Found()
        whole = np.concatenate(log_probs)
        if not number:
            with whole_file(self.folder / FIRST) as beside, beside.open("wb") as stream:
                np.save(stream, whole, allow_pickle=False)
        return _Found(float(whole.mean()), difference, error)

    def _remember(self, trial: Trial) -> None:
        """Let the search know of a trial that it did not ask for: the first one, or one of before a pause."""
        self.search.add_trial(
            optuna.trial.create_trial(
                state=STATES[trial.state],
                value=trial.value,
                params=trial.parameters,
                distributions={key: self.space[key] for key in trial.parameters},
                intermediate_values={int(epoch): value for epoch, value in trial.epochs.items()},
            )
        )


class _Watch(Progress):
    """Tells the search of each epoch, and asks it whether the trial is worth going on with."""

    def __init__(self, asked: optuna.Trial | None, interrupted: Callable[[], bool]) -> None:
        self.asked, self.interrupted, self.pruned, self.fold = asked, interrupted, False, 0
        self.epochs: dict[str, float] = {}

    def evaluated(self, evaluation: Evaluation) -> None:
        if self.fold:
            return
        self.epochs[str(evaluation.epoch)] = evaluation.held_out_log_prob
        if self.asked:
            self.asked.report(evaluation.held_out_log_prob, evaluation.epoch)
            self.pruned = self.asked.should_prune()

    def stopped(self) -> bool:
        """Whether to end the fit."""
        return self.pruned or self.interrupted()


def _held_out(model: Model) -> NDArray[np.float64]:
    """Log-densities of the held-out rows, in their order, which all trials share; a row without one counts as it does
    in a fit."""
    return np.asarray(np.maximum(model.calibration[0].numpy(), NO_DENSITY))
