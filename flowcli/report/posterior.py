"""A report of a posterior: what is measured of it, what is said of it, and what is shown."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from flowcli.errors import TrainingError
from flowcli.recipe import dump, seconds
from flowcli.report.corner import corner, trace
from flowcli.report.pictures import Floats
from flowcli.report.sections import Section, Table, figure
from flowcli.report.verdict import SURE, Finding, Tone
from flowcli.variational.again import PastPosterior
from flowcli.variational.ascent import MOVES
from flowcli.variational.evaluate import USABLE, Verdict, evaluate
from flowcli.variational.target import LogDensity, digest

DRAWN = 4000  # of the flow, and resampled
CORNER = 5  # numbers in the corner plot, at most
LISTED = 60  # numbers in the table, at most


@dataclass
class PosteriorEvidence:
    """All that a report says of a posterior comes from here. Without the target's code there is no ``verdict``;
    ``failed`` says why, where there is none with it. ``resampled`` is empty unless weights can be relied on."""

    past: PastPosterior
    flow: dict[str, Floats]
    resampled: dict[str, Floats] = field(default_factory=dict)
    verdict: Verdict | None = None
    failed: str = ""
    notes: list[str] = field(default_factory=list)


def gather_posterior(past: PastPosterior, density: LogDensity | None, seed: int = 0) -> PosteriorEvidence:
    """Measure a posterior; against its target, if there is one. Raises UsageError without arviz-stats then."""
    posterior = past.posterior
    target = posterior.recipe.target
    assert target is not None
    found = PosteriorEvidence(past, _finite(pa.Table.from_batches(posterior.sample_batches(DRAWN, seed))))
    if density is None:
        found.notes.append(f"The target was not run; with --allow-code {target.file} is, and the draws are weighed.")
        return found
    if digest(target) != posterior.digest:
        found.notes.append(f"The code or the data of {target.file} have changed since the fit.")
    try:
        found.verdict = evaluate(posterior, density, seed=seed)
    except TrainingError as error:
        found.failed = str(error)
        return found
    if found.verdict.k_hat < USABLE:
        found.resampled = _finite(posterior.resampled(density, DRAWN, seed)[0])
    if posterior.about.get("peaks"):
        found.notes.append(f"K-hat cannot see a peak that no draw has found; {_peaks(found)} found before the fit.")
    return found


def _peaks(e: PosteriorEvidence) -> str:
    peaks = e.past.posterior.about["peaks"]
    return f"{peaks} peak was" if peaks == 1 else f"{peaks} peaks were"


def _finite(table: pa.Table) -> dict[str, Floats]:
    """The columns of the rows that are finite."""
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    there = np.logical_and.reduce([np.isfinite(values) for values in columns.values()])
    return {name: values[there] for name, values in columns.items()} if there.sum() > 1 else {}


# -- in words ------------------------------------------------------------------------------------------------------


def posterior_findings(e: PosteriorEvidence) -> list[Finding]:
    """What is found of a posterior, in the order in which it is told."""
    found = [_training(e), _trust(e)]
    if e.verdict and e.verdict.finite < 1:
        outside = f"{1 - e.verdict.finite:.2%} of the flow's draws are where the target's density is 0."
        tone: Tone = "fair" if e.verdict.finite < 1 - 1e-3 else "good"
        found.append(Finding(tone, "draws outside the target", outside))
    return found


def _training(e: PosteriorEvidence) -> Finding:
    evaluations, train = e.past.evaluations, e.past.posterior.recipe.train
    if not evaluations:
        words = "how it was trained is not known"
        return Finding("fair", words, "Only the model file is here: how training went is not known.")
    last, before = evaluations[-1], evaluations[-1 - max(1, len(evaluations) // 10) :][0]
    limit = seconds(train.max_time) if train.max_time else math.inf
    end = f"{last.epoch} epochs, {last.step:,} steps; the ELBO ends at {last.elbo:.4f} ± {last.elbo_error:.4f} nats"
    rose = last.elbo - before.elbo
    used = last.epoch >= train.epochs or last.seconds >= 0.99 * limit
    if used and (len(evaluations) == 1 or rose > max(MOVES, SURE * math.hypot(last.elbo_error, before.elbo_error))):
        return Finding(
            "fair",
            "the ELBO may still be rising",
            f"All of the {'time' if last.epoch < train.epochs else 'epochs'} it was given went by, and the ELBO may "
            f"still be rising: {end}. A greater train.epochs or train.max_time may bring it nearer.",
        )
    return Finding("good", "trained", f"Trained until the ELBO rested: {end}.")


def _trust(e: PosteriorEvidence) -> Finding:
    if e.failed:
        return Finding("bad", "the fit has failed", f"The draws cannot be weighed: {e.failed}")
    if e.verdict is None:
        words = "its draws were not set against the target"
        return Finding("fair", words, "Whether the draws can be trusted needs the target, which was not run.")
    k_hat, answer = e.verdict.k_hat, e.verdict.trust
    told = f"Can its draws be trusted? {answer[0].upper()}{answer[1:]}. K-hat is {k_hat:.2f}."
    if not k_hat < USABLE:
        return Finding("bad", f"k-hat is {k_hat:.2f}", told)
    if e.verdict.as_they_are:
        return Finding("good", "its draws can be trusted", told)
    return Finding("fair", "use its draws with --resample or --weights", told)


# -- in pictures and tables ----------------------------------------------------------------------------------------


def posterior_sections(e: PosteriorEvidence, png: bool) -> list[Section]:
    """The parts of the page, in order; pictures as PNG too, if asked for."""
    made = [_trace(e, png), _posterior(e, png), _weights(e), _made_of(e)]
    return [section for section in made if section]


def _trace(e: PosteriorEvidence, png: bool) -> Section | None:
    if len(e.past.evaluations) < 2:
        return None
    last = e.past.evaluations[-1]
    text = f"{last.epoch} epochs, {last.step:,} steps, {last.seconds:,.1f} s of training."
    return Section("Training", text, [(trace(e.past.evaluations, png), "")])


def _posterior(e: PosteriorEvidence, png: bool) -> Section | None:
    if not e.flow:
        return None
    varied = [name for name, values in e.flow.items() if np.ptp(values) > 0]
    shown = sorted(varied, key=lambda name: "[" in name)[:CORNER]  # single numbers before parts of arrays
    source, name = (e.resampled, "resampled by their weights") if e.resampled else (e.flow, "the flow's own")
    rows = [[label, *_summary(values)] for label, values in list(source.items())[:LISTED]]
    text = f"{DRAWN:,} draws, {name}." + (f" The table has the first {LISTED}." if len(source) > LISTED else "")
    drawings = []
    if shown:
        caption = "" if len(shown) == len(e.flow) else f"{len(shown)} of {len(e.flow)} numbers"
        beside = {label: e.resampled[label] for label in shown} if e.resampled else None
        drawings.append((corner({label: e.flow[label] for label in shown}, beside, png), caption))
    head = ["number", "mean", "deviation", "90 % within"]
    return Section("The posterior", text, drawings, Table(head, rows), key="resampled" if e.resampled else "")


def _summary(values: Floats) -> list[str]:
    low, high = np.quantile(values, [0.05, 0.95])
    return [f"{values.mean():,.4g}", f"{values.std(ddof=1):,.4g}", f"{low:,.4g} … {high:,.4g}"]


def _weights(e: PosteriorEvidence) -> Section | None:
    v = e.verdict
    if v is None:
        return None
    rows = [
        ["ELBO", f"{v.elbo:.4f} ± {v.elbo_error:.4f} nats"],
        ["evidence", f"{v.evidence:.4f} ± {v.evidence_error:.4f} nats, by importance weights"],
        ["divergence", f"{v.divergence:.4f} nats from the flow to the posterior"],
        ["k-hat", f"{v.k_hat:.2f}; weights can be relied on below {USABLE}"],
        ["effective sample size", f"{v.effective_sample_size:,.0f} of {v.draws:,}"],
    ]
    return Section("Against the target", "", (), Table(["", ""], rows))


def _made_of(e: PosteriorEvidence) -> Section:
    posterior, manifest = e.past.posterior, e.past.manifest
    target = posterior.recipe.target
    assert target is not None
    rows = [["flow", posterior.recipe.flow.type], ["target", f"{target.file}: {target.function}"]]
    rows += [[key.replace("_", " "), figure(value)] for key, value in posterior.about.items()]
    folded = [("The recipe, every default written out", dump(posterior.recipe))]
    if manifest:
        folded.append(("The manifest (run.json)", json.dumps(manifest, indent=2, ensure_ascii=False)))
    return Section("What it was made of", "", (), Table(["", ""], rows), folded)
