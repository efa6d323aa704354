"""Folders, zips, arrays and tables of pictures → Arrow batches with an ``image`` column, and what else is known."""

from __future__ import annotations

import glob
import gzip
import lzma
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from flowcli.data import store
from flowcli.data.image import COLUMN, FILE
from flowcli.data.source import FORMATS, STDIN, Source, reading, spelled
from flowcli.errors import DataError
from flowcli.places import is_object

LABEL = "label"
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")
ARRAYS = (".npz", ".npy")
BATCH, BATCH_BYTES = 1024, 1 << 26  # pictures and bytes of a batch, at most, or one picture
MAX_FILE = 1 << 28  # bytes of one picture's file; more is not read
IDX_IMAGES, IDX_LABELS = 0x803, 0x801  # the magic numbers of bytes in 3 and in 1 dimensions
# All that reading one entry of a zip is known to raise; the others can still be read.
BROKEN_ENTRY = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError)

Picture = tuple[str, str | None, bytes | None]  # name, label and file


def hold_pictures(names: Sequence[str]) -> bool:
    """Whether these names are of pictures: files by their endings and, if tables, by their columns; folders by what is
    in them, which must be pictures and no tables."""
    return any(_of_pictures(name) for name in names)


def _of_pictures(name: str) -> bool:
    path = pathlib.Path(_split(name)[0])
    if path.is_dir():
        endings = {p.suffix.lower() for p in path.rglob("*")}
        return bool(endings & {*PICTURES}) and not endings & {*FORMATS}
    if not path.exists() and (found := glob.glob(name, recursive=True)):
        return hold_pictures(found)
    ending = path.suffix.lower()
    if FORMATS.get(ending) == "parquet" and path.is_file():
        try:
            types = pa.parquet.read_schema(path).types
        except (pa.ArrowException, OSError):
            return False
        return any(holds_images(t) and not _is_binary(t) for t in types)
    return ending in (*PICTURES, *ARRAYS, ".zip") or _is_idx(name)


def _is_idx(name: str) -> bool:
    """MNIST's files are called train-images-idx3-ubyte, or with a dot for the last hyphen but one."""
    return bool(re.search(r"idx\d", pathlib.Path(name).name)) and pathlib.Path(name).suffix.lower() not in FORMATS


def _split(name: str) -> tuple[str, str]:
    """``digits.npz/x_test`` as the file and the array in it."""
    head, npz, array = name.partition(".npz/")
    return (head + ".npz", array) if npz else (name, "")


