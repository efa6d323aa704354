"""``flowcli sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command


@command()
def sample(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows; with given rows, how many for each.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="A file; its ending says the format. - is standard output.")
    ] = "-",
    given: Annotated[
        list[str], typer.Option(metavar="COL=VALUE|FILE", help="Values of the given columns, or a file of them.")
    ] = [],  # noqa: B006
    temperature: Annotated[float, typer.Option(min=0.0, help="Spread of the latent: below 1 is more typical.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    format: Annotated[str | None, typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -.")] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
) -> None:
    """Draw new rows, with the training table's columns and types."""
    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.data.sink import check_output, open_sink
    from flowcli.errors import UsageError
    from flowcli.recipe.yaml import scalar

    check_format(format)
    check_output(output, format if output == "-" else None, force)
    fitted = loaded(model, device)
    pairs = [g for g in given if "=" in g and not Path(g).exists()]
    files = [g for g in given if g not in pairs]
    if pairs and files:
        raise UsageError("--given: give values or a file, not both.")
    table = read_source(files, fitted, format).table() if files else None
    values = {key: scalar(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    batches = fitted.sample_batches(n, table if files else values or None, seed, temperature)
    rows = 0
    with open_sink(output, fitted.sample_schema(), format if output == "-" else None, force) as sink:
        for batch in batches:
            sink.write(batch)
            rows += batch.num_rows
    if output != "-":
        console.note(f"{rows:,} rows written to {output}")
