"""Data larger than memory: each row learned from once an epoch, and the same fit however the rows are stored."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import flowcli
from flowcli.data import groups
from flowcli.data.source import Source
from flowcli.data.table import TableCodec
from flowcli.errors import DataError, UsageError
from flowcli.recipe import from_dict
from flowcli.training import rows as training_rows
from flowcli.training import survey
from flowcli.training.loop import Interrupted
from flowcli.training.prepare import Prepared, prepare
from flowcli.training.rows import Streamed

ROWS = 2000
SMALL: dict[str, Any] = {"flow": {"type": "maf", "layers": 2, "hidden": [16]}}
SMALL["train"] = {"epochs": 3, "stream": True, "batch_size": 16}


@pytest.fixture(autouse=True)
def many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 64 rows, and some ten of them in a window."""
    monkeypatch.setattr(groups, "GROUP_ROWS", 64)
    monkeypatch.setattr(groups, "MAX_GROUP", 1000)
    monkeypatch.setattr(training_rows, "WINDOW", 2000)


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(ROWS)
    columns = {"x": x, "y": x**2 + 0.3 * rng.standard_normal(ROWS), "row": np.arange(ROWS) + 2**60}
    return pa.table(columns | {"s": rng.choice(["low", "high"], ROWS), "k": rng.poisson(2, ROWS)})


def parquet(table: pa.Table, path: Path, group: int = 64) -> str:
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def weights(model: flowcli.Model) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.flow.state_dict().values())


def prepared(*files: str, **data: Any) -> Prepared:
    return prepare(from_dict(SMALL | {"data": {"files": list(files)} | data}))


def numbers(found: Prepared, epoch: int, start: int = 0) -> list[np.ndarray]:
    """The column ``x`` of each window."""
    windows = found.rows.windows(epoch, start)
    return [torch.cat([part.raw[:, found.codec.slots[0][0]] for _, part in window]).numpy() for window in windows]


def test_each_row_is_held_out_or_learned_from_once_an_epoch(table: pa.Table, tmp_path: Path) -> None:
    found = prepared(parquet(table, tmp_path / "t.parquet"), exclude=["row"])
    assert isinstance(found.rows, Streamed)
    x = found.codec.slots[0][0]
    held = found.held_out.raw[:, x].numpy()
    assert 0.07 * ROWS < len(held) < 0.13 * ROWS
    epochs = [numbers(found, epoch) for epoch in (0, 1)]
    for windows in epochs:
        assert len(windows) > 3
        assert sorted([*held, *np.concatenate(windows)]) == sorted(table["x"].to_pylist())
    assert sorted(epochs[0][0]) != sorted(epochs[1][0])
    later = numbers(found, 1, start=2)
    assert [window.tolist() for window in later] == [window.tolist() for window in epochs[1][2:]]
    for window in found.rows.windows(0, 0):
        assert sum(len(part) for _, part in window) < found.rows.at_once + 64
    starts = sorted((start, len(part)) for window in found.rows.windows(0, 0) for start, part in window)
    assert starts[0][0] == 0
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(starts))
    assert sum(starts[-1]) == len(found.rows)


def test_the_fit_is_the_same_however_the_rows_are_stored(table: pa.Table, tmp_path: Path) -> None:
    table = table.drop_columns(["row"])
    table.to_pandas().to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    again = Source.of([str(tmp_path / "t.jsonl")]).table()  # the numbers that JSON has, to the last bit
    again.to_pandas().to_csv(tmp_path / "t.csv", index=False)
    parquet(again, tmp_path / "small.parquet")
    parquet(again, tmp_path / "large.parquet", ROWS)
    parquet(again.slice(0, 1024), tmp_path / "two-1.parquet")
    parquet(again.slice(1024), tmp_path / "two-2.parquet")
    files = ["small.parquet", "large.parquet", "t.csv", "t.jsonl", "two-*.parquet"]
    models = [flowcli.fit(SMALL | {"data": {"files": str(tmp_path / file)}}) for file in files]
    assert len({weights(model) for model in models}) == 1
    columns = [[column.to_dict() | {"arrow_type": ""} for column in model.codec.columns] for model in models]
    for found in columns:
        assert found == columns[0]


def test_a_stream_is_fitted_as_well_as_a_table_in_memory(table: pa.Table, tmp_path: Path) -> None:
    file = parquet(table.drop_columns(["row"]), tmp_path / "t.parquet")
    recipe = SMALL | {"data": {"files": file}, "train": {"epochs": 15, "batch_size": 64}}
    found = [flowcli.fit(recipe, overrides=[f"train.stream={stream}"]) for stream in ("true", "false")]
    frame = table.to_pandas()
    streamed, together = (model.log_prob(frame).mean() for model in found)
    assert streamed == pytest.approx(together, abs=0.05)
    assert streamed > found[0].about["held_out_gaussian_log_prob"] + 0.3


