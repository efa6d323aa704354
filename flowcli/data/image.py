"""The codec of images: pixels dequantised, kept off the ends, and seen through a logit (Dinh et al. 2017, section 4.1).

An encoded image is one row, channel by channel and line by line. Its log-mass is in the user's own units: with
``bits`` of 8, that of the 8-bit image.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowcli.data.codec import Codec, Rows
from flowcli.data.columns import ColumnCodec, columns_of, plainly
from flowcli.data.columns.column import STRICT
from flowcli.data.kinds import fit_columns, refuse_holes, require, telling_rows
from flowcli.data.status import MISSING, UNREADABLE
from flowcli.errors import DataError, UsageError
from flowcli.recipe.schema import Column, Data
from flowcli.recipe.schema import Image as Options

COLUMN, FILE = "image", "file"  # what the columns of image batches are called
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_WORKERS = 8  # pictures in memory at once, decoded
MAX_PIXELS = 1 << 26  # 64 million: more is taken for a decompression bomb
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "I;16": 1}
# Pillow's modes, and what each becomes. The later a mode stands in CHANNELS, the more it can hold; 16 bits stand apart.
MODES = {
    "1": "L", "L": "L", "LA": "RGBA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB",
    "YCbCr": "RGB", "I;16": "I;16", "I;16B": "I;16", "I;16L": "I;16", "I": "I;16",
}  # fmt: skip
# All that Pillow's decoders are known to raise on broken files.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError,
          OverflowError, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip

Pixels = NDArray[np.integer[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class ImageCodec(Codec):
    """Images of one size and mode, and the given columns.

    A pixel x of ``bits`` bits becomes p = α + (1 − 2α)·(x + u)/2^bits and y = log p − log(1 − p).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    mode: str
    height: int
    width: int
    bits: int
    alpha: float
    resize: bool
    flip: bool
    given: tuple[ColumnCodec, ...] = ()

    @staticmethod
    def fit(table: pa.Table, data: Data, whole: pa.Table | None = None) -> ImageCodec:
        """Settle the size and mode that all images of ``whole`` share, and the given columns of ``table``.

        Raises DataError, naming the image: it cannot be read (unless ``on_error: skip``), or has another size than the
        first and no ``resize`` is asked for; and when a given column has holes.
        """
        options = data.image or Options()
        for name in data.given:
            refuse_holes(name, (whole or table).column(name), Column())
        size = (options.resize[0], options.resize[1]) if options.resize else None
        mode = first = ""
        everything = whole or table
        names = everything.column(FILE) if FILE in everything.column_names else None
        for i, found in enumerate(_looks(everything.column(COLUMN))):
            name = names[i].as_py() if names is not None else f"image {i}"
            if found is None:
                if options.on_error == "skip":
                    continue
                raise DataError(f"{name}: cannot be read as an image. To go on without such: data.image.on_error=skip.")
            size = size or found[1]
            if not options.resize and found[1] != size:
                sizes = (f"{w}×{h}" for w, h in (found[1], size))
                raise DataError(
                    f"{name}: is {next(sizes)} pixels, and {first} is {next(sizes)}; say data.image.resize=[width, "
                    f"height]."
                )
            wider = _wider(mode or found[0], found[0])
            if wider is None:
                raise DataError(f"{name}: has 16 bits a pixel or not, other than {first}.")
            mode, first = wider, first or name
        if size is None or not mode:
            raise DataError("no image can be read.")
        depth = 16 if mode == "I;16" else 8
        bits = depth if options.bits == "auto" else options.bits
        if depth < bits:
            raise DataError(f"data.image.bits: {bits}, and these images have {depth}.")
        return ImageCodec(
            mode, size[1], size[0], bits, options.alpha, options.resize is not None, options.flip,
            fit_columns(data.given, table, data, everything, counting=False),
        )  # fmt: skip

    @staticmethod
    def used(schema: pa.Schema, data: Data) -> list[str]:
        if data.include or data.exclude:
            raise UsageError(
                "data.include and data.exclude are for tables; data.image.column names the images' column."
            )
        for name in data.given:
            require(schema, name, "the data")
        return [COLUMN, *([FILE] if FILE in schema.names else []), *data.given]

    @staticmethod
    def numbers(table: pa.Table, data: Data) -> int:
        """As many as the largest of a few images has pixels and channels, or as ``resize`` says."""
        looks = [look for look in _looks(table.column(COLUMN).slice(0, 16)) if look]
        resize = data.image.resize if data.image else None
        return max((CHANNELS[mode] * math.prod(resize or size) for mode, size in looks), default=1)

    @staticmethod
    def telling(table: pa.Table, data: Data) -> NDArray[np.int64]:
        """The first image of each mode and size, the first that cannot be read, and what tells of the given columns."""
        looks = list(_looks(table.column(COLUMN)))
        firsts = [looks.index(look) for look in set(looks)]
        return np.union1d(firsts, telling_rows(data.given, table, data)).astype(np.int64)

    @property
    def shape(self) -> tuple[int, int, int]:
        return CHANNELS[self.mode], self.height, self.width

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    @property
    def dequantised(self) -> bool:
        return True

    @property
    def points(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        """Bits of a stored pixel."""
        return 16 if self.mode == "I;16" else 8

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(COLUMN, pa.binary())])

    def read(self, batch: pa.RecordBatch | pa.Table) -> Rows:
        """Pixels ``(n, features)`` of ``bits`` bits. An image that cannot be read, or has another size and may not be
        resized, is ``unreadable``."""
        if COLUMN not in batch.schema.names:
            raise DataError(f"the data has no column '{COLUMN}', and this model is of images.")
        context, status = self._context(batch)
        raw = np.zeros((batch.num_rows, self.features), np.uint8 if self.depth == 8 else np.int32)
        for i, pixels in enumerate(self._pixels(batch.column(COLUMN))):
            if pixels is None:
                status[i] = UNREADABLE
            else:
                raw[i] = pixels.reshape(-1) >> (self.depth - self.bits)
        return Rows(torch.from_numpy(raw), context, status, np.isin(status, (MISSING, UNREADABLE)))

    def _pixels(self, values: pa.Array | pa.ChunkedArray) -> Iterator[Pixels | None]:
        """The pixels ``(C, H, W)`` of each image."""
        for part in _chunks(values):
            if isinstance(part, pa.FixedShapeTensorArray):
                array = part.to_numpy_ndarray()
                for i in range(len(part)):
                    yield self._of_array(array[i]) if part[i].is_valid else None
            else:
                yield from _in_parallel(self._decode, part)

    def _of_array(self, array: Pixels) -> Pixels | None:
        pixels = _channels_first(array)
        if pixels.shape == self.shape and pixels.dtype == (np.uint16 if self.depth == 16 else np.uint8):
            return pixels
        try:
            return self._fitted(Image.fromarray(self._stored(pixels)))
        except BROKEN:
            return None

    def _decode(self, content: bytes | None) -> Pixels | None:
        try:
            with _open(content) as image:
                return self._fitted(image)
        except BROKEN:
            return None

    def _fitted(self, image: Image.Image) -> Pixels | None:
        """Pixels ``(C, H, W)`` in this codec's mode and size; None for an image that has another depth, or another
        size and may not be resized."""
        mode = _mode(image)
        same = image.size == (self.width, self.height)
        if mode is None or (mode == "I;16") != (self.mode == "I;16") or not (same or self.resize):
            return None
        plain = image if self.mode == "I;16" else image.convert(self.mode)
        if not same:
            plain = plain.resize((self.width, self.height), Image.Resampling.BOX)
        array = np.asarray(plain)
        if array.min() < 0 or array.max() >= 1 << self.depth:
            return None
        return _channels_first(array.astype(np.uint16 if self.depth == 16 else np.uint8))

    def augmented(self, raw: Tensor, coins: Tensor) -> Tensor:
        """With ``flip``, half of the images are mirrored left to right."""
        if not self.flip:
            return raw
        mirrored = raw.view(-1, *self.shape).flip(-1).flatten(1)
        return torch.where(coins < 0.5, mirrored, raw)

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * (raw + u) / 2**self.bits
        log_p, log_q = p.log(), torch.log1p(-p)
        slope = math.log1p(-2 * self.alpha) - self.bits * math.log(2)
        return log_p - log_q, self.features * slope - (log_p + log_q).sum(1)

    def places(self, raw: Tensor, samples: int | None) -> Iterator[Tensor]:
        """Uniform draws seeded by the image itself, so that it has one score wherever it stands.

        Averaging log-densities over them would bound the log-mass from below; the log of their average is the tighter
        importance-weighted bound (Burda et al. 2016).
        """
        seeds = [zlib.crc32(row.tobytes()) for row in raw.numpy()]
        for k in range(samples or self.points):
            draws = (np.random.Generator(np.random.Philox(key=[seed, k])).random(self.features) for seed in seeds)
            yield torch.from_numpy(np.stack(list(draws))).clamp(2.0**-54)

    def decode(self, y: Tensor) -> pa.RecordBatch:
        """PNG files; a pixel outside what its bits can hold is moved inside."""
        v = (torch.sigmoid(y.double()) - self.alpha) / (1 - 2 * self.alpha)
        top = 2**self.bits - 1
        raw = (v * (top + 1)).floor().clamp(0, top)
        # Spread over the stored depth so that white is white; reading it again gives the same raw value.
        stored = (raw * (2**self.depth - 1) / top).round().view(-1, *self.shape).numpy()
        stored = stored.astype(np.uint16 if self.depth == 16 else np.uint8)
        images = [_png(self._stored(pixels)) for pixels in stored]
        return pa.RecordBatch.from_arrays([pa.array(images, pa.binary())], schema=self.schema)

    @staticmethod
    def _stored(pixels: Pixels) -> Pixels:
        """``(H, W)`` or ``(H, W, C)``, as Pillow has them."""
        image: Pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        return image

    def code_length(self, raw: Tensor) -> NDArray[np.float64]:
        """Nats ``(n,)`` that a PNG of each image takes: its complexity, known without a model."""
        images = raw.view(-1, *self.shape).numpy().astype(np.uint16 if self.depth == 16 else np.uint8)
        return np.array([len(_png(self._stored(pixels))) for pixels in images]) * 8 * math.log(2)

    def to_dict(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"image": plain | {"given": [column.to_dict() for column in self.given]}}

    @staticmethod
    def from_dict(codec: Mapping[str, Any]) -> ImageCodec:
        """The codec that :meth:`to_dict` described. Raises ValueError, KeyError or TypeError for another."""
        given = columns_of(codec["image"]["given"])
        plain = dataclasses.replace(plainly(ImageCodec, codec["image"] | {"given": []}), given=given)
        sizes = max(plain.height, plain.width) < 1 << 16 and min(plain.height, plain.width) > 0
        if plain.mode not in CHANNELS or not (sizes and 0 < plain.bits <= plain.depth and 0 < plain.alpha < 0.5):
            raise ValueError("no images are like these")
        return plain


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    """The arrays of a column; files alone, where they stand beside their paths as Hugging Face's tables have them."""
    chunks = [part for part in (values.chunks if isinstance(values, pa.ChunkedArray) else [values]) if len(part)]
    return [pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk for chunk in chunks]