@dataclass(frozen=True)
class Pictures:
    """Pictures from folders, zips, single files, ``.npz`` and ``.npy`` arrays, IDX files and tables with such a column.

    Every batch has an ``image`` column (encoded files, or arrays), a ``file`` column that names each, and where there
    are any, ``label`` (the folder that a picture lies in, or the array beside) or the table's other columns.
    """

    files: tuple[str, ...]
    column: str | None = None
    format: str | None = None  # of standard input

    @staticmethod
    def of(names: Sequence[str], column: str | None = None, format: str | None = None) -> Pictures:
        """Raises DataError when a name matches nothing, or a folder has no picture in it. In a store, pictures are in
        tables only."""
        files: list[str] = []
        for name in names:
            if is_object(name):
                tables = Source.of([name], format)
                tables.formats  # noqa: B018 (refuses what is no table)
                files += tables.files
                continue
            if name == STDIN or pathlib.Path(_split(name)[0]).exists():
                files.append(name)
                continue
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise DataError(f"{name}: no such file.")
            files += found
        return Pictures(tuple(files), column, format)

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Each file's name and a batch of it. Raises DataError when a file cannot be read or holds no pictures."""
        single: list[str] = []  # pictures that stand alone are read together with those beside them
        for file in self.files:
            if pathlib.Path(file).suffix.lower() in PICTURES and not pathlib.Path(file).is_dir():
                single.append(file)
                continue
            yield from _alone(single)
            single = []
            with reading(file):
                yield from ((file, batch) for batch in self._reader(file)(file))
        yield from _alone(single)

    def table(self) -> pa.Table:
        """Everything at once. Raises DataError as :meth:`batches` does, and when there is nothing."""
        parts = [pa.Table.from_batches([batch]) for _, batch in self.batches()]
        names = ", ".join(self.files)
        if not parts:
            raise DataError(f"{names}: no pictures.")
        try:
            return pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException:
            raise DataError(f"{names}: the pictures are arrays of different shapes or types.") from None

    @property
    def bytes(self) -> int:
        """About how many the pixels take in memory as numbers: eight times the files, in which they are packed."""
        on_disk = (file for file in self.files if file != STDIN and not is_object(file))
        size = sum(path.stat().st_size for file in on_disk for path in _on_disk(_split(file)[0]))
        return 8 * (size + sum(int(store.info(file).size) for file in self.files if is_object(file)))

    def _reader(self, file: str) -> Callable[[str], Iterator[pa.RecordBatch]]:
        suffix = pathlib.Path(_split(file)[0]).suffix.lower()
        if pathlib.Path(file).is_dir():
            return _read_folder
        if suffix == ".zip":
            return _read_zip
        if suffix in ARRAYS:
            return _read_arrays
        return _read_idx if _is_idx(file) else self._read_table

    def _read_table(self, file: str) -> Iterator[pa.RecordBatch]:
        row = 0
        for _, batch in Source.of([file], self.format).batches():
            yield self.of_table(file, batch, row)
            row += batch.num_rows

    def of_table(self, file: str, batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
        """A table's batch, whose first row is number ``row`` in its file, as :meth:`batches` gives it. Raises DataError
        when it is not clear which column holds the images."""
        fitting = [f.name for f in batch.schema if holds_images(f.type)]
        name = self.column or (fitting[0] if len(fitting) == 1 else "")
        if name not in fitting:
            raise DataError(
                f"{file}: which column holds the images? Those of a fitting type: {', '.join(fitting) or 'none'}; "
                f"say data.image.column."
            )
        others = {n: batch.column(n) for n in batch.schema.names if n not in (name, COLUMN, FILE)}
        files = pa.array([f"{spelled(file)}:{row + i}" for i in range(batch.num_rows)], pa.string())
        return pa.RecordBatch.from_pydict({FILE: files, COLUMN: batch.column(name), **others})


def holds_images(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold pictures: files, files beside their paths, or arrays."""
    if pa.types.is_struct(type_):
        return type_.get_field_index("bytes") >= 0 and _is_binary(type_.field("bytes").type)
    return _is_binary(type_) or isinstance(type_, pa.FixedShapeTensorType)


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _batches(pictures: Iterable[Picture]) -> Iterator[pa.RecordBatch]:
    """Batches of encoded pictures, bounded in number and in bytes."""
    part: list[Picture] = []
    size = 0
    for picture in pictures:
        part.append(picture)
        size += len(picture[2] or b"")
        if len(part) == BATCH or size >= BATCH_BYTES:
            yield _batch(part)
            part, size = [], 0
    if part:
        yield _batch(part)


def _batch(part: Sequence[Picture]) -> pa.RecordBatch:
    names, labels, files = zip(
        *((spelled(name), label and spelled(label), file) for name, label, file in part), strict=True
    )
    columns = {FILE: pa.array(names), COLUMN: pa.array(files, pa.large_binary()), LABEL: pa.array(labels, pa.string())}
    return pa.RecordBatch.from_pydict(columns)


def _alone(names: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Pictures that were named one by one."""
    paths = [pathlib.Path(name) for name in names]
    yield from ((names[0], batch) for batch in _batches(map(_read_file, paths)))


def _read_file(path: pathlib.Path) -> Picture:
    with reading(str(path)):
        content = path.read_bytes() if path.stat().st_size <= MAX_FILE else None
    return str(path), path.absolute().parent.name or None, content


def _seen(parts: Iterable[str]) -> bool:
    """Whether no part of a path is hidden, or of what macOS adds to a zip."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _on_disk(name: str) -> list[pathlib.Path]:
    """A file; or, by name, the pictures in a folder and below it. Links are followed, but not round in circles; what is
    hidden is left out."""
    if not pathlib.Path(name).is_dir():
        return [pathlib.Path(name)]
    found: list[pathlib.Path] = []
    for folder, below, files in os.walk(name, followlinks=True):
        here = pathlib.Path(folder)
        if here.resolve() in {parent.resolve() for parent in here.absolute().parents}:
            below.clear()
            continue
        below[:] = filter(lambda part: _seen([part]), below)
        found += (here / file for file in files if _seen([file]) and pathlib.Path(file).suffix.lower() in PICTURES)
    return sorted(path for path in found if path.is_file())


def _read_folder(folder: str) -> Iterator[pa.RecordBatch]:
    """The pictures in a folder and below it, by name."""
    found = _on_disk(folder)
    if not found:
        raise DataError(f"{folder}: no pictures in this folder (looked for {', '.join(PICTURES)}).")
    yield from _batches(map(_read_file, found))


def _read_zip(file: str) -> Iterator[pa.RecordBatch]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted((e for e in archive.infolist() if _is_picture(e)), key=lambda entry: entry.filename)
            if not entries:
                raise DataError(f"{file}: no pictures in this zip (looked for {', '.join(PICTURES)}).")

            def read(entry: zipfile.ZipInfo) -> Picture:
                label = pathlib.PurePosixPath(entry.filename).parent.name or pathlib.Path(file).stem
                try:
                    content = archive.read(entry) if entry.file_size <= MAX_FILE else None
                except BROKEN_ENTRY:
                    content = None
                return f"{file}/{entry.filename}", label, content

            yield from _batches(map(read, entries))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {str(error).rstrip('.')}.") from None


def _is_picture(entry: zipfile.ZipInfo) -> bool:
    path = pathlib.PurePosixPath(entry.filename)
    return path.suffix.lower() in PICTURES and not entry.is_dir() and _seen(path.parts)


def _read_arrays(name: str) -> Iterator[pa.RecordBatch]:
    file, wanted = _split(name)
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            yield from _array_batches(name, loaded, None)
            return
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{file}: cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from None
    images = [key for key, array in arrays.items() if array.ndim >= 3]
    wanted = wanted or (images[0] if len(images) == 1 else "")
    if wanted not in images:
        raise DataError(
            f"{file}: which array holds the images? {', '.join(f'{file}/{key}' for key in images) or 'None of them'}."
        )
    # x_train goes with y_train, images with labels.
    names = [wanted.replace("x", "y", 1), wanted.replace("images", "labels"), "labels", "y"]
    labels = next((arrays[n].ravel() for n in names if n in arrays and arrays[n].size == len(arrays[wanted])), None)
    yield from _array_batches(name, arrays[wanted], labels)


def _read_idx(file: str) -> Iterator[pa.RecordBatch]:
    images = _idx(file, IDX_IMAGES)
    beside = pathlib.Path(file).with_name(pathlib.Path(file).name.replace("images", "labels").replace("idx3", "idx1"))
    labels = _idx(str(beside), IDX_LABELS) if str(beside) != file and beside.exists() else None
    yield from _array_batches(file, images, labels)


def _idx(file: str, magic: int) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes (LeCun's MNIST format), gzipped or not."""
    content = pathlib.Path(file).read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    dimensions = magic & 0xFF
    end = 4 + 4 * dimensions
    header = struct.unpack(f">{1 + dimensions}I", content[:end]) if len(content) >= end else (0,)
    if header[0] != magic or len(content) - end != int(np.prod(header[1:], dtype=object)):
        raise DataError(f"{file}: not an IDX file of {'images' if magic == IDX_IMAGES else 'labels'}, or cut short.")
    return np.frombuffer(content, np.uint8, offset=end).reshape(header[1:])


def _array_batches(name: str, images: NDArray[Any], labels: NDArray[Any] | None) -> Iterator[pa.RecordBatch]:
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{name}: holds {images.dtype} of shape {images.shape}; images are uint8 or uint16 of shape (n, height, "
            f"width) or (n, height, width, channels)."
        )
    if images.ndim == 4 and not {images.shape[-1], images.shape[1]} & {1, 3, 4}:
        raise DataError(f"{name}: images of shape {images.shape[1:]} have no axis of 1, 3 or 4 channels.")
    for start in range(0, len(images), BATCH):
        stop = min(start + BATCH, len(images))
        columns = {
            FILE: pa.array([f"{spelled(name)}:{i}" for i in range(start, stop)]),
            COLUMN: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images[start:stop])),
        }
        if labels is not None:
            columns[LABEL] = pa.array(labels[start:stop].astype(str))
        yield pa.RecordBatch.from_pydict(columns)
