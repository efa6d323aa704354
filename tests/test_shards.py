"""Shards: the same parts for any number of them, each once, and a folder that says when it is whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command import ENVIRONMENT, flowcli, succeed
from shard_cases import FILES, make_lake, table

from flowcli.cli.sharded import sample_shard, score_shard
from flowcli.data.source import Source
from flowcli.errors import DataError, UsageError
from flowcli.model import Model
from flowcli.scoring import Level, RowScorer, Scorer
from flowcli.shards import Part, Shard, inputs, plan

SCORE = ("score", "model.safetensors", "lake", "--keep", "id", "--alpha", "0.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_lake(tmp_path_factory.mktemp("shards"))
    succeed(*SCORE, "-o", "whole.parquet", cwd=folder)
    score(folder, "one", 1)
    return folder


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def score(folder: Path, output: str, n: int, *options: str) -> None:
    for i in range(n):
        assert not (folder / output / "_SUCCESS.json").exists()
        succeed(*SCORE, *options, "-o", output, "--shard", f"{i}/{n}", cwd=folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(code: int, *arguments: object, cwd: Path) -> str:
    done = flowcli(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


# -- the same whatever n -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7])
def test_parts_are_the_same_bytes_for_any_number_of_shards(made: Path, n: int, tmp_path: Path) -> None:
    shutil.copytree(made / "lake", tmp_path / "lake")
    shutil.copy(made / "model.safetensors", tmp_path)
    score(tmp_path, "scores", n)
    assert content(tmp_path / "scores") == content(made / "one")


def test_all_parts_together_are_the_scores_of_the_whole(made: Path) -> None:
    whole, parts = pq.read_table(made / "whole.parquet"), pq.read_table(made / "one")
    assert len(list((made / "one").glob("part-*"))) == FILES
    assert parts.schema.equals(whole.schema)
    exact = ["row_id", "source", "id", "status"]
    assert parts.select(exact).equals(whole.select(exact))  # in order, too
    for name in ("log_prob", "score", "log_prob_error"):
        assert parts[name].null_count == whole[name].null_count < whole.num_rows
        assert pc.max(pc.abs(pc.subtract(parts[name], whole[name]))).as_py() < 1e-5


def test_success_says_what_there_is(made: Path) -> None:
    said = json.loads((made / "one" / "_SUCCESS.json").read_text())
    assert said["rows"] == pq.read_table(made / "whole.parquet").num_rows == sum(p["rows"] for p in said["parts"])
    assert [p["file"] for p in said["parts"]] == sorted(p.name for p in (made / "one").glob("part-*"))


def test_row_groups_are_together_while_they_are_small(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 250)
    found = inputs.Inputs(Source.of([str(made / "lake" / name) for name in ("0.parquet", "1.parquet")]))
    assert [(file["row"], file["rows"]) for file in found.described] == [(0, 300), (300, 317)]
    assert found.parts == [
        Part(0, 0, 200, 0, (0, 2)),
        Part(1, 200, 100, 0, (2, 3)),
        Part(2, 300, 200, 1, (0, 2)),
        Part(3, 500, 117, 1, (2, 4)),
    ]


def parts_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("part-*"))]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_can_have_many_parts(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 100)
    monkeypatch.setattr(Model, "threads", threads)
    score_rows = RowScorer(Scorer(Model.load(made / "model.safetensors"), Level()), ("id",))
    for n in (1, 2, 3):
        for i in range(n):
            score_shard(f"{i}/{n}", score_rows, [str(made / "lake")], str(tmp_path / str(n)), False)
    assert len(parts_of(tmp_path / "1")) > 3 * FILES
    assert parts_of(tmp_path / "1") == parts_of(tmp_path / "2") == parts_of(tmp_path / "3")
    ids = pq.read_table(tmp_path / "1")["row_id"].to_pylist()
    assert ids == list(range(pq.read_table(made / "whole.parquet").num_rows))


def test_drawn_rows_do_not_depend_on_the_number_of_shards(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PART_ROWS", 2 * 8192)
    model, options = Model.load(made / "model.safetensors"), {"seed": 3, "temperature": 0.9, "latents": True}
    for n in (1, 2, 3):
        for i in range(n):
            sample_shard(f"{i}/{n}", model, 40_000, None, str(tmp_path / str(n)), options)
    assert parts_of(tmp_path / "1") == parts_of(tmp_path / "2") == parts_of(tmp_path / "3")
    whole = pa.Table.from_batches(model.sample_batches(40_000, **options))
    assert pq.read_table(tmp_path / "3").equals(whole)
    assert len(parts_of(tmp_path / "3")) == 3


def test_sample_by_the_command(lake: Path) -> None:
    drawn = ("sample", "model.safetensors", "-n", "500", "--seed", "1")
    for i in range(2):
        succeed(*drawn, "-o", "drawn", "--shard", f"{i}/2", cwd=lake)
    succeed(*drawn, "-o", "drawn.parquet", cwd=lake)
    assert pq.read_table(lake / "drawn").equals(pq.read_table(lake / "drawn.parquet"))
    assert "another seed" in refused(2, *drawn[:-1], "2", "-o", "drawn", "--shard", "0/2", cwd=lake)


def test_only_anomalies(lake: Path) -> None:
    score(lake, "odd", 2, "--only-anomalies")
    whole = pq.read_table(lake / "whole.parquet")
    odd = pq.read_table(lake / "odd")
    assert odd["row_id"].equals(whole.filter(pc.fill_null(whole["is_anomaly"], False))["row_id"])
    assert json.loads((lake / "odd" / "_SUCCESS.json").read_text())["rows"] == odd.num_rows > 0


def test_kept_columns_have_the_first_files_type(lake: Path) -> None:
    path = lake / "lake" / "3.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(0, "id", rows["id"].cast(pa.int32())), path)
    score(lake, "mixed", 2)
    assert all(pq.read_schema(p).field("id").type == pa.int64() for p in (lake / "mixed").glob("part-*"))


# -- again, and what is damaged ------------------------------------------------------------------------------------


def test_what_is_done_and_sound_is_not_done_again(lake: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (lake / "one").rglob("*") if p.is_file()}
    done = flowcli(*SCORE, "-o", "one", "--shard", "1/3", cwd=lake)
    assert "shard 1/3: 0 parts written, 3 were done; all 9 are there" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in (lake / "one").rglob("*") if p.is_file()} == before


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("spoil", [remove, flip])
@pytest.mark.parametrize("file", ["part-00000004.parquet", "_done/00000004.json"])
def test_what_is_damaged_is_done_again(lake: Path, made: Path, file: str, spoil: Callable[[Path], None]) -> None:
    spoil(lake / "one" / file)
    succeed(*SCORE, "-o", "one", "--shard", "1/3", cwd=lake)
    assert content(lake / "one") == content(made / "one")


def test_the_last_act_names_the_shard_of_a_part_that_is_not_as_it_was_written(lake: Path) -> None:
    flip(lake / "one" / "part-00000004.parquet")
    (lake / "one" / "part-00000002.parquet").unlink()
    said = refused(3, *SCORE, "-o", "one", "--shard", "2/3", cwd=lake)
    assert said == "error: one/part-00000004.parquet: is not as it was written; run shard 1/3 again.\n"
    assert not (lake / "one" / "_SUCCESS.json").exists()


def test_the_last_act_finds_strange_parts(lake: Path) -> None:
    (lake / "one" / "_SUCCESS.json").unlink()
    shutil.copy(lake / "whole.parquet", lake / "one" / "part-00000009.parquet")
    assert "part-00000009.parquet: is no part of this job" in refused(
        3, *SCORE, "-o", "one", "--shard", "0/1", cwd=lake
    )
    assert not (lake / "one" / "_SUCCESS.json").exists()


def test_a_file_that_changes_is_found_out(made: Path, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_rows = RowScorer(Scorer(Model.load(made / "model.safetensors"), Level()), ())
    read = inputs.open_parquet

    def changed_meanwhile(file: str, **options: Any) -> Any:
        pq.write_table(table(5), file)
        return read(file, **options)

    monkeypatch.setattr(inputs, "open_parquet", changed_meanwhile)
    with pytest.raises(DataError, match=r"0\.parquet: was changed while it was read"):
        score_shard("0/1", score_rows, [str(lake / "lake")], str(lake / "new"), False)
    assert not list((lake / "new").glob("*part*"))


@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_event_shards_end_as_if_nothing_had_been(kills: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_shards.py")), str(kills)]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=3600)
    found = json.loads(done.stdout)
    assert found["kills"] >= kills
    assert found["identical"] == found["every_row_once"] == found["jobs"] >= kills / 10
    assert found["early"] == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-o", "new", "--shard", "0/2", "--fdr", "0.1"], "--fdr: needs all rows together"),
        (["-o", "new", "--shard", "0/2", "--alpha", "0.1", "--fail-over", "0.1"], "--fail-over: needs all rows"),
        (["--shard", "0/2"], "--shard: name the folder"),
        (["-o", "new", "--shard", "0/2", "--force"], "--force: replaces no folder"),
        (["-o", "new", "--shard", "0/2", "--format", "csv"], "--format: csv is not what shards write"),
        (["-o", "new", "--shard", "2/2"], "shards count from 0"),
        (["-o", "new", "--shard", "1"], "'1' is neither i/n, such as 0/3, nor env"),
        (["-o", "new", "--shard", "env"], "the environment has none of RANK/WORLD_SIZE"),
        (["-o", "lake", "--shard", "0/2"], "lake: holds other files"),
        (["-o", "whole.parquet", "--shard", "0/2"], "whole.parquet: is a file"),
        (["-o", "one", "--shard", "0/2", "--alpha", "0.2", "--keep", "id"], "one: was begun with another alpha"),
        (["-o", "one", "--shard", "0/2", "--alpha", "0.1"], "one: was begun with another keep"),
    ],
)
def test_what_shards_cannot_do_is_one_sentence(made: Path, options: list[str], sentence: str) -> None:
    assert sentence in refused(2, "score", "model.safetensors", "lake", *options, cwd=made)
    assert not (made / "new").exists()


def test_other_inputs_and_other_formats_are_refused(lake: Path) -> None:
    (lake / "lake" / "8.parquet").unlink()
    assert "another set of inputs" in refused(2, *SCORE, "-o", "one", "--shard", "0/2", cwd=lake)
    (lake / "t.csv").write_text("x,y,site\n1,2,a\n")
    csv = ("score", "model.safetensors", "t.csv", "-o", "new", "--shard", "0/1")
    assert "t.csv: is no parquet file" in refused(2, *csv, cwd=lake)
    pq.write_table(table(0), lake / "none.parquet")
    none = ("score", "model.safetensors", "none.parquet", "-o", "new", "--shard", "0/1")
    assert "none.parquet: no rows" in refused(3, *none, cwd=lake)


def test_pictures_in_tables(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 10)
    pictures = str(tmp_path / "pictures.parquet")
    pq.write_table(pq.read_table(world / "p.parquet"), pictures, row_group_size=7)
    score_rows = RowScorer(Scorer(Model.load(world / "run"), Level()), ("weight", "label"))
    for i in range(2):
        score_shard(f"{i}/2", score_rows, [pictures], str(tmp_path / "scores"), False)
    succeed("score", world / "run", pictures, "-o", tmp_path / "whole.parquet", "--keep", "weight,label")
    parts, whole = pq.read_table(tmp_path / "scores"), pq.read_table(tmp_path / "whole.parquet")
    assert len(parts_of(tmp_path / "scores")) > 1
    assert parts.schema.equals(whole.schema)
    exact = ["row_id", "source", "weight", "label", "status"]
    assert parts.select(exact).equals(whole.select(exact))
    assert pc.max(pc.abs(pc.subtract(parts["score"], whole["score"]))).as_py() < 1e-4
    said = refused(2, "score", "run", "p.npz", "-o", "new", "--shard", "0/1", cwd=world)
    assert "p.npz" in said


# -- who does what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, Shard(1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, Shard(2, 3)),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "5"}, Shard(0, 5)),
    ],
)
def test_the_environment_says_which_shard_this_is(environment: dict[str, str], shard: Shard) -> None:
    assert Shard.named("env", environment) == shard
    assert Shard.named("0/1", environment) == Shard(0, 1)


def test_kubernetes_does_not_say_of_how_many() -> None:
    with pytest.raises(UsageError, match="set JOB_COMPLETIONS"):
        Shard.named("env", {"JOB_COMPLETION_INDEX": "0"})


def test_every_part_is_one_shards() -> None:
    parts = list(range(23))
    for n in (1, 2, 3, 7, 30):
        assert sorted(part for i in range(n) for part in Shard(i, n).share(parts)) == parts


@pytest.mark.slow
def test_torchrun_starts_shards(lake: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flowcli"]
    subprocess.run([*run, *SCORE, "-o", "both", "--shard", "env"], cwd=lake, env=ENVIRONMENT, check=True, timeout=300)
    assert parts_of(lake / "both") == parts_of(lake / "one")
