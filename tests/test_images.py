"""Images the whole way: every container they come in, the codec's honesty, Glow at the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from command import flowcli, succeed
from image_cases import QUICK, RNG, N, encoded, pictures, pixels
from PIL import Image

import flowcli as package
from flowcli.data.image import COLUMN, FILE, ImageCodec
from flowcli.data.pictures import Pictures, hold_pictures
from flowcli.errors import DataError
from flowcli.flows.nets import ConvNet
from flowcli.recipe.schema import Data
from flowcli.recipe.schema import Image as Options

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
        for method in ("auto", "nll", "typicality", "complexity", "either")
    }
    log_prob = by["nll"]["log_prob"]
    assert np.allclose(by["nll"]["score"], -log_prob)
    assert by["auto"]["score"].equals(by["either"]["score"])
    held_out = package.load(world / "run").calibration.numpy()
    standard = [
        (by[method]["score"] - usual.mean()) / usual.std()
        for method, usual in (("nll", -held_out[0]), ("complexity", -held_out.sum(0)))
    ]
    assert np.allclose(by["either"]["score"], np.maximum(*standard))
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


def test_given_rows_come_from_a_table(world: Path, tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("label\nclass1\nclass0\n")
    succeed("sample", world / "run", "-n", "3", "--given", "given.csv", "-o", "t.parquet", cwd=tmp_path)
    assert list(pd.read_parquet(tmp_path / "t.parquet")["label"]) == ["class1"] * 3 + ["class0"] * 3


def test_latents_of_every_scale_come_when_asked(world: Path, tmp_path: Path) -> None:
    draw = ("sample", world / "run", "-n", "4", "--given", "label=class1", "--latents")
    succeed(*draw, "-o", "t.parquet", cwd=tmp_path)
    table = pa.parquet.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["label", COLUMN, "latent_1", "latent_2"]
    sizes = [table.column(name).type.list_size for name in table.column_names[2:]]
    assert sizes == [32, 32]
    model = package.load(world / "run")
    z = torch.cat([torch.tensor(table.column(name).to_pylist()) for name in table.column_names[2:]], 1)
    context = model.codec.read_given(table.select(["label"]))
    again = model.decoded(z.float(), context.float())
    assert again.column(COLUMN).to_pylist() == table.column(COLUMN).to_pylist()
    for output in ("sheet.png", "-"):
        refused = flowcli(*draw, "-o", output, cwd=tmp_path)
        assert refused.returncode == 2
        assert "parquet or Arrow" in refused.stderr


def test_mixed_precision_is_inside_the_convolutions_and_of_training_only(world: Path, tmp_path: Path) -> None:
    options = (*QUICK, "-s", "data.given=[]", "-s", "train.epochs=20")
    means = []
    for precision in ("float32", "mixed"):
        more = ("-s", f"train.precision={precision}")
        succeed("fit", world / "glow.yaml", world / "p", "-o", precision, *options, *more, cwd=tmp_path)
        model = package.load(tmp_path / precision)
        assert {p.dtype for p in model.flow.parameters()} == {torch.float32}
        means.append(model.about["held_out_log_prob"])
    assert means[0] != means[1]  # bfloat16 was there
    assert means[0] == pytest.approx(means[1], abs=1.0)  # of some 130 nats
    model.flow.train()
    net = next(m for m in model.flow.modules() if isinstance(m, ConvNet))
    x = torch.randn(2, net.last.out_channels // net.count, 4, 4)
    trained = net(x, None)
    model.flow.eval()
    assert trained.dtype == net(x, None).dtype == torch.float32
    assert not torch.equal(trained, net(x, None))
    refused = flowcli("fit", "maf-affine", world / "p.npy", "-s", "train.precision=mixed", cwd=tmp_path)
    assert refused.returncode == 2
    assert "train.precision: mixed is for realnvp and glow on images" in refused.stderr


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
