"""What a report says first: whether to trust a model, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flowcli.data.table import TableCodec
from flowcli.recipe import seconds
from flowcli.report.evidence import OWN, Evidence, Mean

Tone = Literal["good", "fair", "bad"]

SURE = 2.0  # standard errors
MATTERS = 0.1  # nats a column of the flow
ROUND_TRIP = (
    1e-3,
    1e-1,
)  # errors, in the flow's units, from which drawn rows are a little and quite beside the density
MISFIT = 0.2  # the distance from which a column's draws are useless
LISTED = 5  # columns that are named, at most


@dataclass(frozen=True)
class Finding:
    """One thing found: good, fair (look before you trust it) or bad; in a few words, and in a sentence."""

    tone: Tone
    words: str
    sentence: str


def verdict(evidence: Evidence) -> list[Finding]:
    """All that is found of a run, in the order in which it is told."""
    aside = _aside(evidence)
    return [finding for find in FINDINGS if find not in aside and (finding := find(evidence))]


def notes(evidence: Evidence) -> list[str]:
    """What is found of a density that is not what the model is for, where that is so, and is no verdict."""
    found = [finding.sentence for find in _aside(evidence) if (finding := find(evidence))]
    return [f"Its scores compare rows with those of the fit. Of its density: {sentence}" for sentence in found]


def _aside(evidence: Evidence) -> tuple[Callable[[Evidence], Finding | None], ...]:
    """A model that scores by neighbours takes numbers for real ones, and may train with much noise, on purpose."""
    return (discrete, columns) if evidence.model.recipe.score.method == "neighbours" else ()


def summary(findings: list[Finding]) -> tuple[Tone, str]:
    """All of it in a sentence, with the worst tone among them."""
    worst = [finding.words for finding in findings if finding.tone == "bad"]
    doubts = [finding.words for finding in findings if finding.tone == "fair"]
    if worst:
        return "bad", f"Do not rely on this model yet: {'; '.join(worst)}."
    if doubts:
        return "fair", f"Usable, with a reservation: {'; '.join(doubts)}."
    return "good", "Nothing found here speaks against this model."


def _matters(evidence: Evidence) -> float:
    """Nats a row from which a difference is more than a detail."""
    return max(0.5, MATTERS * evidence.model.codec.features)


def training(evidence: Evidence) -> Finding | None:
    """Did it end as it should have?"""
    past, evaluations = evidence.past, evidence.past.evaluations
    recipe, failed = past.model.recipe.train, past.manifest.get("failed")
    if failed:
        return Finding("bad", "training diverged", f"Training diverged: {str(failed).rstrip('.')}.")
    if not evaluations:
        return Finding(
            "fair", "how it was trained is not known", "Only the model file is here: how training went is not known."
        )
    last, start = evaluations[-1], evaluations[0].held_out_log_prob
    trained = [e.train_log_prob for e in evaluations[1:] if not math.isnan(e.train_log_prob)]
    if trained and max(start, *trained) - trained[-1] > _matters(evidence):
        return Finding(
            "bad",
            "training diverged",
            f"Training diverged: the training rows' own log-likelihood fell from {max(start, *trained):.4g} to "
            f"{trained[-1]:.4g} nats a row. The model kept is that of epoch {last.best_epoch}. Try a smaller train.lr "
            f"than {recipe.lr:g}, or transform the columns with the longest tails.",
        )
    kept = f"the model kept is that of epoch {last.best_epoch}"
    if not past.manifest:
        return Finding(
            "fair",
            "training was interrupted",
            f"Training was interrupted after epoch {last.epoch} of {recipe.epochs}; {kept}. "
            f"`flowcli fit … --resume -o {past.name}` goes on.",
        )
    skipped = f" {last.skipped_steps} steps were skipped, their gradients not finite." if last.skipped_steps else ""
    if last.epoch >= recipe.epochs:
        end = f"{last.epoch} of {recipe.epochs} epochs"
    elif last.epoch - last.best_epoch >= recipe.patience:
        end = f"{last.epoch} epochs, the last {recipe.patience} of which brought nothing (patience)"
    elif recipe.max_time and last.seconds >= 0.99 * seconds(recipe.max_time):
        end = f"the {recipe.max_time} that it was given, {last.epoch} epochs"
    else:
        end = f"{last.epoch} epochs"
    if last.epoch and not last.best_epoch:
        return Finding(
            "fair",
            "training brought nothing",
            f"Trained to the end ({end}), but no epoch was better on held-out rows than the flow as it began.{skipped}",
        )
    tone: Tone = "fair" if last.skipped_steps > 0.01 * last.step else "good"
    return Finding(tone, "steps were skipped" if skipped else "trained", f"Trained to the end: {end}; {kept}.{skipped}")


def gaussian(evidence: Evidence) -> Finding | None:
    """Is it better than a Gaussian?"""
    gain, about = evidence.better_than_gaussian, evidence.model.about
    if gain is None:
        ours, theirs = about.get("held_out_log_prob"), about.get("held_out_gaussian_log_prob")
        if ours is None or theirs is None:
            return None
        gain = Mean(
            ours - theirs, evidence.log_prob.error if evidence.log_prob else 0.0
        )  # that of a difference is less
    by = f"{gain.value:+.2f}{f' ± {gain.error:.2f}' if gain.error else ''} nats a row on held-out rows"
    if gain.value > max(SURE * gain.error, 0.01):
        return Finding("good", "better than a Gaussian", f"Better than a Gaussian: {by}.")
    if gain.value < -SURE * gain.error:
        return Finding("bad", "worse than a Gaussian", f"Worse than a Gaussian with the same covariance: {by}.")
    return Finding(
        "fair",
        "no better than a Gaussian",
        f"No better than a Gaussian with the same covariance ({by}): there may be nothing more to learn, or too few "
        f"rows or epochs to learn it.",
    )


def over_fitting(evidence: Evidence) -> Finding | None:
    """Has it learned its rows by heart?"""
    evaluations, gap, matters = evidence.past.evaluations, evidence.gap, _matters(evidence)
    best = {e.epoch: e for e in evaluations}.get(evaluations[-1].best_epoch) if evaluations else None
    if gap is None and best and best.epoch:
        gap = Mean(best.train_log_prob - best.held_out_log_prob, 0.0)
    mend = "More rows, a smaller flow (flow.hidden, flow.layers), or more train.noise would mend that."
    if gap and gap.value > max(SURE * gap.error, matters):
        error = f" ± {gap.error:.2f}" if gap.error else ""
        return Finding(
            "bad" if gap.value > 5 * matters else "fair",
            "over-fitted",
            f"Over-fitted: training rows are {gap.value:.2f}{error} nats likelier than held-out rows under the model "
            f"kept. {mend}",
        )
    if best and len(evaluations) > 1:
        last = evaluations[-1]
        fell = best.held_out_log_prob - last.held_out_log_prob
        if fell > matters and last.train_log_prob > (best.train_log_prob if best.epoch else best.held_out_log_prob):
            return Finding(
                "fair",
                "training over-fitted, and an early epoch was kept",
                f"Training over-fitted: after epoch {best.epoch} held-out rows became less likely, by {fell:.2f} nats "
                f"at the end, while training rows became likelier. The model kept is from before that. {mend}",
            )
    if gap is None:
        return None
    return Finding(
        "good",
        "not over-fitted",
        f"Not over-fitted: training rows are likelier than held-out rows by {gap.value:+.2f}"
        f"{f' ± {gap.error:.2f}' if gap.error else ''} nats, which is little or chance.",
    )


def discrete(evidence: Evidence) -> Finding | None:
    """Is a density put on what is discrete? Its likelihood is then without bound, and held-out rows reward it."""
    codec = evidence.model.codec
    if not isinstance(codec, TableCodec):
        return None
    wrong = [column for column in evidence.columns if column.repeats]
    if wrong:
        which = "; ".join(
            f"'{c.name}' has {c.different:,} different values in {len(c.data):,} rows, the commonest of them in "
            f"{c.spike:.0%}"
            for c in wrong[:LISTED]
        )
        return Finding(
            "bad",
            f"a density is put on discrete values ({_listed([c.name for c in wrong])})",
            f"The log-likelihood means nothing: {which}, and yet it is modelled as a density, which can be as "
            f"great as it likes at single values. Say `type: integer` or `category`, or leave `atoms` to flowcli, and "
            f"fit again.",
        )
    having = [column.name for column in codec.columns if column.cells is not None]
    if not having:
        return None
    return Finding(
        "good",
        "discrete columns have probabilities",
        f"Discrete values have probabilities of their own ({_listed(having)}), so no likelihood grows without bound.",
    )


def round_trip(evidence: Evidence) -> Finding | None:
    """Are drawn rows those that the density speaks of?"""
    about = evidence.model.about
    if "round_trip_error" not in about:
        return None
    error = about["round_trip_error"]
    if error is None or error >= ROUND_TRIP[1]:
        shown = "not finite" if error is None else f"{error:.2g}"
        return Finding(
            "bad",
            "the flow cannot be inverted",
            f"The round-trip error is {shown}: drawn rows are not those that the density speaks of. Try "
            f"train.precision=float64, fewer layers, or a smaller train.lr.",
        )
    if error >= ROUND_TRIP[0]:
        return Finding(
            "fair",
            "a coarse round trip",
            f"The round-trip error is {error:.2g} in the flow's units: drawn rows are a little beside the density.",
        )
    return Finding(
        "good", "the round trip holds", f"The round-trip error is {error:.2g}: drawn rows and the density agree."
    )


def columns(evidence: Evidence) -> Finding | None:
    """Which columns do the draws not match?"""
    if not evidence.columns:
        return None
    worst = sorted((c for c in evidence.columns if c.misfit), key=lambda column: -column.distance)
    if not worst:
        return Finding(
            "good",
            "every column fits",
            f"Each of {len(evidence.columns)} columns is drawn as the data have it, as far as so many rows can tell.",
        )
    named = ", ".join(f"{c.name} ({c.distance:.2f})" for c in worst[:LISTED])
    against = "Fits badly" if evidence.data_name == OWN else f"Draws differ from {evidence.data_name}"
    more = f" and {len(worst) - LISTED} more" if len(worst) > LISTED else ""
    return Finding(
        "bad" if worst[0].distance > MISFIT else "fair",
        f"badly fitted columns ({_listed([c.name for c in worst])})",
        f"{against}: {named}{more}. In brackets the distance between drawn values and data, 0 to 1.",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


FINDINGS: tuple[Callable[[Evidence], Finding | None], ...] = (
    training, gaussian, over_fitting, discrete, round_trip, columns,
)  # fmt: skip
