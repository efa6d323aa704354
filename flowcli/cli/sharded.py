"""``--shard`` of ``score`` and ``sample``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowcli.cli import console

if TYPE_CHECKING:
    import pyarrow as pa

    from flowcli.model import Model
    from flowcli.scoring import Piece, RowScorer, Scorer
    from flowcli.shards import Part, Plan

SHARD = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|env",
        help="Do share I (0, 1, …) of N, into a folder that all N write; env asks torchrun, srun or Kubernetes.",
    ),
]


def check_shard(shard: str, output: str, format: str | None, force: bool, whole: Mapping[str, bool]) -> None:
    """Refuse what cannot be done in shards: options that are asked for and need the ``whole`` set, other outputs than a
    folder of parquet. Raises UsageError."""
    from flowcli.errors import UsageError
    from flowcli.shards import Shard

    Shard.named(shard)
    for option in (option for option, asked in whole.items() if asked):
        raise UsageError(f"{option}: needs all rows together, and --shard does a share of them.")
    if output == "-":
        raise UsageError("--shard: name the folder that all shards write with -o.")
    if format not in (None, "parquet"):
        raise UsageError(f"--format: {format} is not what shards write, which is parquet.")
    if force:
        raise UsageError("--force: replaces no folder that other shards may be writing; remove it, or name another.")


def score_shard(shard: str, score_rows: RowScorer[Scorer], data: list[str], output: str, only_anomalies: bool) -> None:
    """Score a shard's parts of the data into a folder."""
    import dataclasses

    import pyarrow.compute as pc

    from flowcli.data.pictures import Pictures
    from flowcli.data.source import Source
    from flowcli.ordered import in_order
    from flowcli.scoring import Likeness, in_one_schema, pieces
    from flowcli.shards import Inputs, Plan

    scorer, model = score_rows.scorer, score_rows.scorer.model
    source, image = Source.of(data), model.recipe.data.image
    inputs = Inputs(source, Pictures(source.files, image.column) if image else None)
    schema = score_rows.schema(inputs.columns)
    wanted = {*model.codec.types, *schema.names}
    settings = {
        "model": model.digest,
        "keep": score_rows.kept(inputs.columns).names,
        **dataclasses.asdict(scorer.level),
        "method": scorer.method,
        "dequantization_samples": scorer.samples,
        "explain": scorer.explain,
        "only_anomalies": only_anomalies,
    }
    plan = Plan("score", settings, tuple(inputs.described), tuple(inputs.parts))
    likeness = Likeness()

    def scored(item: tuple[Part, Piece]) -> tuple[Part, pa.RecordBatch]:
        part, piece = item
        (result,) = in_one_schema([score_rows(piece)], schema)
        return part, result

    def compute(todo: Sequence[Part]) -> Iterator[tuple[Part, pa.RecordBatch]]:
        items = (
            (part, piece)
            for part in todo
            for piece in pieces(inputs.read(part, wanted), model.codec.rows_at_once, part.row, score_rows.together)
        )
        for part, batch in in_order(scored, items, model.threads, alike=True):
            likeness.add(batch)
            yield part, batch

    def choose(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(pc.fill_null(batch.column("is_anomaly"), False)) if only_anomalies else batch

    _work(shard, output, plan, compute, schema, choose)
    if likeness.strange:
        console.warn(f"of what was scored now, {likeness.sentence()}")


def sample_shard(shard: str, model: Model, n: int, given: Any, output: str, settings: Mapping[str, Any]) -> None:
    """Draw a shard's parts of the rows into a folder. ``settings`` are the other arguments of ``sample_batches``."""
    import hashlib

    from flowcli.shards import Plan, plan_rows

    table, size = model.given_table(given), model.codec.rows_at_once
    total, digest = n, None
    if table is not None:
        total *= table.num_rows
        columns = table.select([column.name for column in model.codec.given]).to_pydict()
        digest = hashlib.sha256(repr(columns).encode(errors="surrogateescape")).hexdigest()
    schema = model.sample_schema(settings["latents"])
    plan = Plan("sample", {"model": model.digest, "n": n, "given": digest, **settings}, (), plan_rows(total, size))

    def compute(todo: Sequence[Part]) -> Iterator[tuple[Part, pa.RecordBatch]]:
        # A part begins where a batch does; only the last batch of all is shorter.
        parts = [part for part in todo for _ in range(part.row, part.row + part.rows, size)]
        numbers = [row // size for part in todo for row in range(part.row, part.row + part.rows, size)]
        return zip(parts, model.sample_batches(n, given, parts=numbers, **settings), strict=True)

    _work(shard, output, plan, compute, schema, lambda batch: batch)


def _work(shard: str, output: str, plan: Plan, compute: Any, schema: pa.Schema, choose: Any) -> None:
    from flowcli.shards import SUCCESS, Folder, Shard, work

    this = Shard.named(shard)
    state = work(Folder(output, plan), this, compute, schema, choose)
    written = console.counted(state.written, "part", "parts")
    said = f"shard {this}: {written} written" + (f", {state.done:,} were done" if state.done else "")
    if state.missing:
        console.note(f"{said}; {state.missing:,} of {len(plan.parts):,} are missing in {output}")
    else:
        rows = console.counted(state.rows, "row", "rows")
        console.note(f"{said}; all {len(plan.parts):,} are there, {rows} in {output}: see {SUCCESS}")
