"""``flowcli score``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.sharded import SHARD

if TYPE_CHECKING:
    import pyarrow as pa

Method = Literal["auto", "nll", "typicality", "neighbours", "complexity", "either"]


@command()
def score(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    data: Annotated[list[str], typer.Argument(help="Files, globs, folders, or - for standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="A file; its ending says the format. - is standard output.")
    ] = "-",
    keep: Annotated[
        list[str], typer.Option("--keep", metavar="COLS", help="Input columns to copy, separated by commas.")
    ] = [],  # noqa: B006
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Copy every input column.")] = False,
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Flag rows whose p-value is at most this.")
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="Q", help="Flag as many as keep false alarms to a share Q of them."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Flag rows whose score is at least this.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="How log-densities become scores. [default: the recipe's]")
    ] = None,
    explain: Annotated[
        int,
        typer.Option(min=0, max=100, metavar="K", help="The K columns that make a row odd, and by how many nats."),
    ] = 0,
    dequantization_samples: Annotated[
        int | None, typer.Option(min=1, max=4096, metavar="K", help="Points in each cell of whole numbers and pixels.")
    ] = None,
    fail_over: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="RATE", help="Exit 10 when a greater share of the rows is flagged."),
    ] = None,
    only_anomalies: Annotated[bool, typer.Option("--only-anomalies", help="Write flagged rows only.")] = False,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -, on either side, and of names without an ending."
        ),
    ] = None,
    shard: SHARD = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
) -> None:
    """Score rows: how likely, how odd, p-values.

    One row out for every row in: its log-density, its anomaly score (higher is odder), its p-value.
    """
    from flowcli.errors import GateError, UsageError

    asked = [f"--{k}" for k, v in {"alpha": alpha, "fdr": fdr, "threshold": threshold}.items() if v is not None]
    for option, given in (("--only-anomalies", only_anomalies), ("--fail-over", fail_over is not None)):
        if given and not asked:
            raise UsageError(f"{option}: needs --alpha, --fdr or --threshold, which say what an anomaly is.")
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)}: give one of them.")

    import pyarrow.compute as pc

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.cli.sharded import check_shard, score_shard
    from flowcli.data.sink import check_output, open_sink, output_format
    from flowcli.errors import DataError
    from flowcli.ordered import in_order
    from flowcli.scoring import Level, Likeness, RowScorer, Scorer, discoveries, in_one_schema, pieces

    check_format(format)
    if shard is None:
        check_output(output, format, force)
    else:
        check_shard(shard, output, format, force, {"--fdr": fdr is not None, "--fail-over": fail_over is not None})
    fitted = loaded(model, device)
    # With --fdr no row that has a greater p-value than Q is flagged in the end.
    level = Level(alpha=fdr if fdr is not None else alpha, threshold=threshold)
    scorer = Scorer(fitted, level, method, dequantization_samples, explain)
    if level.alpha is not None and level.alpha < scorer.least_p_value:
        console.warn(
            f"{asked[0]} {level.alpha:g} flags no row: beside {len(scorer.held_out):,} held-out rows no p-value is "
            f"below {scorer.least_p_value:.3g}. A fit with more rows, or a greater data.validation, has smaller ones."
        )
    wanted = tuple(name.strip() for names in keep for name in names.split(","))
    text = shard is None and output_format(output, format) in ("csv", "tsv", "jsonl")
    score_rows = RowScorer(scorer, None if keep_all else wanted, text)
    if shard is not None:
        score_shard(shard, score_rows, data, output, only_anomalies)
        return

    source = read_source(data, fitted, format).batches()
    found = pieces(source, fitted.codec.rows_at_once, together=score_rows.together)
    batches = in_one_schema(in_order(score_rows, found, fitted.threads))
    if fdr is not None:
        batches = discoveries(batches, fdr)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{', '.join(data)}: no rows.")
    rows, anomalies, likeness = 0, 0, Likeness()
    with open_sink(output, first.schema, format, force) as sink:
        for batch in itertools.chain([first], batches):
            rows += batch.num_rows
            likeness.add(batch)
            flagged = pc.fill_null(batch.column("is_anomaly"), False) if asked else None
            anomalies += 0 if flagged is None else pc.sum(flagged).as_py() or 0
            sink.write(batch.filter(flagged) if only_anomalies else batch)
    if output != "-":
        written = console.counted(anomalies if only_anomalies else rows, "row", "rows")
        odd = f", {console.counted(anomalies, 'anomaly', 'anomalies')}" if asked else ""
        console.note(f"{written} written to {output}{odd}")
    if likeness.strange:
        halved = " --fdr takes half of them for normal, and flags what stands out from these."
        console.warn(f"{likeness.sentence()}{halved if fdr is not None else ''}")
    if fail_over is not None and fdr is not None and likeness.strange:
        raise GateError("--fail-over: the rows are of another kind than those of the fit, or most are anomalies.")
    if fail_over is not None and anomalies > fail_over * rows:
        all_rows = console.counted(rows, "row is", "rows are")
        raise GateError(f"{anomalies:,} of {all_rows} flagged, more than a share of {fail_over:g}.")
    if output != "-" or sys.stderr.isatty():  # in a pipeline, what comes next is there already
        console.note(f"Next: {_next(model, data, output, first.schema)}")


def _next(model: str, data: Sequence[str], output: str, schema: pa.Schema) -> str:
    """A command that ranks the rows, where a shell can, and one that shows the oddest of them and why."""
    place = schema.get_field_index("score") + 1
    ranked = f"sort -t, -k{place},{place}gr {console.quoted(output)} | head; " if output.endswith(".csv") else ""
    shown = [console.quoted(name) for name in (model, *data) if name != "-"]
    return f"{ranked}flowcli report {' '.join(shown)}"
