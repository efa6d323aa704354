"""Odd pictures and broken containers: each gets its status or its sentence."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from command import flowcli, succeed
from image_cases import QUICK, RNG, encoded, pictures
from PIL import Image

import flowcli as package


def bomb() -> bytes:
    """A PNG that says it has 50,000 × 50,000 pixels."""
    good = encoded(pictures(1)[0])
    size = struct.pack(">II", 50_000, 50_000)
    head = good[12:16] + size + good[24:29]
    return good[:12] + head + struct.pack(">I", zlib.crc32(head)) + good[33:]


def animated() -> bytes:
    frames = [Image.fromarray(p) for p in pictures(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


GREY = pictures(1)[0]
COLOUR = pictures(1, (8, 8, 3))[0]
PNG, JPEG = encoded(GREY), encoded(GREY, "JPEG")
ODD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "unreadable"),
    "text.png": (b"not a picture at all\n" * 20, "unreadable"),
    "zeros.png": (bytes(500), "unreadable"),
    "signature.png": (PNG[:8], "unreadable"),
    "header.png": (PNG[:33], "unreadable"),
    "cut.png": (PNG[: len(PNG) // 2], "unreadable"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "unreadable"),
    "cut.gif": (encoded(GREY, "GIF")[:40], "unreadable"),
    "cut.bmp": (encoded(GREY, "BMP")[:60], "unreadable"),
    "cut.tif": (encoded(GREY, "TIFF")[:50], "unreadable"),
    "cut.webp": (encoded(COLOUR, "WEBP")[:30], "unreadable"),
    "cut.pgm": (encoded(GREY, "PPM")[:20], "unreadable"),
    "flipped.png": (PNG[:45] + bytes([PNG[45] ^ 255]) + PNG[46:], "unreadable"),
    "bomb.png": (bomb(), "unreadable"),
    "animated.gif": (animated(), "unreadable"),
    "one-pixel.png": (encoded(GREY[:1, :1]), "unreadable"),
    "wide.png": (encoded(np.zeros((8, 80), np.uint8)), "unreadable"),
    "line.png": (encoded(np.zeros((1, 8), np.uint8)), "unreadable"),
    "sixteen.png": (encoded(pictures(1, dtype=np.uint16)[0]), "unreadable"),
    "int.tif": (encoded(GREY.astype(np.int32) * 1000, "TIFF"), "unreadable"),
    "float.tif": (encoded(GREY.astype(np.float32), "TIFF"), "unreadable"),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', "unreadable"),
    "html.jpg": (b"<html><body>404</body></html>", "unreadable"),
    "zip.png": (b"PK\x03\x04" + bytes(100), "unreadable"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "unreadable"),
    "cmyk.jpg": (encoded(COLOUR, "JPEG", "CMYK"), "ok"),
    "rgb.png": (encoded(COLOUR), "ok"),
    "rgba.png": (encoded(pictures(1, (8, 8, 4))[0]), "ok"),
    "palette.gif": (encoded(GREY, "GIF", "P"), "ok"),
    "bits.png": (encoded(GREY, "PNG", "1"), "ok"),
    "la.png": (encoded(GREY, "PNG", "LA"), "ok"),
    "grey.jpg": (JPEG, "ok"),
    "jpeg-called.png": (JPEG, "ok"),
    "grey.webp": (encoded(COLOUR, "WEBP"), "ok"),
    "trailing.png": (PNG + b"junk" * 100, "ok"),
    "name\x1b[2J\né.png": (PNG, "ok"),
}


def test_odd_pictures_have_their_row_and_their_status(world: Path, tmp_path: Path) -> None:
    assert len(ODD) >= 30
    for name, (content, _) in ODD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "class0").mkdir()
    for name in ODD:
        (tmp_path / name).rename(tmp_path / "class0" / name)
    done = flowcli("score", world / "run", "class0", "--format", "jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(row["source"]).name: row["status"] for row in rows} == {name: s for name, (_, s) in ODD.items()}
    for row in rows:
        assert (row["score"] is None) == (row["status"] == "unreadable")


@pytest.mark.parametrize("name", ["cut.png", "text.png", "bomb.png", "animated.gif"])
def test_an_unreadable_picture_stops_a_fit_with_its_name(world: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "p").mkdir()
    for i, image in enumerate(pictures(30)):
        (tmp_path / "p" / f"{i}.png").write_bytes(encoded(image))
    (tmp_path / "p" / name).write_bytes(ODD[name][0])
    options = ("fit", world / "glow.yaml", "p", "-o", "run", "-s", "data.given=[]", *QUICK)
    done = flowcli(*options, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: p/{name}: cannot be read as an image")
    assert not (tmp_path / "run").exists()
    assert succeed(*options, "-s", "data.image.on_error=skip", cwd=tmp_path) == "run\n"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["split"]["train"] in (27, 28)


BAD: list[tuple[str, bytes | None, list[str]]] = [
    ("gone.png", None, ["no such file"]),
    ("cut.zip", b"PK\x03\x04" + bytes(40), ["cut.zip", "cannot be read"]),
    ("junk.npz", b"junk" * 30, ["junk.npz", "cannot be read"]),
    ("pickle.npy", b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 20,
     ["pickle.npy"]),
    ("cut-idx3-ubyte", struct.pack(">IIII", 0x803, 100, 8, 8) + bytes(100), ["cut-idx3-ubyte", "cut short"]),
    ("lying-idx3-ubyte", struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), ["lying-idx3-ubyte"]),
    ("floats.npy", None, ["floats.npy", "float64", "uint8"]),
    ("flat.npy", None, ["flat.npy", "(10, 64)"]),
    ("two.npz", None, ["which array", "two.npz/a", "two.npz/b"]),
    ("nothing", None, ["no pictures"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=[case[0] for case in BAD])
def test_containers_that_cannot_be_read(
    world: Path, tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "floats.npy":
        np.save(tmp_path / name, RNG.random((10, 8, 8)))
    elif name == "flat.npy":
        np.save(tmp_path / name, np.zeros((10, 64), np.uint8))
    elif name == "two.npz":
        np.savez(tmp_path / name, a=pictures(3), b=pictures(3))
    elif name == "nothing":
        (tmp_path / name).mkdir()
    for command in (["fit", str(world / "glow.yaml"), name, "-o", "new"], ["score", str(world / "run"), name]):
        done = flowcli(*command, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for word in words:
            assert word in done.stderr
    assert not (tmp_path / "new").exists()


def test_sizes_that_glow_cannot_halve_are_refused(tmp_path: Path, world: Path) -> None:
    np.save(tmp_path / "p.npy", pictures(30, (7, 7)))
    done = flowcli("fit", world / "glow.yaml", "p.npy", "-s", "data.given=[]", "-o", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "7×7 pixels can be halved 0 times" in done.stderr
    assert "data.image.resize" in done.stderr


def test_images_are_found_without_being_told(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", pictures(30))
    options = ("-s", "train.epochs=1", "-s", "flow.layers=1", "-s", "flow.hidden=[8]")
    succeed("fit", "realnvp-affine", "p.npy", "-o", "run", *options, cwd=tmp_path)
    assert package.load(tmp_path / "run").codec.shape == (1, 8, 8)


def test_label_folders_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for i, image in enumerate(pictures(40)):
        (tmp_path / "p" / f"{i:02d}.png").write_bytes(encoded(image))
    succeed("fit", "realnvp-affine", "p", "-o", "run", "-s", "data.image.flip=true", *QUICK, cwd=tmp_path)
    assert len(succeed("score", "run", "p", cwd=tmp_path).splitlines()) == 41
