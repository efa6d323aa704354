"""Pictures as they lie about on disks: links, zips from elsewhere, orientation, transparency, odd orders, labels."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import flowcli, succeed
from image_cases import QUICK, encoded, pictures, pixels
from PIL import Image

import flowcli as package
from flowcli.data.image import COLUMN, FILE, ImageCodec
from flowcli.data.pictures import BATCH_BYTES, LABEL, Pictures, hold_pictures
from flowcli.errors import DataError, UsageError
from flowcli.recipe.schema import Data
from flowcli.recipe.schema import Image as Options

PNG = encoded(pictures(1)[0])


def names_and_labels(*paths: Path) -> list[tuple[str, str]]:
    table = Pictures.of([str(path) for path in paths]).table()
    return [
        (Path(name).name, label) for name, label in zip(table[FILE].to_pylist(), table[LABEL].to_pylist(), strict=True)
    ]


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(PNG)
    return folder


def codec_of(*contents: bytes, **options: object) -> ImageCodec:
    return ImageCodec.fit(pa.table({COLUMN: pa.array(contents, pa.binary())}), Data(image=Options(**options)))


# -- where they lie ------------------------------------------------------------------------------------------------


def test_links_are_followed_and_labelled_as_they_are_named(tmp_path: Path) -> None:
    real = fill(tmp_path / "real", "1.png")
    links = fill(tmp_path / "links" / "cat")
    (links / "2.png").symlink_to(real / "1.png")
    (tmp_path / "links" / "dog").symlink_to(real)
    (tmp_path / "links" / "round").symlink_to(tmp_path / "links")
    assert names_and_labels(tmp_path / "links") == [("2.png", "cat"), ("1.png", "dog")]


def test_hidden_files_and_what_macos_adds_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "p" / ".cache", "a.png")
    fill(tmp_path / "p", ".b.png", "c.png")
    assert names_and_labels(tmp_path / "p") == [("c.png", "p")]
    with zipfile.ZipFile(tmp_path / "top.zip", "w") as archive:
        for name in ("__MACOSX/k/._d.png", "k/.DS_Store", "k/d.png", "e.PNG", "folder.png/"):
            archive.writestr(name, PNG if name.lower().endswith("png") else b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("k/d.png", PNG)
    assert names_and_labels(tmp_path / "top.zip") == [("e.PNG", "top"), ("d.png", "k"), ("d.png", "k")]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_broken_entry_of_a_zip_is_one_unreadable_picture(world: Path, tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w", compression) as archive:
        for i in range(3):
            archive.writestr(f"class0/{i}.png", PNG)
        place = archive.getinfo("class0/1.png").header_offset + 60
    content = bytearray((tmp_path / "p.zip").read_bytes())
    content[place : place + 20] = bytes(20)
    (tmp_path / "p.zip").write_bytes(content)
    done = flowcli("score", world / "run", "p.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(io.StringIO(done.stdout))["status"].tolist() == ["ok", "unreadable", "ok"]


def test_pictures_keep_the_order_they_are_named_in(world: Path, tmp_path: Path) -> None:
    one, folder, two = tmp_path / "z.png", fill(tmp_path / "m", "m.png"), tmp_path / "a.png"
    one.write_bytes(PNG)
    two.write_bytes(PNG)
    found = names_and_labels(one, folder, two)
    assert [name for name, _ in found] == ["z.png", "m.png", "a.png"]


def test_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BATCH_BYTES < 1 << 30
    monkeypatch.setattr("flowcli.data.pictures.BATCH_BYTES", 2 * len(PNG))
    fill(tmp_path / "p", *(f"{i}.png" for i in range(5)))
    assert [batch.num_rows for _, batch in Pictures.of([str(tmp_path / "p")]).batches()] == [2, 2, 1]


def test_what_counts_as_pictures(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    pd.DataFrame({"x": [1.0]}).to_csv(plain / "t.csv", index=False)
    pq.write_table(pa.table({"image": [{"bytes": PNG, "path": "a"}], "k": [1]}), tmp_path / "hf.parquet")
    pq.write_table(pa.table({"x": [b"1"]}), tmp_path / "bytes.parquet")
    fill(tmp_path / "p", "1.png")
    assert hold_pictures([str(tmp_path / "p" / "*")])
    assert hold_pictures([str(tmp_path / "hf.parquet")])
    assert not hold_pictures([str(tmp_path / "bytes.parquet")])
    assert not hold_pictures([str(plain)])
    fill(plain, "plot.png")
    assert not hold_pictures([str(plain)])
    assert not hold_pictures([str(tmp_path / "idxes.dat")])


# -- what they are -------------------------------------------------------------------------------------------------


def test_the_way_up_is_the_one_that_exif_says() -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG", exif=exif)
    codec = codec_of(buffer.getvalue())
    assert (codec.width, codec.height) == (4, 8)
    raw = codec.read(pa.table({COLUMN: [buffer.getvalue()]})).raw.view(8, 4)
    assert (raw[0] == 255).all()
    assert (raw[1:] == 0).all()


def test_transparency_is_a_channel_however_it_is_kept() -> None:
    palette = Image.fromarray(pictures(1)[0]).convert("P")
    for image in (palette, Image.fromarray(pictures(1)[0]), Image.fromarray(pictures(1, (8, 8, 3))[0])):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=(1, 2, 3) if image.mode == "RGB" else 3)
        assert codec_of(buffer.getvalue()).mode == "RGBA"


def test_all_bits_are_modelled_unless_fewer_are_asked_for() -> None:
    deep = encoded(pictures(1, dtype=np.uint16)[0])
    assert codec_of(deep).bits == 16
    assert codec_of(deep, bits=8).bits == 8
    assert codec_of(PNG).bits == 8


def test_arrays_are_resized_and_converted_as_files_are() -> None:
    grey, colour = pictures(3), pictures(3, (8, 8, 3))
    codec = codec_of(PNG, resize=[4, 4])
    for images in (grey, colour):
        array = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images))
        files = pa.array([encoded(image) for image in images])
        rows = [codec.read(pa.table({COLUMN: values})) for values in (array, files)]
        assert (rows[0].raw == rows[1].raw).all()
        assert (rows[0].status == 0).all()
    five = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 8, 8, 5), np.uint8))
    with pytest.raises(DataError, match="image 0: cannot be read"):
        ImageCodec.fit(pa.table({COLUMN: five}), Data(image=Options()))


def test_labels_of_one_column_beside_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x_train=pictures(4), y_train=np.arange(4)[:, None])
    assert Pictures.of([str(tmp_path / "c.npz")]).table()[LABEL].to_pylist() == ["0", "1", "2", "3"]


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_given_columns_of_pictures_must_be_there_and_whole() -> None:
    table = pa.table({COLUMN: pa.array([PNG] * 3, pa.binary()), LABEL: ["a", "b", None]})
    with pytest.raises(DataError, match="Did you mean 'label'"):
        ImageCodec.used(table.schema, Data(given=["lable"]))
    with pytest.raises(DataError, match="1 of 3 values"):
        ImageCodec.fit(table, Data(given=["label"]))
    with pytest.raises(UsageError, match="are for tables"):
        ImageCodec.used(table.schema, Data(exclude=["label"]))


def test_held_out_pictures_are_checked_as_the_others_are(world: Path, tmp_path: Path) -> None:
    held = fill(tmp_path / "held", "good.png")
    (held / "junk.png").write_bytes(b"junk")
    options = ("-s", "data.given=[]", "-s", f"data.validation={held}", *QUICK)
    done = flowcli("fit", world / "glow.yaml", world / "p", "-o", "run", *options, cwd=tmp_path)
    assert done.returncode == 3
    assert "held/junk.png: cannot be read as an image" in done.stderr


def test_more_samples_than_at_fit_give_no_p_values(world: Path) -> None:
    more = ("score", "run", "p", "--dequantization-samples", "4")
    assert pd.read_csv(io.StringIO(succeed(*more, cwd=world)))["p_value"].isna().all()
    for option in ("--alpha", "--fdr"):
        done = flowcli(*more, option, "0.1", cwd=world)
        assert (done.returncode, done.stdout) == (2, "")
        assert "score.dequantization_samples=4" in done.stderr


def test_kept_columns_go_by_name(world: Path, tmp_path: Path) -> None:
    for name, order in (("1", ["img", "label", "k"]), ("2", ["k", "img", "label"])):
        pq.write_table(
            pa.table({"img": [PNG], "label": ["class0"], "k": [name]}).select(order), tmp_path / f"{name}.pq"
        )
    found = pd.read_csv(io.StringIO(succeed("score", world / "run", "1.pq", "2.pq", "--keep-all", cwd=tmp_path)))
    assert found["label"].tolist() == ["class0"] * 2
    assert found["k"].tolist() == [1, 2]
    np.save(tmp_path / "a.npy", pictures(2))
    recipe = {"flow": {"type": "glow", "layers": 1, "hidden": [4]}, "train": {"epochs": 1}, "data": {"image": {}}}
    model = package.fit(recipe, Pictures.of([str(world / "p")]).table())
    model.save(tmp_path / "m.safetensors")
    mixed = pd.read_csv(
        io.StringIO(succeed("score", "m.safetensors", world / "p", "a.npy", "--keep-all", cwd=tmp_path))
    )
    assert mixed["label"].isna().sum() == 2
    done = flowcli("score", "m.safetensors", "a.npy", world / "p", "--keep-all", cwd=tmp_path)
    assert done.returncode == 3
    assert "column 'label': is not in the files before" in done.stderr
    for option in (("--keep", "image"), ("--keep", "img")):
        done = flowcli("score", world / "run", "1.pq", *option, cwd=tmp_path)
        assert done.returncode in (2, 3)
        assert "bug" not in done.stderr


def test_between_refuses_what_it_cannot_place(world: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    ends = (world / "p" / "class0" / "00.png", tmp_path / "junk.png")
    for more, words in (
        ((*ends,), "junk.png: cannot be an end to go between: un"),
        ((ends[0], ends[0], "--given", "label=clas0"), "Did you mean 'class0'"),
        ((ends[0], ends[0], "--temperature", "0.5"), "--temperature"),
        ((ends[0], ends[0], "--given", "label=class0", "--given", "label=class1"), "'label' is given twice"),
    ):
        done = flowcli("sample", world / "run", "--between", *more, "-o", "way.png", cwd=tmp_path)
        assert done.returncode in (2, 3)
        assert words in done.stderr


def test_force_leaves_no_older_pictures_among_the_new(world: Path, tmp_path: Path) -> None:
    draw = ("sample", world / "run", "--given", "label=class0", "-o", "out/")
    succeed(*draw, "-n", "5", cwd=tmp_path)
    (tmp_path / "out" / "mine.png").write_bytes(PNG)
    succeed(*draw, "-n", "2", "--force", cwd=tmp_path)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "mine.png"]
    assert pixels(tmp_path / "out" / "000001.png").shape == (8, 8)


def test_with_few_rows_the_baseline_has_no_correlations(world: Path, tmp_path: Path) -> None:
    model = package.load(world / "run")  # 54 pictures of 64 pixels
    assert model.baseline.covariance.shape == (64,)
    assert model.about["held_out_gaussian_log_prob"] > -1000
