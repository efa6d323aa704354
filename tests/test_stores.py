"""Objects in place of files, on a server of S3's protocol that listens on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command import ENVIRONMENT, flowcli
from shard_cases import FILES, make_lake

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
SCORE = ("score", "s3://lake/model.safetensors")
TABLES = [f"s3://lake/lake/{name}.parquet" for name in (*range(FILES), "empty")]
SMALL = ("-s", "train.epochs=1", "-s", "flow.layers=1", "-s", "flow.hidden=[8]", "-s", "data.exclude=[id]")


class Store:
    """A bucket ``lake`` with the files of a lake, and commands that find it."""

    def __init__(self, port: int, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.client.create_bucket(Bucket="lake")
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.put_object(Bucket="lake", Key=str(path.relative_to(folder)), Body=path.read_bytes())

    def flowcli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return flowcli(*arguments, cwd=self.folder, environment=self.environment)

    def succeed(self, *arguments: str) -> str:
        done = self.flowcli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="lake", Key=key)["Body"].read()
        return content


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        port = next(int(line) for line in server.stdout if line.strip().isdigit())
        store = Store(port, make_lake(tmp_path_factory.mktemp("stores")))
        yield store
        store.client.close()
        server.kill()


def table_of(store: Store, key: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read(key)))


def test_inputs_outputs_and_models_may_be_objects(store: Store) -> None:
    store.succeed("score", "model.safetensors", "lake", "-o", "scores.parquet", "--keep-all")
    store.succeed(*SCORE, "s3://lake/lake/", "-o", "s3://lake/out/scores.parquet", "--keep-all")
    ours, theirs = pq.read_table(store.folder / "scores.parquet"), table_of(store, "out/scores.parquet")
    assert theirs.drop_columns("source").equals(ours.drop_columns("source"))
    assert set(theirs["source"].to_pylist()) == {f"s3://lake/lake/{i}.parquet" for i in range(FILES)}


def test_python_saves_and_loads_a_model_there(store: Store) -> None:
    code = (
        "import flowcli; flowcli.load('model.safetensors').save('s3://lake/saved/model.safetensors'); "
        "print(flowcli.load('s3://lake/saved').digest)"
    )
    command = [sys.executable, "-c", code]
    environment = ENVIRONMENT | store.environment
    done = subprocess.run(
        command, cwd=store.folder, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    saved = store.read("saved/model.safetensors")
    assert done.stdout.strip() == hashlib.sha256(saved).hexdigest()
    assert saved == (store.folder / "model.safetensors").read_bytes()


def test_shards_write_to_a_store(store: Store) -> None:
    store.succeed("score", "model.safetensors", "lake", "-o", "local", "--keep", "id", "--shard", "0/1")
    for i in range(2):
        assert "scores/_SUCCESS.json" not in store.keys("")
        sharded = store.flowcli(*SCORE, "s3://lake/lake", "-o", "s3://lake/scores", "--keep", "id", "--shard", f"{i}/2")
        assert sharded.returncode == 0, sharded.stderr
    parts = [path for path in (store.folder / "local").rglob("*") if path.is_file()]
    assert store.keys("scores/") == sorted(f"scores/{path.relative_to(store.folder / 'local')}" for path in parts)
    for path in parts:
        if path.suffix == ".parquet":
            ours = pq.read_table(path).drop_columns("source")
            assert table_of(store, f"scores/{path.name}").drop_columns("source").equals(ours)
    again = ("--keep", "id", "--shard", "0/2")
    store.client.put_object(Bucket="lake", Key="scores/part-00000002.parquet", Body=b"damaged")
    done = store.flowcli(*SCORE, "s3://lake/lake", "-o", "s3://lake/scores", *again)
    assert "1 part written, 4 were done; all 9 are there" in done.stderr
    assert json.loads(store.read("scores/_SUCCESS.json"))["rows"] == pq.read_table(store.folder / "local").num_rows
    store.succeed("sample", "s3://lake/model.safetensors", "-n", "10", "-o", "s3://lake/drawn", "--shard", "0/1")
    assert table_of(store, "drawn/part-00000000.parquet").num_rows == 10


def test_the_parts_are_single_requests_and_success_is_the_last(store: Store) -> None:
    store.succeed(*SCORE, "s3://lake/lake", "-o", "s3://lake/dated", "--shard", "0/1")
    versions = {
        entry["Key"]: (entry["LastModified"], entry["ETag"])
        for entry in store.client.list_objects_v2(Bucket="lake", Prefix="dated/")["Contents"]
    }
    assert not any("-" in tag for _, tag in versions.values())  # as the tags of uploads in several parts have
    assert max(when for when, _ in versions.values()) == versions["dated/_SUCCESS.json"][0]


def test_a_table_is_looked_at_and_fitted_where_it_lies(store: Store) -> None:
    store.succeed("init", "s3://lake/lake/*.parquet", "-o", "recipe.yaml")
    assert "s3://lake/lake/*.parquet" in (store.folder / "recipe.yaml").read_text()
    store.succeed("fit", "recipe.yaml", "-o", "run", *SMALL)
    store.succeed("fit", "recipe.yaml", "-o", "streamed", "-s", "train.stream=true", *SMALL)
    assert "s3://lake/lake/*.parquet" in (store.folder / "run" / "recipe.yaml").read_text()
    for name in ("run", "streamed"):
        assert (store.folder / name / "model.safetensors").exists()
        manifest = json.loads((store.folder / name / "run.json").read_text())
        assert [data["file"] for data in manifest["data"]] == TABLES


def test_a_recipe_is_tuned_where_its_table_lies(store: Store) -> None:
    missing = ("-s", "data.columns.y.missing=impute")
    where = ("s3://lake/lake/", "-s", "data.validation=s3://lake/lake/0.parquet", *missing)
    store.succeed("tune", "maf-affine", *where, *SMALL, "--trials", "1", "-o", "tuned")
    data = yaml.safe_load((store.folder / "tuned" / "best.yaml").read_text())["data"]
    assert (data["files"], data["validation"]) == (["s3://lake/lake/"], "s3://lake/lake/0.parquet")
    about = json.loads((store.folder / "tuned" / "study.json").read_text())
    assert about["data"] == [{"file": name} for name in TABLES]


def test_a_model_is_inspected_where_it_lies(store: Store) -> None:
    there = json.loads(store.succeed("inspect", "s3://lake/model.safetensors", "--json"))
    assert there == json.loads(store.succeed("inspect", "model.safetensors", "--json"))
    assert there["provenance"]["sha256"] == hashlib.sha256(store.read("model.safetensors")).hexdigest()


@pytest.mark.parametrize("pattern", ["s3://lake/l*/[01].parquet", "s3://lake/**/[01].parquet"])
def test_patterns_stand_for_objects(store: Store, pattern: str) -> None:
    assert len(store.succeed(*SCORE, pattern).splitlines()) == 1 + 300 + 317


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "arrow", "arrows"])
def test_every_format_is_read_and_written(store: Store, ending: str) -> None:
    store.succeed("sample", "model.safetensors", "-n", "50", "-o", f"s3://lake/drawn/{ending}/d.{ending}")
    out = store.succeed(*SCORE, f"s3://lake/drawn/{ending}/d.{ending}")
    assert len(out.splitlines()) == 51


@pytest.mark.parametrize(
    ("code", "arguments", "sentence"),
    [
        (3, (*SCORE, "s3://lake/nothing/"), "s3://lake/nothing/: no such object"),
        (3, (*SCORE, "s3://lake/lake/9*.parquet"), "s3://lake/lake/9*.parquet: no such object"),
        (3, (*SCORE, "s3://nowhere/t.parquet"), "s3://nowhere/t.parquet"),
        (5, ("score", "s3://lake/none.safetensors", "lake"), "s3://lake/none.safetensors: no such file"),
        (5, ("score", "s3://lake/lake/0.parquet/model.safetensors", "lake"), "no such file"),
        (2, (*SCORE, "lake", "-o", "s3://lake/model.safetensors", "--format", "csv"), "exists already"),
        (3, (*SCORE, "lake", "-o", "s3://nowhere/s.csv"), "s3://nowhere/s.csv: cannot be written"),
        (3, (*SCORE, "lake", "-o", "s3://nowhere/s", "--shard", "0/1"), "s3://nowhere/s"),
        (2, ("fit", "maf-affine", "lake", "-o", "s3://lake/run"), "s3://lake/run: a run is a folder on a disk"),
        (2, ("tune", "maf-affine", "lake", "-o", "s3://lake/study"), "s3://lake/study: a study is a folder on a disk"),
        (2, ("report", "model.safetensors", "-o", "s3://lake/r.html"), "s3://lake/r.html: a page is a file on a disk"),
        (2, ("report", "model.safetensors", "--pictures", "s3://lake/p"), "s3://lake/p: pictures are files on a disk"),
    ],
)
def test_what_cannot_be_is_one_sentence(store: Store, code: int, arguments: tuple[str, ...], sentence: str) -> None:
    done = store.flowcli(*arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_server_is_one_sentence(store: Store) -> None:
    nobody = store.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = flowcli("score", "model.safetensors", "s3://lake/lake", cwd=store.folder, environment=nobody)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
