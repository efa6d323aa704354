"""``flowcli compare``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcli.cli import console
from flowcli.cli.app import command

if TYPE_CHECKING:
    import pyarrow as pa

    from flowcli.training.again import Past


@command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders or model files; the first is the measure.")
    ],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="DATA", help="Rows to compare on; else those that the runs held out."),
    ] = [],  # noqa: B006
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="A two-valued column; its greater value marks anomalies.")
    ] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Compare runs on the same rows.

    Held-out log-likelihood, each row's difference from the first run, bits per dimension, AUROC with labels.
    """
    import json
    from dataclasses import asdict

    from flowcli.cli.formats import read_source
    from flowcli.data.source import STDIN
    from flowcli.errors import UsageError
    from flowcli.scoring.compare import compare as measure
    from flowcli.training.again import Past
    from flowcli.training.device import choose
    from flowcli.variational.posterior import is_posterior

    if wrong := [run for run in runs if is_posterior(run)]:
        raise UsageError(
            f"{wrong[0]}: is of a target, and `compare` is for runs of data; `flowcli report` shows posteriors side by "
            f"side."
        )
    if STDIN in data and len(runs) > 1:
        raise UsageError("standard input (-) can be read only once, and there are several runs.")
    if label is not None and not data:
        raise UsageError("--label: needs --data, since labels are seldom among a run's own columns.")
    pasts = [Past.load(run) for run in runs]
    for past in pasts:
        past.model.flow.to(choose(device))
    models = [past.model for past in pasts]
    if data:
        rows = [(batch for _, batch in read_source(data, model).batches()) for model in models]
        found = measure(models, rows, label)
    else:
        found = measure(models, [_held_out(pasts)] * len(pasts))
    if len({frozenset(model.codec.schema.names) for model in models}) > 1:
        console.warn("these runs model different columns, so their log-likelihoods are not of the same thing")
    table = [
        {
            "run": past.name,
            "flow": _flow(past),
            "parameters": past.model.about.get("parameters"),
            "seconds": past.manifest.get("seconds", {}).get("training"),
        }
        | {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(figures).items()}
        for past, figures in zip(pasts, found, strict=True)
    ]
    if json_:
        console.result(json.dumps(table, indent=2, ensure_ascii=False))
        return
    first = found[0]
    console.note(
        f"{first.rows_in_mean:,} of {first.rows:,} {'rows' if data else 'held-out rows'}; nats a row; differences are "
        f"from {pasts[0].name}, row by row"
    )
    _print(table, label is not None)


def _flow(past: Past) -> str:
    flow = past.model.recipe.flow
    parts = [flow.type, getattr(flow, "transform", ""), f"{flow.layers}×{flow.hidden}"]
    return " ".join(filter(None, parts))


def _held_out(pasts: Sequence[Past]) -> list[pa.Table]:
    """The rows that all of the runs held out. Raises UsageError when these are different ones, or may be."""
    from flowcli.data.source import STDIN
    from flowcli.errors import UsageError

    def hashes(past: Past) -> list[str | None]:
        return [file.get("sha256") for file in past.manifest.get("data", [])]

    def split(past: Past) -> list[Any]:
        recipe = past.model.recipe
        return [hashes(past), recipe.data.validation, recipe.train.seed, recipe.train.stream]

    for past in pasts if len(pasts) > 1 else ():
        known = hashes(past)
        if not known or None in known or STDIN in past.model.recipe.data.files:
            raise UsageError(
                f"{past.name} has no hashes of the files it was fitted to, so which rows it held out is not sure; name "
                f"rows with --data."
            )
    for past in pasts[1:]:
        if split(past) != split(pasts[0]):
            raise UsageError(
                f"{past.name} and {pasts[0].name} held out different rows; name rows for both with --data."
            )
    return [pasts[0].rows().held_out]


def _print(table: Sequence[dict[str, Any]], labelled: bool) -> None:
    head = ["run", "flow", "parameters", "seconds", "log-likelihood", "difference", "bits/dim"]
    lines = [[*head, "AUROC"] if labelled else head]
    for i, row in enumerate(table):
        difference = f"{row['difference']:+.4f} ± {_error(row['difference_error'])}" if i else ""
        line = [
            console.printable(row["run"]),
            row["flow"],
            "?" if row["parameters"] is None else f"{row['parameters']:,}",
            "?" if row["seconds"] is None else f"{row['seconds']:,.1f}",
            f"{row['log_prob']:.4f} ± {_error(row['log_prob_error'])}",
            difference,
            f"{row['bits_per_dim']:.4f}",
        ]
        lines.append([*line, f"{row['auroc']:.4f}"] if labelled else line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        left = [f"{cell:<{width}}" for cell, width in zip(line[:2], widths, strict=False)]
        right = [f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True)]
        console.result("  ".join([*left, *right]))


def _error(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"
