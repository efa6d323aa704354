"""``flowcli sample``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.sharded import SHARD
from flowcli.cli.target import AllowCode, draws, refuse

if TYPE_CHECKING:
    import pyarrow as pa

    from flowcli.data.sink import Sink

BINARY = ("parquet", "arrow")
MAX_ROUND_TRIP = 1e-3


@command()
def sample(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many rows; with given rows, how many for each.")
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A file; its ending says the format. - is standard output. Images: DIR/ or SHEET.png.",
        ),
    ] = "-",
    given: Annotated[
        list[str], typer.Option(metavar="COL=VALUE|FILE", help="Values of the given columns, or a file of them.")
    ] = [],  # noqa: B006
    temperature: Annotated[float, typer.Option(min=0.0, help="Spread of the latent: below 1 is more typical.")] = 1.0,
    between: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Images from one to another, in place of draws.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="How many images --between gives, both ends included.")] = 8,
    latents: Annotated[
        bool, typer.Option("--latents", help="Also what each row was drawn from, a column for every scale.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Of a target: add the logarithm of Pareto-smoothed importance weights.")
    ] = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Of a target: resample by Pareto-smoothed importance weights.")
    ] = False,
    allow_code: AllowCode = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    format: Annotated[
        str | None,
        typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of - and of names without an ending."),
    ] = None,
    shard: SHARD = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
) -> None:
    """Draw new rows, or images.

    Rows have the training table's columns and types.
    """
    from flowcli.errors import UsageError

    if (n is None) == (between is None):
        raise UsageError("say how many rows with -n, or the two images to go between with --between.")

    from flowcli.cli.formats import check_format, loaded, read_source
    from flowcli.cli.sharded import check_shard, sample_shard
    from flowcli.data.gallery import is_gallery, open_gallery
    from flowcli.data.sink import check_output, open_sink, output_format
    from flowcli.data.source import Source
    from flowcli.recipe.yaml import scalar
    from flowcli.variational.posterior import Posterior, is_posterior

    check_format(format)
    gallery = shard is None and is_gallery(output)
    if shard is not None:
        check_shard(shard, output, format, force, {"--between": between is not None})
    elif not gallery:
        check_output(output, format, force)
    if is_posterior(model):
        refuse({"--given": given, "--between": between, "--latents": latents, "--shard": shard})
        refuse({"-o of a folder or a sheet": gallery})
        if weights and resample:
            raise UsageError("--weights and --resample: give one of them.")
        if (weights or resample) and temperature != 1:
            raise UsageError("--temperature: is for draws as they are; importance draws have their own spread.")
        how = "weights" if weights else "resample" if resample else None
        schema, batches = draws(Posterior.load(model), n or 0, seed, temperature, how, allow_code)
        _write(output, batches, open_sink(output, schema, format, force))
        return
    if weights or resample:
        raise UsageError(f"--{'weights' if weights else 'resample'}: is for a target, and this model is of data.")
    fitted = loaded(model, device)
    images = fitted.recipe.data.image is not None
    if gallery and not images:
        raise UsageError(f"{output}: is for images, and this model is of a table; name a file such as drawn.parquet.")
    if between and not images:
        raise UsageError("--between: is for images, and this model is of a table.")
    binary = shard is not None or (not gallery and output_format(output, format) in BINARY)
    if images and not gallery and not binary:
        raise UsageError("images go to a folder (-o out/), a contact sheet (-o sheet.png), or parquet or Arrow.")
    if latents and (between or not binary):
        raise UsageError("--latents: is for draws, and they go to parquet or Arrow.")
    if between and temperature != 1:
        raise UsageError("--temperature: is for draws, and --between draws nothing.")
    pairs = [g for g in given if "=" in g and not Path(g).exists()]
    files = [g for g in given if g not in pairs]
    if pairs and files:
        raise UsageError("--given: give values or a file, not both.")
    names = [pair.partition("=")[0] for pair in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--given: '{twice[0]}' is given twice; a file can have a row for each value.")
    table = Source.of(files, format, fitted.codec.text_types).table() if files else None
    text = {name for name, type_ in fitted.codec.text_types.items() if str(type_).endswith("string")}
    values = {key: value if key in text else scalar(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    error = fitted.about.get("round_trip_error", 0.0)
    if error is None or error > MAX_ROUND_TRIP:
        console.warn(
            f"this model's inverse misses by {'any amount' if error is None else f'up to {error:.2g}'}, as `flowcli "
            f"inspect` says under round trip error: its draws may not follow its density"
        )
    options: dict[str, Any] = {"seed": seed, "temperature": temperature, "latents": latents}
    known = table if files else values or None
    if shard is not None:
        sample_shard(shard, fitted, n or 0, known, output, options)
        return
    if between:
        drawn = fitted.between(read_source(between, fitted).table(), steps, values or None)
        schema, batches = drawn.schema, iter(drawn.to_batches())
    else:
        schema, batches = fitted.sample_schema(latents), fitted.sample_batches(n or 0, known, **options)
    _write(output, batches, open_gallery(output, force) if gallery else open_sink(output, schema, format, force))


def _write(output: str, batches: Iterator[pa.RecordBatch], to: AbstractContextManager[Sink]) -> None:
    """Send the batches where they go, and say how many rows there were."""
    rows = 0
    with to as sink:
        for batch in batches:
            sink.write(batch)
            rows += batch.num_rows
    if output != "-":
        console.note(f"{console.counted(rows, 'row', 'rows')} written to {output}")
