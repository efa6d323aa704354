"""One pass over data larger than memory: what has to be known of it before training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.ipc

from flowcli.data.codec import Codec
from flowcli.data.groups import Groups
from flowcli.errors import DataError
from flowcli.recipe import Recipe
from flowcli.training.rows import Stream, draws

MIN_ROWS = 8
SAMPLE = 1 << 23  # numbers that the codec's scales and the baseline are taken from
HELD_OUT = 1 << 24  # numbers in the held-out rows, which are kept in memory, at most


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows held out. The codec is fitted to ``table``: all training rows, or of a ``stream`` a
    sample of them, ``sampled`` in number, and then those that it has to see. ``further`` make splits of the same rows
    that hold out others."""

    table: pa.Table
    held_out: pa.Table
    sampled: int
    stream: Stream | None = None
    further: Sequence[Callable[[], Split]] = ()


def survey(groups: Groups, recipe: Recipe, codec: type[Codec], held_out: pa.Table | None) -> Split:
    """Split groups into training and held-out rows, unless these are given, and take a sample.

    Raises DataError as the codec's ``telling`` does, naming the rows, and when either part is empty.
    """
    require_rows(groups.rows)
    seed, digest = recipe.train.seed, hashlib.sha256()
    validation = recipe.data.validation
    numbers = groups.rows * codec.numbers(groups.read(0), recipe.data)
    share = 0.0 if isinstance(validation, str) else min(validation, HELD_OUT / numbers)
    telling = groups.read(0).slice(0, 0)
    sample, kept_out, starts = [telling], [telling], [0]
    for group in range(len(groups)):
        table = groups.read(group)
        digest.update(_content(table))
        held, picked = draws(groups, seed, group).T
        train = table.filter(pa.array(held >= share))
        starts.append(starts[-1] + len(train))
        kept_out.append(table.filter(pa.array(held < share)))
        sample.append(table.filter(pa.array((held >= share) & (picked < SAMPLE / numbers))))
        seen = pa.concat_tables([telling, train])
        try:
            telling = seen.take(codec.telling(seen, recipe.data)) if len(seen) else seen
        except DataError as error:
            first, last = groups.starts[group : group + 2]
            raise DataError(*error.args, f"These are among rows {first + 1:,} to {last:,}.") from None
    if starts[-1] == 0 or (held_out is None and sum(map(len, kept_out)) == 0):
        raise DataError(f"data.validation: {validation} of {groups.rows} rows leaves none on one side.")
    taken = pa.concat_tables(sample)
    return Split(
        pa.concat_tables([taken, telling]),
        pa.concat_tables(kept_out) if held_out is None else held_out,
        len(taken),
        Stream(groups, seed, share, tuple(starts), digest.hexdigest()),
    )


def require_rows(rows: int) -> None:
    """Raises DataError when there are too few to fit anything."""
    if rows < MIN_ROWS:
        raise DataError(f"{rows} rows are too few to fit anything; {MIN_ROWS} is the least.")


def _content(table: pa.Table) -> pa.Buffer:
    """All that a table holds, as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
