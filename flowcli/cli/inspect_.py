"""``flowcli inspect``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcli.cli import console
from flowcli.cli.app import command

if TYPE_CHECKING:
    from flowcli.flows.outline import Node
    from flowcli.model import Model
    from flowcli.training.again import Past
    from flowcli.variational.again import PastPosterior

FEW = 8  # values that are listed, at most
WIDTH = 66  # of a line of the tree, without its number of parameters
LEVELS = (0.001, 0.01, 0.05)


@command()
def inspect_(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Say what a model is.

    Its layers as a tree with shapes and parameters, its columns, its calibration, and what it was made from.
    """
    import json
    from dataclasses import asdict

    from flowcli.data.table import TableCodec
    from flowcli.flows.outline import outline
    from flowcli.training.again import Past
    from flowcli.variational.again import PastPosterior
    from flowcli.variational.posterior import is_posterior

    if is_posterior(model):
        _posterior(PastPosterior.load(model), json_)
        return
    past = Past.load(model)
    fitted, tree = past.model, outline(past.model.flow)
    reference = sum(map(len, fitted.reference or ()))
    if json_:
        about = {
            "recipe": fitted.recipe.model_dump(mode="json"),
            "tree": asdict(tree),
            "codec": fitted.codec.to_dict(),
            "reference_rows": reference,
            "calibration_rows": fitted.calibration.shape[1],
            "thresholds": {f"{alpha:g}": limit for alpha, limit in _thresholds(fitted) if limit is not None},
            "provenance": _provenance(past),
            **fitted.about,
        }
        console.result(json.dumps(about, indent=2, ensure_ascii=False))
        return
    flow = fitted.recipe.flow.model_dump()
    console.result(f"flow      {flow.pop('type')}: " + ", ".join(f"{k} {v}" for k, v in flow.items()))
    for line in _lines(tree):
        console.result(line)
    for key, value in fitted.about.items():
        console.result(f"{key.replace('_', ' '):<27} {'not finite' if value is None else f'{value:,.6g}'}")
    console.result(f"{'score method':<27} {fitted.recipe.score.method}")
    if reference:
        console.result(f"{'rows compared with':<27} {reference:,}")
    console.result(f"{'calibration rows':<27} {fitted.calibration.shape[1]:,}")
    for alpha, limit in _thresholds(fitted):
        needs = f"needs {round(1 / alpha) - 1:,} calibration rows"
        console.result(f"{f'score at alpha {alpha:g}':<27} {needs if limit is None else f'{limit:,.6g}'}")
    modelled = fitted.codec.columns if isinstance(fitted.codec, TableCodec) else ()
    if not modelled:
        image = fitted.codec.to_dict()["image"]
        console.result("images    " + ", ".join(f"{k} {v}" for k, v in image.items() if k != "given"))
    for title, columns in (("columns", modelled), ("given", fitted.codec.given)):
        if columns:
            console.result(title)
        for column in columns:
            shown = ", ".join(_details(column.to_dict()))
            console.result(console.printable(f"  {column.name}: {column.kind} ({column.arrow_type}) {shown}"))
    _print_provenance(past)


def _posterior(past: PastPosterior, json_: bool) -> None:
    """Print what a posterior is, without its target."""
    import json
    from dataclasses import asdict

    from flowcli.flows.outline import outline

    posterior, tree = past.posterior, outline(past.posterior.flow)
    recipe, target = posterior.recipe, posterior.recipe.target
    assert target is not None
    if json_:
        about = {
            "recipe": recipe.model_dump(mode="json"),
            "digest": posterior.digest,
            "tree": asdict(tree),
            "provenance": _provenance(past),
        }
        console.result(json.dumps(about | posterior.about, indent=2, ensure_ascii=False))
        return
    flow = recipe.flow.model_dump()
    console.result(f"flow      {flow.pop('type')}: " + ", ".join(f"{k} {v}" for k, v in flow.items()))
    for line in _lines(tree):
        console.result(line)
    console.result(console.printable(f"target    {target.file}: {target.function}"))
    for key, value in posterior.about.items():
        console.result(f"{key.replace('_', ' '):<27} {value:,.6g}")
    console.result("parameters")
    for name, parameter in recipe.parameters.items():
        bounds = f"({parameter.low:g}, {parameter.high:g})" if parameter.type == "interval" else ""
        shape = f" {parameter.shape}" if parameter.shape else ""
        console.result(f"  {name}: {parameter.type}{bounds}{shape}")
    _print_provenance(past)


