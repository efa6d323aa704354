"""Reading and writing: whole files or none, every row once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowcli.data.sink import open_sink
from flowcli.data.source import BATCH_ROWS, Source
from flowcli.data.whole import whole_file, write_whole
from flowcli.errors import DataError, UsageError

TABLE = pa.table(
    {"x": [1.5, None, -3.0], "c": ["a", 'quo"te, é\nline', None], "n": [1, 2, 3], "b": [True, False, None]}
)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "arrow"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    file = str(tmp_path / f"t.{suffix}")
    with open_sink(file, TABLE.schema) as sink:
        for batch in TABLE.to_batches(max_chunksize=2):
            sink.write(batch)
    types = {field.name: field.type for field in TABLE.schema}
    source = Source.of([file], types=types)
    assert source.table().to_pylist() == TABLE.to_pylist()
    assert pa.Table.from_batches([b for _, b in source.batches()]).to_pylist() == TABLE.to_pylist()


def test_json_lines_hold_every_value(tmp_path: Path) -> None:
    file = str(tmp_path / "t.jsonl")
    table = TABLE.append_column("inf", pa.array([float("inf"), 0.5, None]))
    with open_sink(file, table.schema) as sink:
        for batch in table.to_batches():
            sink.write(batch)
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert [row["c"] for row in rows] == ["a", 'quo"te, é\nline', None]
    assert [row["inf"] for row in rows] == [sys.float_info.max, 0.5, None]
    assert Source.of([file]).table()["inf"].to_pylist() == [sys.float_info.max, 0.5, None]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("precious")

    def fail_half_way() -> None:
        with open_sink(str(file), TABLE.schema, force=True) as sink:
            sink.write(TABLE.to_batches()[0])
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert file.read_text() == "precious"
    assert os.listdir(tmp_path) == ["t.csv"]


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("precious")
    with pytest.raises(UsageError, match="--force"), open_sink(str(file), TABLE.schema):
        pass
    with open_sink(str(file), TABLE.schema, force=True) as sink:
        sink.write(TABLE.to_batches()[0])
    assert file.read_text().startswith('"x"')


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", "text")
        with whole_file(tmp_path / "b") as beside:
            beside.unlink()
            os.close(os.open(beside, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors' own writer does
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder in which nobody can make a file")
def test_a_place_that_cannot_be_written_is_said() -> None:
    with pytest.raises(DataError, match="cannot be written"), open_sink("/proc/t.csv", TABLE.schema):
        pass


def test_large_files_come_in_batches_in_order(tmp_path: Path) -> None:
    n = 3 * BATCH_ROWS + 17
    pq.write_table(pa.table({"i": range(n)}), tmp_path / "t.parquet", row_group_size=50_000)
    batches = [batch for _, batch in Source.of([str(tmp_path / "t.parquet")]).batches()]
    assert len(batches) > 3
    assert [i for batch in batches for i in batch["i"].to_pylist()] == list(range(n))


def test_numbers_of_rows_take_no_space(tmp_path: Path) -> None:
    n = 100_000
    for name, ids in (("numbers", range(7, n + 7)), ("texts", map(str, range(n)))):
        table = pa.table({"row_id": list(ids), "log_prob": [0.0] * n})
        with open_sink(str(tmp_path / f"{name}.parquet"), table.schema) as sink:
            for batch in table.to_batches(1000):
                sink.write(batch)
        assert pq.read_table(tmp_path / f"{name}.parquet") == table
    column = pq.ParquetFile(tmp_path / "numbers.parquet").metadata.row_group(0).column(0)
    assert column.total_compressed_size < column.num_values / 10


def test_csv_types_settle_over_the_whole_file(tmp_path: Path) -> None:
    rows = 400_000
    (tmp_path / "t.csv").write_text("k,late\n" + "1,1\n" * rows + "2,2.5\n")
    table = Source.of([str(tmp_path / "t.csv")]).table()
    assert table.schema.field("late").type == pa.float64()
    assert table.num_rows == rows + 1


def test_folders_are_read_in_order_and_only_data(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"x\n{ord(Path(name).stem)}\n")
    (tmp_path / "notes.txt").write_text("x")
    assert Source.of([str(tmp_path)]).table()["x"].to_pylist() == [97, 98, 99]


def test_files_of_other_columns_are_refused_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("x,y\n1,2\n")
    (tmp_path / "2.csv").write_text("x,z\n1,2\n")
    with pytest.raises(DataError, match=r"2\.csv: has no column 'y'"):
        next(Source.of([str(tmp_path)]).batches())