def test_small_data_are_not_streamed_unless_asked(table: pa.Table, tmp_path: Path) -> None:
    file = parquet(table, tmp_path / "t.parquet")
    assert not prepare(from_dict({"flow": {"type": "planar"}, "data": {"files": file}})).recipe.train.stream
    assert prepared(file).recipe.train.stream is True
    with pytest.raises(UsageError, match="in memory already"):
        prepare(from_dict(SMALL), table)


def test_what_only_one_row_tells_is_seen(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLE", 500)
    few = np.arange(ROWS) // 5 == 140
    table = table.append_column("late", pa.array(np.where(few, 1.5, 1.0)))
    table = table.append_column("level", pa.array(np.where(few, "rare", "usual")).dictionary_encode())
    table = table.append_column("flag", pa.array(few))
    table = table.append_column("code", pa.array(np.where(few, 7, 3)))
    table = table.append_column("one", pa.array(["same"] * ROWS))
    found = prepared(parquet(table, tmp_path / "t.parquet"), columns={"code": "category"})
    codec = found.codec
    assert isinstance(codec, TableCodec)
    kinds = {column.name: column.kind for column in codec.columns}
    assert kinds == {
        "x": "real", "y": "real", "row": "integer", "s": "category", "k": "integer", "late": "gated",
        "level": "category", "flag": "category", "code": "category", "one": "constant",
    }  # fmt: skip
    assert codec.column("code").levels == (3, 7)
    assert set(codec.column("level").levels) == {"usual", "rare"}
    # The counts are those of the sample, not of the whole: fewer rows were looked at.
    assert sum(codec.column("s").counts) < 0.7 * ROWS


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("hole", [1.0] * 1990 + [None] + [2.0] * 9, "column 'hole': 1 of"),
        ("infinite", [1.0] * 1990 + [float("inf")] + [2.0] * 9, "column 'infinite': 1 of"),
        ("log", [1.0] * 1990 + [-1.0] + [2.5] * 9, "transform log needs values above 0"),
        ("text", [str(i) for i in range(ROWS)], "look like text or an id"),
    ],
)
def test_what_cannot_be_fitted_is_named(
    table: pa.Table, tmp_path: Path, name: str, values: list[Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SAMPLE", 500)
    file = parquet(table.append_column(name, pa.array(values)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=sentence):
        prepared(file, columns={"log": {"transform": "log"}} if name == "log" else {})


def test_a_fraction_far_down_a_text_file(tmp_path: Path) -> None:
    lines = ["amount,id,empty,note"] + [f"{i % 7},{2**60 + i % 50},,{i}" for i in range(300_000)]
    (tmp_path / "t.csv").write_text("\n".join([*lines, f"0.5,{2**60},,words"]))
    found = prepared(str(tmp_path / "t.csv"), exclude=["empty", "note"])
    assert found.codec.types == {"amount": pa.float64(), "id": pa.int64()}
    assert found.codec.column("id").offset == 2**60
    assert len(found.rows) + len(found.held_out) == 300_001
    with pytest.raises(DataError, match=r"column 'empty': .* values are missing"):
        prepared(str(tmp_path / "t.csv"), exclude=["note"])
    with pytest.raises(DataError, match=r"t\.csv: cannot be read: .*'words'"):
        prepared(str(tmp_path / "t.csv"), exclude=["empty"])


def test_files_of_other_types_fit_together_or_are_named(table: pa.Table, tmp_path: Path) -> None:
    table = table.select(["x", "k"])
    for name, part in (("1", table), ("2", table.set_column(1, "k", table["k"].cast(pa.float64())))):
        pa.feather.write_feather(part.slice(0, 500), tmp_path / f"{name}.arrow")
        parquet(part.slice(500, 500), tmp_path / f"{name}.parquet")
    nothing = pa.table({"x": pa.array([], pa.string()), "k": pa.array([], pa.int8())})
    parquet(nothing, tmp_path / "0.parquet")
    for ending in ("arrow", "parquet"):
        found = prepared(str(tmp_path / f"*.{ending}"))
        assert found.codec.types["k"] == pa.float64()
        assert len(found.rows) + len(found.held_out) == 1000
    parquet(table.set_column(1, "k", table["k"].cast(pa.string())), tmp_path / "3.parquet")
    with pytest.raises(DataError, match="do not fit together"):
        prepared(str(tmp_path / "*.parquet"))


def test_what_is_too_little_to_fit(table: pa.Table, tmp_path: Path) -> None:
    for name, group in (("small", 64), ("large", ROWS)):
        file = parquet(table, tmp_path / f"{name}.parquet", group)
        with pytest.raises(DataError, match="no column is left to model"):
            prepared(file, exclude=table.column_names)
    validation = parquet(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match="3 rows are too few"):
        prepared(parquet(table.slice(0, 3), tmp_path / "few.parquet"), validation=validation)


def test_a_held_out_file_may_have_plain_text_for_a_dictionary(table: pa.Table, tmp_path: Path) -> None:
    validation = parquet(table.slice(1500), tmp_path / "v.parquet")
    coded = table.slice(0, 1500).set_column(3, "s", table["s"].slice(0, 1500).dictionary_encode())
    for stream in (True, False):
        recipe = SMALL | {"data": {"files": parquet(coded, tmp_path / "t.parquet"), "validation": validation}}
        found = prepare(from_dict(recipe, [f"train.stream={json.dumps(stream)}"]))
        assert (len(found.rows), len(found.held_out)) == (1500, 500)


def test_a_wide_context_makes_smaller_windows(table: pa.Table, tmp_path: Path) -> None:
    levels = pa.array([f"level {i % 40}" for i in range(ROWS)])
    file = parquet(table.select(["x"]).append_column("site", levels), tmp_path / "t.parquet")
    assert prepared(file, given=["site"]).rows.at_once < prepared(file).rows.at_once / 3


def test_many_tiny_batches_become_groups_of_a_good_size(tmp_path: Path) -> None:
    batches = [pa.record_batch({"x": [float(i), i + 0.5]}) for i in range(1000)]
    with pa.ipc.new_stream(tmp_path / "t.arrows", batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    found = prepared(str(tmp_path / "t.arrows"))
    assert isinstance(found.rows, Streamed)
    assert len(found.rows.stream.groups) <= ROWS / 64 + 1


def test_a_file_that_changes_while_it_is_read(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    found = prepared(parquet(table, path))
    parquet(table.slice(0, 1500), path)
    with pytest.raises(DataError, match=r"t\.parquet: was changed while it was read"):
        list(found.rows.windows(0, 0))
    path.unlink()
    with pytest.raises(DataError, match=r"t\.parquet: no such file"):
        list(found.rows.windows(0, 0))


def test_no_room_for_a_copy(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(table, tmp_path / "t.parquet", ROWS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"temporary copy .* TMPDIR"):
        prepared(file)


@pytest.mark.parametrize("stop", [3, 20, 47])
def test_a_stopped_stream_goes_on_within_an_epoch(table: pa.Table, tmp_path: Path, stop: int) -> None:
    recipe = SMALL | {"data": {"files": parquet(table, tmp_path / "t.parquet"), "exclude": ["row"]}}
    whole = flowcli.fit(recipe, run=tmp_path / "whole")
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        flowcli.fit(recipe, run=tmp_path / "run", stopped=lambda: next(asked) > 4 * stop)
    flowcli.fit(recipe, run=tmp_path / "run", resume=True)
    assert weights(flowcli.load(tmp_path / "run")) == weights(whole)
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "run")]
    figures = [[list(json.loads(line).values())[:7] for line in of] for of in lines]  # all but those of time
    assert figures[0] == figures[1]


def test_pictures_are_streamed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(150):
        folder = tmp_path / "pictures" / f"class-{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6), np.uint8)).save(folder / f"{i}.png")
    recipe = {"flow": {"type": "glow", "layers": 1, "hidden": [4]}, "train": {"epochs": 1, "stream": True}}
    recipe |= {"data": {"files": str(tmp_path / "pictures"), "given": ["label"]}}
    model = flowcli.fit(recipe)
    assert model.about["rows"] + model.about["held_out_rows"] == 150
    assert model.codec.shape == (1, 4, 6)
    (tmp_path / "pictures" / "class-0" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image"):
        flowcli.fit(recipe)
    flowcli.fit(recipe, overrides=["data.image.on_error=skip"])


def test_arrays_of_pictures_are_streamed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", images=rng.integers(0, 256, (300, 4, 6), np.uint8), labels=np.arange(300) % 3)
    np.save(tmp_path / "colour.npy", rng.integers(0, 256, (300, 4, 6, 3), np.uint8))
    recipe = {"flow": {"type": "glow", "layers": 1, "hidden": [4]}, "train": {"epochs": 1, "stream": True}}
    for data, shape in (({"files": "p.npz", "given": ["label"]}, (1, 4, 6)), ({"files": "colour.npy"}, (3, 4, 6))):
        model = flowcli.fit(recipe | {"data": data | {"files": str(tmp_path / str(data["files"]))}})
        assert model.about["rows"] + model.about["held_out_rows"] == 300
        assert model.codec.shape == shape
    with pytest.raises(DataError, match="do not fit together"):
        flowcli.fit(recipe | {"data": {"files": [str(tmp_path / "p.npz"), str(tmp_path / "colour.npy")]}})
