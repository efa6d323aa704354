"""Images the whole way: every container they come in, the codec's honesty, Glow at the command line, odd files."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from command import flowcli, succeed
from PIL import Image

import flowcli as package
from flowcli.data.image import COLUMN, FILE, ImageCodec
from flowcli.data.pictures import Pictures, hold_pictures
from flowcli.errors import DataError
from flowcli.recipe.schema import Data
from flowcli.recipe.schema import Image as Options

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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of pictures in every container, and a model of them."""
    world = tmp_path_factory.mktemp("images")
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


CONTAINERS = ["p", "p.zip", "p/class*/*.png", "p.npz/x_train", "p.parquet", "struct.parquet"]


@pytest.mark.parametrize("container", [*CONTAINERS, "p.npy", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_every_container_holds_the_same_pictures(world: Path, container: str) -> None:
    name = str(world / container)
    codec = ImageCodec("L", 8, 8, 8, 0.05, False, False)
    table = Pictures.of([name]).table()
    whole = codec.read(Pictures.of([str(world / "p")]).table()).raw
    assert torch.equal(codec.read(table).raw, whole)
    if "parquet" not in container:
        assert hold_pictures([name])
    if container in CONTAINERS:
        assert table.column("label").to_pylist() == ["class0"] * (N // 2) + ["class1"] * (N // 2)
    if "idx3" in container and not container.endswith("gz"):
        assert table.column("label").to_pylist() == ["0"] * (N // 2) + ["1"] * (N // 2)
    assert len(set(table.column(FILE).to_pylist())) == N


@pytest.mark.parametrize("container", CONTAINERS)
def test_scores_name_their_image_and_agree_in_every_container(world: Path, container: str) -> None:
    scores = pd.read_csv(io.StringIO(succeed("score", "run", container, "--keep", "label", cwd=world)))
    whole = pd.read_csv(io.StringIO(succeed("score", "run", "p", cwd=world)))
    assert np.allclose(scores["log_prob"], whole["log_prob"], atol=1e-4)
    assert np.allclose(scores["bits_per_dim"], -scores["log_prob"] / 64 / np.log(2))
    assert (scores["status"] == "ok").all()
    assert scores["source"].nunique() == N
    if container in ("p", "p.zip"):
        assert scores["source"][0] == f"{container}/class0/00.png"


def test_one_image_has_the_score_it_has_among_others(world: Path) -> None:
    whole = pd.read_csv(io.StringIO(succeed("score", "run", "p", cwd=world)))
    one = pd.read_csv(io.StringIO(succeed("score", "run", "p/class1/07.png", cwd=world)))
    among = whole[whole["source"] == "p/class1/07.png"]
    assert one["score"][0] == pytest.approx(among["score"].iloc[0], abs=1e-3)


def test_more_places_in_each_cell_tighten_the_bound(world: Path) -> None:
    one, many = (
        pd.read_csv(io.StringIO(succeed("score", "run", "p", "--dequantization-samples", k, cwd=world)))
        for k in (1, 64)
    )
    assert many["log_prob"].mean() > one["log_prob"].mean() + 0.1


def test_methods(world: Path) -> None:
    by = {
        method: pd.read_csv(io.StringIO(succeed("score", "run", "p", "--method", method, cwd=world)))
        for method in ("auto", "nll", "typicality", "complexity")
    }
    log_prob = by["nll"]["log_prob"]
    assert np.allclose(by["nll"]["score"], -log_prob)
    assert by["auto"]["score"].equals(by["complexity"]["score"])
    bits = [8 * len(package.load(world / "run").codec.decode(torch.zeros(1, 64)).column(0)[0].as_py())]
    assert bits[0] > 0
    png = -by["nll"]["log_prob"] - by["complexity"]["score"]
    assert (png > 8 * 60 * np.log(2)).all()  # a PNG is no smaller than its header
    usual = package.load(world / "run").calibration[0].mean().item()
    assert np.allclose(by["typicality"]["score"], np.abs(log_prob - usual))
    for scores in by.values():
        assert scores["p_value"].between(0, 1).all()
    tables = flowcli("score", "run", "p", "--method", "nonsense", cwd=world)
    assert tables.returncode == 2


def test_samples_as_a_folder_a_sheet_and_a_table(world: Path, tmp_path: Path) -> None:
    run = world / "run"
    succeed("sample", run, "-n", "5", "--given", "label=class1", "-o", "out/", cwd=tmp_path)
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(5)]
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((8, 8), "L")
    succeed("sample", run, "-n", "20", "--given", "label=class0", "-o", "sheet.png", cwd=tmp_path)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (5 * 66 + 2, 4 * 66 + 2)
    succeed("sample", run, "-n", "5", "--given", "label=class1", "-o", "t.parquet", cwd=tmp_path)
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert list(table) == ["label", COLUMN]
    assert [content == f.read_bytes() for content, f in zip(table[COLUMN], files, strict=True)] == [True] * 5
    scores = pd.read_csv(io.StringIO(succeed("score", run, "t.parquet", cwd=tmp_path)))
    assert (scores["status"] == "ok").all()
    for output in ("x.csv", "-"):
        refused = flowcli("sample", run, "-n", "5", "--given", "label=class1", "-o", output, cwd=tmp_path)
        assert refused.returncode == 2
        assert "contact sheet" in refused.stderr
    again = flowcli("sample", run, "-n", "5", "--given", "label=class1", "-o", "out/", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_from_one_image_to_another(world: Path, tmp_path: Path) -> None:
    ends = [world / "p" / "class0" / "00.png", world / "p" / "class1" / "01.png"]
    succeed("sample", world / "run", "--between", *ends, "--steps", "5", "-o", "way/", cwd=tmp_path)
    way = [pixels(f) >> 4 for f in sorted((tmp_path / "way").iterdir())]
    assert len(way) == 5
    for there, end in ((way[0], ends[0]), (way[-1], ends[1])):
        assert np.abs(there.astype(int) - (pixels(end) >> 4)).max() <= 1
    assert not np.array_equal(way[0], way[2])
    assert not np.array_equal(way[2], way[4])


def test_evaluate_and_inspect(world: Path) -> None:
    found = json.loads(succeed("evaluate", "run", "p", "--json", cwd=world))
    scores = pd.read_csv(io.StringIO(succeed("score", "run", "p", cwd=world)))
    assert found["bits_per_dim"] == pytest.approx(scores["bits_per_dim"].mean(), abs=1e-6)
    assert "mode L, height 8, width 8, bits 4" in succeed("inspect", "run", cwd=world)


# -- the codec -----------------------------------------------------------------------------------------------------


def codec_of(images: list[np.ndarray], **options: object) -> ImageCodec:
    table = pa.table({COLUMN: pa.array([encoded(image) for image in images], pa.binary())})
    return ImageCodec.fit(table, Data(image=Options(**options)))


@pytest.mark.parametrize(
    ("shape", "dtype", "bits"), [((8, 8), np.uint8, 8), ((8, 8), np.uint8, 5), ((6, 4, 3), np.uint8, 8),
                                 ((4, 4, 4), np.uint8, 3), ((8, 8), np.uint16, 16), ((8, 8), np.uint16, 8)],
)  # fmt: skip
def test_images_survive_the_codec(shape: tuple[int, ...], dtype: type, bits: int) -> None:
    images = RNG.integers(0, np.iinfo(dtype).max + 1, (20, *shape)).astype(dtype)
    codec = codec_of(list(images), bits=bits)
    rows = codec.read(pa.table({COLUMN: pa.array([encoded(i) for i in images], pa.binary())}))
    assert (rows.status == 0).all()
    u = torch.rand(rows.raw.shape, dtype=torch.float64)
    y, log_det = codec.encode(rows.raw, u)
    assert y.dtype == torch.float64
    slope = torch.autograd.functional.jacobian(lambda v: codec.encode(rows.raw[:1] + v, u[:1])[0].sum(0), u[0] * 0)
    assert slope.diagonal().log().sum() == pytest.approx(log_det[0].item())
    again = codec.read(codec.decode(y))
    assert torch.equal(again.raw, rows.raw)
    assert ImageCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


def test_probabilities_of_all_images_sum_to_no_more_than_one() -> None:
    # Four pixels of one bit: 16 images, each with a mass that many places in its cell settle. What the flow puts
    # beyond α and 1 − α belongs to no image: bits per dimension are never too good, at most a little too bad.
    x = np.zeros((300, 2, 2), np.uint8)
    x[:, :, 0] = np.where(RNG.random((300, 1)) < 0.7, 255, 0)
    x[:, 0, 1] = np.where(RNG.random(300) < 0.8, x[:, 0, 0], 255 - x[:, 0, 0])
    x[:, 1, 1] = np.where(RNG.random(300) < 0.3, 255, 0)
    table = pa.table({COLUMN: pa.array([encoded(v) for v in x], pa.binary())})
    recipe = {
        "flow": {"type": "maf", "layers": 3, "hidden": [32]},
        "data": {"image": {"bits": 1}},
        "train": {"epochs": 10},
        "score": {"dequantization_samples": 2048},
    }
    model = package.fit(recipe, table)
    every = [255 * np.array([[a, b], [c, d]], np.uint8) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    mass = np.exp(model.log_prob(pa.table({COLUMN: pa.array([encoded(v) for v in every], pa.binary())})))
    assert 0.8 < mass.sum() < 1.005
    assert mass.max() > 2 / 16


def test_flips_are_of_training_only_and_seeded() -> None:
    codec = codec_of(list(pictures(4)), flip=True)
    raw = torch.arange(64).repeat(4, 1)
    turned = codec.augmented(raw, torch.tensor([[0.1], [0.9], [0.4], [0.6]]))
    assert torch.equal(turned[1::2], raw[1::2])
    assert torch.equal(turned[0].view(8, 8), raw[0].view(8, 8).flip(1))
    assert torch.equal(codec_of(list(pictures(4))).augmented(raw, torch.zeros(4, 1)), raw)


def test_sizes_must_agree_unless_resized() -> None:
    images = [*pictures(3), *pictures(1, (8, 12))]
    with pytest.raises(DataError, match=r"image 3: is 12×8 pixels, and image 0 is 8×8; say data\.image\.resize"):
        codec_of(images)
    codec = codec_of(images, resize=[6, 4])
    assert codec.shape == (1, 4, 6)
    rows = codec.read(pa.table({COLUMN: pa.array([encoded(i) for i in images], pa.binary())}))
    assert (rows.status == 0).all()


def test_modes_widen_at_fit() -> None:
    assert codec_of([pictures(1)[0], pictures(1, (8, 8, 3))[0]]).mode == "RGB"
    assert codec_of([pictures(1, (8, 8, 3))[0], pictures(1, (8, 8, 4))[0]]).mode == "RGBA"
    with pytest.raises(DataError, match="16 bits"):
        codec_of([pictures(1)[0], pictures(1, dtype=np.uint16)[0]])


# -- odd files -----------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG that says it has 50,000 × 50,000 pixels."""
    good = encoded(pictures(1)[0])
    size = struct.pack(">II", 50_000, 50_000)
    head = good[12:16] + size + good[24:29]
    import zlib

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
