"""``flowcli inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowcli.cli import console
from flowcli.cli.app import command


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
            details = {k: v for k, v in column.to_dict().items() if k not in ("name", "kind", "arrow_type", "counts")}
            if column.kind == "category":
                details["levels"] = f"{len(details['levels'])} levels"
            shown = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in details.items())
            console.result(console.printable(f"  {column.name}: {column.kind} ({column.arrow_type}) {shown}"))
