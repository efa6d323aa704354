"""The parts of a report, in order: what each shows of a run, or None where it has nothing to show."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from flowcli.data.gallery import sheet
from flowcli.recipe import dump
from flowcli.report import pictures
from flowcli.report.evidence import BASE_DRAWS, Evidence
from flowcli.report.pictures import ALPHAS, Picture
from flowcli.scoring.score import threshold

COLUMNS = 60  # that are drawn, at most


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; a wide one scrolls by itself."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Photo:
    """A PNG with a file name and what it shows."""

    name: str
    alt: str
    png: bytes

    @property
    def uri(self) -> str:
        """The PNG as a page holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """What one run has under a heading: sentences, pictures with their captions, a table, texts to be unfolded."""

    title: str
    text: str = ""
    drawings: Sequence[tuple[Picture | Photo, str]] = ()
    table: Table | None = None
    folded: Sequence[tuple[str, str]] = field(default=())
    key: str = ""  # what the blue in the pictures is, beside the orange of drawn rows


def sections(evidence: Evidence, png: bool) -> list[Section]:
    """All that there are; pictures as PNG too, if asked for."""
    return [section for make in SECTIONS if (section := make(evidence, png))]


def _training(e: Evidence, png: bool) -> Section | None:
    evaluations = e.past.evaluations
    if len(evaluations) < 2:
        return None
    last = evaluations[-1]
    text = f"{last.epoch} epochs, {last.step:,} steps, {last.seconds:,.1f} s of training."
    return Section("Training", text, [(pictures.curves(evaluations, png), "")])


def _columns(e: Evidence, png: bool) -> Section | None:
    if not e.columns:
        return None
    shown, text = e.columns, ""
    if len(shown) > COLUMNS:
        shown = sorted(shown, key=lambda column: -column.distance)[:COLUMNS]
        text = f"The {COLUMNS} of {len(e.columns)} columns that fit worst. "
    text += "Distances go from 0 to 1; pictures show the central 99 %."
    drawings: list[tuple[Picture | Photo, str]] = []
    for column in shown:
        caption = f"{column.name}: distance {column.distance:.2f}{', beyond chance' if column.misfit else ''}"
        if max(column.missing):
            caption += f"; missing {column.missing[0]:.1%}, drawn {column.missing[1]:.1%}"
        drawings.append((pictures.column(column, png), caption))
    return Section("Columns", text, drawings, key=e.data_name)


def _pairs(e: Evidence, png: bool) -> Section | None:
    if not e.pairs:
        return None
    drawings: list[tuple[Picture | Photo, str]] = [
        (pictures.pair(p, png), f"Mutual information {p.data:.2f} nats, drawn {p.drawn:.2f}") for p in e.pairs
    ]
    return Section("The most dependent pairs of columns", "", drawings, key=e.data_name)


def _calibration(e: Evidence, png: bool) -> Section | None:
    drawings: list[tuple[Picture | Photo, str]] = []
    if len(e.latents):
        label = f"place among the base's draws, {e.fresh_name}"
        caption = "Probability-integral transform: flat, within the band, if the flow has learned the distribution."
        drawings.append((pictures.uniform(e.latents, BASE_DRAWS, "pit", label, png), caption))
    if len(e.p_values):
        caption = (
            "Flat unless over-fitted: training rows would be too usual."
            if e.p_values_of == "training rows"
            else "Flat if these are rows like the training rows; a peak at 0 are anomalies."
        )
        picture = pictures.uniform(e.p_values, len(e.held_out_scores), "p_values", f"p-value, {e.p_values_of}", png)
        drawings.append((picture, caption))
    return Section("Calibration", "", drawings) if drawings else None


def _scores(e: Evidence, png: bool) -> Section | None:
    if len(e.held_out_scores) < 2:
        return None
    rows = []
    for alpha in ALPHAS:
        limit = threshold(e.held_out_scores, alpha)
        if math.isinf(limit):
            rows.append([f"{alpha:.1%}", f"needs {math.ceil(1 / alpha) - 1:,} held-out rows", ""])
        else:
            flagged = f"{np.mean(e.scores >= limit):.2%}" if len(e.scores) else ""
            rows.append([f"{alpha:.1%}", f"{limit:.4g}", flagged])
    head = ["α", "score from", f"flagged of {e.fresh_name}"]
    if not len(e.scores):
        head, rows = head[:2], [row[:2] for row in rows]
    picture = pictures.scores(e.held_out_scores, e.scores, e.fresh_name, png)
    text = f"{len(e.held_out_scores):,} held-out rows say what is usual."
    return Section("Scores and thresholds", text, [(picture, "")], Table(head, rows))


def _oddest(e: Evidence, png: bool) -> Section | None:
    if not e.oddest:
        return None
    numbered = any(odd.name for odd in e.oddest)
    rows, folded = [], []
    for i, odd in enumerate(e.oddest, 1):
        why = "; ".join(f"{name} = {value} ({nats:+.1f})" for name, value, nats in odd.reasons)
        figures = ["" if v is None else f"{v:.2f}" if k else f"{v:.2g}" for k, v in ((1, odd.score), (0, odd.p_value))]
        status = "" if odd.status == "ok" else f" [{odd.status}]"
        rows.append([odd.name or str(i), *figures, (why or "no column by itself") + status])
        folded.append((odd.name or str(i), ", ".join(f"{name} = {value}" for name, value in odd.others)))
    head = ["row" if numbered else "#", "score", "p", "because of (nats it would gain if drawn anew)"]
    values = [("Their other values", "\n".join(f"{name}: {text}" for name, text in folded if text))]
    return Section(f"The oddest of {e.fresh_name}", "", (), Table(head, rows), values if values[0][1] else ())


def _images(e: Evidence, png: bool) -> Section | None:
    drawings: list[tuple[Picture | Photo, str]] = []
    for what, files in e.sheets.items():
        if files:
            stream = io.BytesIO()
            sheet([Image.open(io.BytesIO(file)) for file in files], across=4).save(stream, "PNG")
            drawings.append((Photo(f"images {what}", f"Pictures: {what}.", stream.getvalue()), what.capitalize()))
    return Section("Images", "", drawings) if drawings else None


def _made_of(e: Evidence, png: bool) -> Section:
    about, manifest = e.model.about, e.past.manifest
    rows = [["flow", e.model.recipe.flow.type], *([k.replace("_", " "), figure(v)] for k, v in about.items())]
    folded = [("The recipe, every default written out", dump(e.model.recipe))]
    if manifest:
        folded.append(("The manifest (run.json)", json.dumps(manifest, indent=2, ensure_ascii=False)))
    return Section("What it was made of", "", (), Table(["", ""], rows), folded)


def figure(value: float | None) -> str:
    """A number as a table has it."""
    return "not finite" if value is None else f"{value:,.6g}"


SECTIONS: tuple[Callable[[Evidence, bool], Section | None], ...] = (
    _training, _columns, _pairs, _images, _calibration, _scores, _oddest, _made_of,
)  # fmt: skip
