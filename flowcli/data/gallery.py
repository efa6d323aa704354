"""Drawn images → a folder of PNG files, or one contact sheet."""

from __future__ import annotations

import contextlib
import io
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
from PIL import Image

from flowcli.data.image import COLUMN
from flowcli.data.sink import Sink
from flowcli.data.whole import whole_file
from flowcli.errors import DataError, UsageError

SHEET = ".png"
MARGIN = 2
SMALL, LARGE = 64, 4096  # pictures are enlarged to at least 64 pixels, and a sheet has at most 4096 of them


def is_gallery(output: str) -> bool:
    """Whether an output names a folder or a contact sheet, and not a table."""
    return output.endswith("/") or pathlib.Path(output).is_dir() or output.lower().endswith(SHEET)


@contextlib.contextmanager
def open_gallery(output: str, force: bool = False) -> Iterator[Sink]:
    """A sink for batches that have an ``image`` column of PNG files; what it makes appears whole when the block ends.

    Raises UsageError when something is there already (without ``force``), DataError when it cannot be written.
    """
    path = pathlib.Path(output)
    if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{output}: exists already; --force replaces it.")
    try:
        with _sheet(path) if output.lower().endswith(SHEET) else _folder(path) as sink:
            yield sink
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}.") from None


class _Folder:
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.count = folder, 0

    def write(self, batch: pa.RecordBatch, /) -> None:
        for content in batch.column(COLUMN).to_pylist():
            (self.folder / f"{self.count:06d}.png").write_bytes(content)
            self.count += 1


@contextlib.contextmanager
def _folder(path: pathlib.Path) -> Iterator[_Folder]:
    """Files 000000.png, 000001.png … written beside and then moved, in the place of all such files that were there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield (sink := _Folder(beside))
        path.mkdir(exist_ok=True)
        beside.chmod(path.stat().st_mode)
        for i in range(sink.count):
            name = f"{i:06d}.png"
            (beside / name).replace(path / name)
        for old in path.glob("[0-9]" * 6 + ".png"):
            if int(old.stem) >= sink.count:
                old.unlink()
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class _Sheet:
    def __init__(self) -> None:
        self.pictures: list[Image.Image] = []

    def write(self, batch: pa.RecordBatch, /) -> None:
        if len(self.pictures) + batch.num_rows > LARGE:
            raise UsageError(f"a contact sheet holds at most {LARGE:,} pictures; write them to a folder, -o out/.")
        self.pictures += [Image.open(io.BytesIO(content)) for content in batch.column(COLUMN).to_pylist()]


def sheet(pictures: Sequence[Image.Image], across: int | None = None) -> Image.Image:
    """Pictures of one size in rows of ``across``, or about as many across as down; a row of at most 16 stays one row
    then."""
    first, n = pictures[0], len(pictures)
    across = across or (n if n <= 16 else math.ceil(math.sqrt(n)))
    scale = max(1, SMALL // max(first.size))
    width, height = (scale * side + MARGIN for side in first.size)
    mode = "L" if first.mode.startswith("I") else first.mode
    whole = Image.new(mode, (across * width + MARGIN, math.ceil(n / across) * height + MARGIN), "grey")
    for i, picture in enumerate(pictures):
        eight = picture.point(lambda v: v / 256).convert("L") if picture.mode.startswith("I") else picture
        enlarged = eight.resize((width - MARGIN, height - MARGIN), Image.Resampling.NEAREST)
        whole.paste(enlarged, (MARGIN + i % across * width, MARGIN + i // across * height))
    return whole


@contextlib.contextmanager
def _sheet(path: pathlib.Path) -> Iterator[_Sheet]:
    with whole_file(path) as beside:
        yield (sink := _Sheet())
        sheet(sink.pictures).save(beside, "PNG")