def _print_provenance(past: Past | PastPosterior) -> None:
    console.result("provenance")
    for key, text in _provenance(past).items():
        console.result(console.printable(f"  {key:<9} {text}"))


def _lines(node: Node, before: str = "", joint: str = "") -> Iterator[str]:
    """A tree in text: name, shapes and, at the right, parameters."""
    times = f"{node.times} × " if node.times > 1 else ""
    text = f"{before}{joint}{times}{node.name}{f'  {node.shapes}' if node.shapes else ''}"
    text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    yield f"{text:<{WIDTH}} {node.parameters:>12,}" if node.parameters else text
    below = before + {"├─ ": "│  ", "└─ ": "   "}.get(joint, "")
    for part in node.parts:
        yield from _lines(part, below, "└─ " if part is node.parts[-1] else "├─ ")


def _thresholds(model: Model) -> list[tuple[float, float | None]]:
    """The score from which on a row is flagged at each level; None where there are too few held-out rows for it."""
    import math

    from flowcli.scoring import Scorer
    from flowcli.scoring.score import threshold

    limits = ((alpha, threshold(Scorer(model).held_out, alpha)) for alpha in LEVELS)
    return [(alpha, limit if math.isfinite(limit) else None) for alpha, limit in limits]


def _digest(past: Past | PastPosterior) -> str:
    """The SHA-256 of a model's file."""
    from pathlib import Path

    from flowcli.model import MODEL_FILE
    from flowcli.training.again import Past
    from flowcli.training.run import describe

    if isinstance(past, Past):
        return past.model.digest
    path = Path(past.name)
    return str(describe(str(path / MODEL_FILE if path.is_dir() else path))["sha256"])


def _provenance(past: Past | PastPosterior) -> dict[str, str]:
    """Where a model comes from: its file's digest and, of a run, when, how and from what it was made."""
    manifest, found = past.manifest, {"sha256": _digest(past)}
    if manifest:
        seconds = manifest["seconds"]
        threads = f"{manifest['threads']} thread{'s' * (manifest['threads'] != 1)}"
        training = f", {seconds['training']:,} s of training" if "training" in seconds else ""
        found |= {
            "finished": f"{manifest['finished']}, after {seconds['total']:,} s{training}",
            "command": " ".join(manifest["argv"]),
            "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
            "device": f"{manifest['device']}, {threads}, seed {manifest['seed']}",
        }
        if "failed" in manifest:
            found["failed"] = manifest["failed"]
        what = "data" if "data" in manifest else "target"
        for i, file in enumerate(manifest[what], 1):
            size = f", {file['bytes']:,} bytes, sha256 {file['sha256']}" if "bytes" in file else ""
            found[f"{what} {i}" if len(manifest[what]) > 1 else what] = f"{file['file']}{size}"
    return found


def _details(column: Mapping[str, Any], also_hidden: Sequence[str] = ("name", "kind", "arrow_type")) -> Iterator[str]:
    """What a codec knows of a column, in short: only how many of what there are many of, and nothing of what it has
    not."""
    transform = column.get("transform")
    unused = {"low", "high"} if transform != "logit" else set()
    unused |= {"unit"} if transform != "asinh" else set()
    for key, value in column.items():
        if key in {*also_hidden, *unused} or key == "counts" or value is None or value in ([], ()):
            continue
        if isinstance(value, Mapping):
            yield f"{key} ({', '.join(_details(value, ('name', 'arrow_type')))})"
        elif isinstance(value, list | tuple):
            many = len(value) > FEW or any(isinstance(part, list | tuple) for part in value)
            yield f"{len(value)} {key}" if many else f"{key} {', '.join(map(str, value))}"
        else:
            yield f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
