"""``flowcli evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.target import AllowCode, evaluate_target, refuse

if TYPE_CHECKING:
    from flowcli.scoring import Copies


@command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    data: Annotated[
        list[str] | None, typer.Argument(help="Files, globs, folders, or - for standard input; none for a target.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COL", help="A two-valued column; its greater value marks anomalies.")
    ] = None,
    copies: Annotated[
        list[str],
        typer.Option(
            metavar="TRAIN",
            help="Are draws nearer to these training rows than DATA, held-out rows, are? May be repeated.",
        ),
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws of --copies, or of a target.")] = 0,
    allow_code: AllowCode = False,
    format: Annotated[str | None, typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -.")] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Measure a model on data, or against its target.

    Log-likelihood, bits per dimension, a Gaussian beside it, AUROC with labels, and whether draws copy training rows.
    Where one column is told by given ones: CRPS, and how much its central intervals cover.
    Of a target: ELBO, evidence, k-hat, effective sample size, and whether its draws can be trusted.
    """
    import json
    import math
    from dataclasses import asdict

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.data.source import STDIN
    from flowcli.errors import UsageError
    from flowcli.scoring import copies as compare
    from flowcli.scoring import draw_like, new_rows, train_rows
    from flowcli.scoring import evaluate as measure
    from flowcli.variational.posterior import Posterior, is_posterior

    check_format(format)
    if is_posterior(model):
        refuse({"DATA": data, "--label": label is not None, "--copies": copies, "--format": format})
        evaluate_target(Posterior.load(model), allow_code, seed, json_)
        return
    if not data:
        raise UsageError("no data: name files after the model.")
    if copies and label is not None:
        raise UsageError("--copies: DATA must be rows like the training rows, and --label says that some are not.")
    if STDIN in copies and STDIN in data:
        raise UsageError("standard input (-) can be read only once.")
    fitted = loaded(model, device)
    batches = (batch for _, batch in read_source(data, fitted, format).batches())
    copied = None
    if copies:
        new, train = new_rows(fitted), read_source(copies, fitted, format)
        found = measure(fitted, new.passing(batches))
        drawn = draw_like(fitted, new.table(), seed)
        copied = compare(fitted, drawn, new.table(), train_rows(fitted, (batch for _, batch in train.batches())))
        if copied.identical_new == 1:
            console.warn("--copies: every row of DATA is also a training row; the rows to compare with must be others")
    else:
        found = measure(fitted, batches, label)
    if json_:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
        console.result(json.dumps(values | ({"copies": asdict(copied)} if copied else {}), indent=2))
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
    if found.crps is not None and found.coverage is not None:
        part = "" if found.rows_predicted == found.rows_in_mean else f" (of the first {found.rows_predicted:,} rows)"
        lines.append(("CRPS", f"{found.crps:.4g} ± {found.crps_error:.2g}{part}"))
        lines += [(f"within {level} % interval", f"{share:.1%}") for level, share in found.coverage.items()]
    if copied:
        lines += _lines(copied)
    for name, value in lines:
        console.result(f"{name:<21} {value}")


def _lines(found: Copies) -> list[tuple[str, str]]:
    """What is said of copies: of drawn rows, and of new ones beside them."""
    return [
        (
            "against training rows",
            f"{found.rows:,} drawn and {found.rows_new:,} new rows, against {found.rows_train:,}",
        ),
        ("identical to one", f"{found.identical:.2%} drawn, {found.identical_new:.2%} new"),
        ("distance, median", f"{found.median:.4g} drawn, {found.median_new:.4g} new"),
        ("distance, 5 %", f"{found.low:.4g} drawn, {found.low_new:.4g} new"),
        ("as near as that", f"{found.near:.2%} drawn, {found.near_new:.2%} new"),
        ("nearer than a new row", f"{found.auroc:.4f} (AUROC; 0.5 by chance)"),
        ("copies", f"{'yes' if found.copied else 'no more than chance gives'} (p = {found.p_value:.2g})"),
    ]