def _in_parallel(decode: Callable[[bytes | None], T], files: pa.Array) -> list[T]:
    """``decode`` of each file's bytes. What Pillow thinks of a file is no news to a user; a bomb is an error."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return list(pool.map(decode, files.to_pylist()))


def _looks(values: pa.ChunkedArray) -> Iterator[tuple[str, tuple[int, int]] | None]:
    """Mode and size of each image, from its header alone; None for one without."""
    for part in _chunks(values):
        if isinstance(part, pa.FixedShapeTensorArray):
            pixels = _channels_first(part[:1].to_numpy_ndarray()[0])
            modes = {count: mode for mode, count in reversed(CHANNELS.items()) if mode != "I;16"}
            mode = {np.dtype(np.uint8): modes.get(pixels.shape[0]), np.dtype(np.uint16): "I;16"}.get(pixels.dtype)
            look = (mode, (pixels.shape[2], pixels.shape[1])) if mode else None
            yield from (look for _ in range(len(part)))
        else:
            yield from _in_parallel(_look, part)


def _look(content: bytes | None) -> tuple[str, tuple[int, int]] | None:
    try:
        with _open(content) as image:
            image.load()
            mode = _mode(image)
            return (mode, image.size) if mode else None
    except BROKEN:
        return None


def _mode(image: Image.Image) -> str | None:
    """What an image becomes: transparency, however it is kept, is a channel. None for a mode that is not taken."""
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        return "RGBA"
    return MODES.get(image.mode)


def _open(content: bytes | None) -> Image.Image:
    """A still picture of bounded size, the way up that its EXIF says. Raises one of BROKEN."""
    image = Image.open(io.BytesIO(content or b""), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS or getattr(image, "n_frames", 1) > 1:
        raise ValueError("too large, or not one picture")
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _wider(mode: str, other: str) -> str | None:
    """The mode that holds images of both; None when one has 16 bits and the other has not."""
    if (mode == "I;16") != (other == "I;16"):
        return None
    return max(mode, other, key=list(CHANNELS).index)


def _channels_first(array: Pixels) -> Pixels:
    """``(C, H, W)`` from ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``."""
    if array.ndim == 2:
        return array[None]
    return array.transpose(2, 0, 1) if array.shape[-1] in (1, 3, 4) else array


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
