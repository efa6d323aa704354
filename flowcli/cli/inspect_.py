"""``flowcli inspect``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from flowcli.cli import console
from flowcli.cli.app import command
from flowcli.cli.target import inspect_target

FEW = 8  # values that are listed, at most


@command()
def inspect_(
    model: Annotated[str, typer.Argument(help="A run folder or a model file.")],
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Say what a model is.

    Its recipe, its columns, what it was fitted on and how well.
    """
    import json

    from flowcli.data.table import TableCodec
    from flowcli.model import Model
    from flowcli.variational.posterior import Posterior, is_posterior

    if is_posterior(model):
        inspect_target(Posterior.load(model), json_)
        return
    fitted = Model.load(model)
    if json_:
        about = {
            "recipe": fitted.recipe.model_dump(mode="json"),
            "codec": fitted.codec.to_dict(),
            "calibration_rows": fitted.calibration.shape[1],
            **fitted.about,
        }
        console.result(json.dumps(about, indent=2, ensure_ascii=False))
        return
    flow = fitted.recipe.flow.model_dump()
    console.result(f"flow      {flow.pop('type')}: " + ", ".join(f"{k} {v}" for k, v in flow.items()))
    for key, value in fitted.about.items():
        console.result(f"{key.replace('_', ' '):<27} {'not finite' if value is None else f'{value:,.6g}'}")
    console.result(f"{'calibration rows':<27} {fitted.calibration.shape[1]:,}")
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
