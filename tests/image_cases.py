"""Pictures made up for the tests, and a folder with one set of them in every container."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from command import succeed
from PIL import Image

RNG = np.random.default_rng(0)
N = 60
QUICK = ("-s", "flow.layers=2", "-s", "flow.hidden=[16]", "-s", "train.epochs=2", "-s", "data.image.bits=4")


def encoded(array: np.ndarray, format: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format)
    return buffer.getvalue()


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def pictures(n: int = N, shape: tuple[int, ...] = (8, 8), dtype: type = np.uint8) -> np.ndarray:
    """Smooth blobs with a little noise."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre = RNG.uniform(2, 6, (n, 2, 1, 1))
    blob = np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / 6)
    top = np.iinfo(dtype).max
    blob = np.clip(blob * 0.8 * top + 0.1 * top * RNG.random(blob.shape), 0, top)
    return (np.stack([blob] * shape[2], -1) if len(shape) == 3 else blob).astype(dtype)


def make_world(world: Path) -> Path:
    """One set of pictures in every container, and a model of them, ``run``, in a folder."""
    x, label = pictures(), np.arange(N) % 2
    with zipfile.ZipFile(world / "p.zip", "w") as archive:
        for i in range(N):
            folder = world / "p" / f"class{label[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:02d}.png").write_bytes(encoded(x[i]))
            archive.writestr(f"class{label[i]}/{i:02d}.png", encoded(x[i]))
    order = np.argsort(label, kind="stable")  # as folders are read: one class after the other
    x, label = x[order], label[order]
    names = np.array([f"class{k}" for k in label])
    np.savez(world / "p.npz", x_train=x, y_train=names, x_test=x[:5], y_test=names[:5])
    np.save(world / "p.npy", x)
    idx = struct.pack(">IIII", 0x803, N, 8, 8) + x.tobytes()
    (world / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (world / "train-images-idx3-ubyte").write_bytes(idx)
    (world / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, N) + label.astype(np.uint8).tobytes())
    table = pa.table({"picture": [encoded(v) for v in x], "label": names, "weight": np.arange(N)})
    pa.parquet.write_table(table, world / "p.parquet")
    hugging = pa.array([{"bytes": encoded(v), "path": "a.png"} for v in x])
    pa.parquet.write_table(pa.table({"image": hugging, "label": names}), world / "struct.parquet")
    (world / "glow.yaml").write_text("flow: {type: glow, base: gaussian}\ndata: {given: [label], image: {bits: 4}}\n")
    succeed("fit", "glow.yaml", "p", "-o", "run", *QUICK, cwd=world)
    return world
