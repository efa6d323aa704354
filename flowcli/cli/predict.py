"""``flowcli predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command


@command()
def predict(
    model: Annotated[str, typer.Argument(help="A run folder or a model file, of one column given others.")],
    data: Annotated[list[str], typer.Argument(help="Files, globs, folders, or - for standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="A file; its ending says the format. - is standard output.")
    ] = "-",
    quantiles: Annotated[
        str, typer.Option(metavar="Q,Q…", help="Quantiles beside the mean and the median, between 0 and 1.")
    ] = "0.05,0.95",
    keep: Annotated[
        list[str], typer.Option("--keep", metavar="COLS", help="Input columns to copy, separated by commas.")
    ] = [],  # noqa: B006
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Copy every input column.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -, on either side, and of names without an ending."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
) -> None:
    """Predict a column from given ones: mean, median, quantiles.

    One row out for every row in, from a thousand draws of p(column | given). `sample --given` writes draws themselves.
    """
    import itertools

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.data.sink import check_output, open_sink, output_format
    from flowcli.errors import DataError
    from flowcli.scoring import Predictor, RowScorer, in_one_schema, pieces
    from flowcli.scoring.predict import AT_ONCE

    asked = _shares(quantiles)
    check_format(format)
    check_output(output, format, force)
    fitted = loaded(model, device)
    predictor = Predictor(fitted, asked, seed)
    wanted = tuple(name.strip() for names in keep for name in names.split(","))
    text = output_format(output, format) in ("csv", "tsv", "jsonl")
    predict_rows = RowScorer(predictor, None if keep_all else wanted, text)
    found = pieces(read_source(data, fitted, format).batches(), AT_ONCE)
    batches = in_one_schema(map(predict_rows, found))  # drawing takes several threads by itself
    first = next(batches, None)
    if first is None:
        raise DataError(f"{', '.join(data)}: no rows.")
    rows = 0
    with open_sink(output, first.schema, format, force) as sink:
        for batch in itertools.chain([first], batches):
            rows += batch.num_rows
            sink.write(batch)
    if output != "-":
        console.note(f"{console.counted(rows, 'row', 'rows')} written to {output}")


def _shares(text: str) -> list[float]:
    """Numbers between 0 and 1, separated by commas, each once. Raises UsageError."""
    from flowcli.errors import UsageError

    shares: dict[float, None] = {}
    for word in text.split(","):
        try:
            share = float(word)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            raise UsageError(
                f"--quantiles: '{word.strip()}' is not a number between 0 and 1; say --quantiles 0.05,0.95."
            )
        shares[share] = None
    return list(shares)
