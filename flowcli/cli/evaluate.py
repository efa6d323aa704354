"""``flowcli evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command


@command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    data: Annotated[list[str], typer.Argument(help="Files, globs, folders, or - for standard input.")],
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="A two-valued column; its greater value marks anomalies.")
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -.")] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Measure a model on data.

    Log-likelihood, bits per dimension, a Gaussian beside it, and AUROC with labels.
    """
    import json
    import math
    from dataclasses import asdict

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.scoring import evaluate as measure

    check_format(format)
    fitted = loaded(model, device)
    found = measure(fitted, (batch for _, batch in read_source(data, fitted, format).batches()), label)
    if json_:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
        console.result(json.dumps(values, indent=2))
        return
    others = ", ".join(f"{n:,} {name}" for name, n in found.statuses.items() if name != "ok")
    lines = [
        (
            "rows",
            f"{found.rows:,}"
            + (
                f" ({found.rows_in_mean:,} in the means; {others})" if others or found.rows_in_mean < found.rows else ""
            ),
        ),
        ("log-likelihood", f"{found.log_prob:.4f} ± {found.log_prob_error:.4f} nats a row"),
        ("bits per dimension", f"{found.bits_per_dim:.4f}"),
        ("Gaussian", f"{found.gaussian_log_prob:.4f} ± {found.gaussian_log_prob_error:.4f}"),
        ("diagonal Gaussian", f"{found.diagonal_gaussian_log_prob:.4f}"),
        ("better than Gaussian", f"{found.better_than_gaussian:+.4f} ± {found.better_than_gaussian_error:.4f}"),
    ]
    if found.auroc is not None and found.average_precision is not None:
        lines += [("AUROC", f"{found.auroc:.4f}"), ("average precision", f"{found.average_precision:.4f}")]
    for name, value in lines:
        console.result(f"{name:<21} {value}")
