"""``flowcli report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.target import AllowCode, density_of, refuse

if TYPE_CHECKING:
    from flowcli.report.page import Told


@command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [DATA]...", help="Run folders or model files; then data that they have not seen."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, one HTML file.")] = Path(
        "report.html"
    ),
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Write each picture there as a PNG file, too.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn rows.")] = 0,
    allow_code: AllowCode = False,
    format: Annotated[str | None, typer.Option(metavar="parquet|csv|tsv|jsonl|arrow", help="Format of -.")] = None,
    device: Annotated[
        str, typer.Option(envvar="FLOWCLI_DEVICE", metavar="auto|cpu|cuda|mps", help="Where to compute.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing page and pictures.")] = False,
) -> None:
    """Write a page that says whether to trust a model, and shows why.

    A verdict in words, then training, columns and pairs beside drawn ones, calibration, scores, the oddest rows. One
    file that needs no network; several runs stand side by side. Of a posterior: the ELBO, the draws and, with
    --allow-code, whether they can be trusted.
    """
    from flowcli.cli.extras import require_extra
    from flowcli.cli.formats import check_format, is_model, require_disk
    from flowcli.data.source import STDIN
    from flowcli.errors import UsageError
    from flowcli.variational.posterior import is_posterior

    require_extra("report", "flowcli report", "matplotlib", "jinja2")
    check_format(format)
    models = [name for name in runs if is_model(name)]
    data = [name for name in runs if not is_model(name)]
    if not models:
        raise UsageError(f"{', '.join(runs)}: none of these is a run folder or a model file (*.safetensors).")
    if all(map(is_posterior, models)):
        refuse({"DATA": data, "--format": format})
    if STDIN in data and len(models) > 1:
        raise UsageError("standard input (-) can be read only once, and there are several runs.")
    require_disk(output, "a page is a file on a disk.")
    require_disk(pictures or output, "pictures are files on a disk.")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a file in it.")
    if output.exists() and not force:
        raise UsageError(f"{output}: exists already; --force replaces it.")
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise UsageError(f"--pictures: {pictures} is no folder.")
    if pictures is not None and any(pictures.glob("*.png")) and not force:
        raise UsageError(f"--pictures: {pictures} holds PNG files already; --force replaces those of the same names.")

    from flowcli.data.whole import write_whole
    from flowcli.report import render, write_pictures

    png = pictures is not None
    told = [
        _posterior(name, allow_code, seed, png) if is_posterior(name) else _model(name, data, format, device, seed, png)
        for name in models
    ]
    write_whole(output, render(told))
    if pictures is not None:
        console.note(f"{write_pictures(told, pictures)} pictures written to {pictures}")
    for run in told:
        console.note(f"{run.name}: {run.summary}")
    console.note(f"Next: open {output} in a browser")
    console.result(str(output))


def _model(name: str, data: Sequence[str], format: str | None, device: str, seed: int, png: bool) -> Told:
    """What is told of a model of data."""
    from flowcli.cli.formats import read_source
    from flowcli.report import gather, tell
    from flowcli.training.again import Past
    from flowcli.training.device import choose

    past = Past.load(name)
    past.model.flow.to(choose(device))
    batches = (batch for _, batch in read_source(data, past.model, format).batches()) if data else None
    return tell(gather(past, batches, ", ".join(data), seed), png)


def _posterior(name: str, allow_code: bool, seed: int, png: bool) -> Told:
    """What is told of a posterior, whose target's code is run only if ``allow_code``."""
    from flowcli.report import gather_posterior, tell
    from flowcli.variational.again import PastPosterior

    past = PastPosterior.load(name)
    return tell(gather_posterior(past, density_of(past.posterior, True) if allow_code else None, seed), png)
