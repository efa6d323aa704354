"""The page: one HTML file that needs nothing else, and its pictures as PNG files."""

from __future__ import annotations

import importlib.resources
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flowcli import __version__
from flowcli.data.whole import write_whole
from flowcli.report.evidence import Evidence
from flowcli.report.pictures import Picture
from flowcli.report.posterior import PosteriorEvidence, posterior_findings, posterior_sections
from flowcli.report.sections import Section, sections
from flowcli.report.verdict import Finding, Tone, notes, summary, verdict


@dataclass(frozen=True)
class Told:
    """A run as the page tells of it."""

    name: str
    tone: Tone
    summary: str
    findings: list[Finding]
    notes: list[str]
    sections: dict[str, Section]


def tell(evidence: Evidence | PosteriorEvidence, png: bool = False) -> Told:
    """Words, pictures and tables of a run; pictures as PNG too, if asked for."""
    if isinstance(evidence, PosteriorEvidence):
        findings, parts, more = posterior_findings(evidence), posterior_sections(evidence, png), list[str]()
    else:
        findings, parts, more = verdict(evidence), sections(evidence, png), notes(evidence)
    tone, sentence = summary(findings)
    by_title = {section.title: section for section in parts}
    return Told(evidence.past.name, tone, sentence, findings, evidence.notes + more, by_title)


def render(runs: Sequence[Told]) -> str:
    """The page of one run, or of several side by side."""
    text = importlib.resources.files("flowcli.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["inlined"] = lambda picture: Markup(picture.svg) if isinstance(picture, Picture) else ""
    titles = list(dict.fromkeys(title for run in runs for title in run.sections))
    return environment.from_string(text).render(runs=runs, titles=titles, version=__version__)


def write_pictures(runs: Sequence[Told], folder: pathlib.Path) -> int:
    """Each picture as a PNG file, named after its run where there are several; their number. Raises DataError."""
    written: set[str] = set()
    for run in runs:
        for picture in (picture for section in run.sections.values() for picture, _ in section.drawings):
            stem = _file_name(f"{run.name} {picture.name}" if len(runs) > 1 else picture.name)
            name, n = stem, 2
            while name in written:
                name, n = f"{stem}-{n}", n + 1
            written.add(name)
            write_whole(folder / f"{name}.png", picture.png)
    return len(written)


def _file_name(text: str) -> str:
    """Lower-case letters, digits and hyphens."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:80] or "picture"
