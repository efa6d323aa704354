"""``flowcli score``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowcli.cli import console
from flowcli.cli.app import command

if TYPE_CHECKING:
    import pyarrow as pa

Method = Literal["auto", "nll", "typicality", "complexity"]


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
    threshold: Annotated[float | None, typer.Option(help="Flag rows whose score is at least this.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="How log-densities become scores. [default: the recipe's]")
    ] = None,
    dequantization_samples: Annotated[
        int | None, typer.Option(min=1, max=4096, metavar="K", help="Points in each cell of whole numbers and pixels.")
    ] = None,
    only_anomalies: Annotated[bool, typer.Option("--only-anomalies", help="Write flagged rows only.")] = False,
    format: Annotated[
        str | None, typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of - on either side.")
    ] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
) -> None:
    """Score rows: log-density, anomaly score (higher is odder), p-value. One row out for every row in."""
    from flowcli.errors import UsageError

    if only_anomalies and alpha is None and threshold is None:
        raise UsageError("--only-anomalies: needs --alpha or --threshold, which say what an anomaly is.")
    if alpha is not None and threshold is not None:
        raise UsageError("--alpha and --threshold: give one of them.")

    import pyarrow as pa
    import pyarrow.compute as pc

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.data.image import COLUMN as IMAGE
    from flowcli.data.image import FILE
    from flowcli.data.sink import check_output, open_sink
    from flowcli.errors import DataError
    from flowcli.scoring import Level, score_batch

    check_format(format)
    check_output(output, format if output == "-" else None, force)
    fitted = loaded(model, device)
    level = Level(alpha=alpha, threshold=threshold)
    pictures = fitted.recipe.data.image is not None
    own = (FILE, IMAGE) if pictures else ()
    wanted = [name.strip() for names in keep for name in names.split(",")]

    def scored() -> Iterator[pa.RecordBatch]:
        row = 0
        for file, batch in read_source(data, fitted, format).batches():
            columns = {
                "row_id": pa.array(range(row, row + batch.num_rows), pa.int64()),
                "source": batch.column(FILE) if pictures else pa.array([file] * batch.num_rows, pa.string()),
            }
            row += batch.num_rows
            for name in (n for n in batch.schema.names if n not in own) if keep_all else wanted:
                if name not in batch.schema.names:
                    raise DataError(f"--keep: the data has no column '{name}'.")
                if name in ("row_id", "source"):
                    raise UsageError(f"--keep: '{name}' is also the name of a score column; rename it.")
                columns[name] = batch.column(name)
            result = score_batch(fitted, batch, level, method, dequantization_samples)
            clash = set(columns) & set(result.schema.names)
            if clash:
                raise UsageError(f"--keep: '{sorted(clash)[0]}' is also the name of a score column; rename it.")
            columns |= dict(zip(result.schema.names, result.columns, strict=True))
            out = pa.RecordBatch.from_pydict(columns)
            yield out.filter(pc.fill_null(out.column("is_anomaly"), False)) if only_anomalies else out

    batches = scored()
    first = next(batches, None)
    if first is None:
        raise DataError(f"{', '.join(data)}: no rows.")
    rows, anomalies, schema = 0, 0, first.schema
    with open_sink(output, first.schema, format if output == "-" else None, force) as sink:
        while first is not None:
            sink.write(_in(schema, first))
            rows += first.num_rows
            anomalies += pc.sum(first.column("is_anomaly")).as_py() or 0 if level else 0
            first = next(batches, None)
    if output != "-":
        console.note(f"{rows:,} rows written to {output}" + (f", {anomalies:,} anomalies" if level else ""))


def _in(schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch in the schema of the first. Raises DataError when a kept column's values do not fit it."""
    import pyarrow as pa

    from flowcli.errors import DataError

    columns = []
    for field, column in zip(schema, batch.columns, strict=True):
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException:
            raise DataError(f"column '{field.name}': holds {column.type} here and {field.type} before.") from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)
