"""Bad input, case by case: one sentence, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import flowcli, succeed

USAGE, DATA, TRAINING, MODEL = 2, 3, 4, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files, and a fitted run."""
    world = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "y": rng.normal(size=60), "c": rng.choice(["a", "b"], 60)})
    frame.to_csv(world / "t.csv", index=False)
    frame.to_parquet(world / "t.parquet", index=False)
    succeed("fit", "maf-affine", "t.csv", "-o", "run", "-s", "train.epochs=1", "-s", "flow.hidden=[8]", cwd=world)
    model = (world / "run" / "model.safetensors").read_bytes()

    write = {
        "empty.csv": b"",
        "header.csv": b"x,y,c\n",
        "ragged.csv": b"x,y,c\n1,2,a\n1,2\n",
        "text.csv": b"x,y,c\nhello,world,a\nfoo,bar,b\n",
        "binary.csv": bytes(range(256)) * 20,
        "twice.csv": b"x,x,c\n1,2,a\n",
        "few.csv": b"x,y\n1,2\n3,4\n",
        "holes.csv": b"x,y\n" + b"1.5,\n2.5,1\n" * 20,
        "endless.csv": b"x,y\n" + b"1.5,inf\n2.5,1\n" * 20,
        "constant.csv": b"x,y\n" + b"1,2\n" * 40,
        "ids.csv": b"x,name\n" + b"".join(b"%d.5,row%d\n" % (i, i) for i in range(40)),
        "other.csv": b"a,b\n1,2\n",
        "wordy.csv": b"x,y,c\n1,2,a\nx,2,a\n",
        "t.unknown": b"x\n1\n",
        "bad.parquet": b"PAR1 this is not parquet PAR1",
        "short.parquet": (world / "t.parquet").read_bytes()[:-300],
        "bad.jsonl": b'{"x": 1}\n{"x": \n',
        "bad.arrow": b"ARROW1\0\0nothing",
        "bad.yaml": b"flow: {type: maf\n",
        "wrong.yaml": b"flow: {type: mav}\ntrain: {lr: fast}\n",
        "list.yaml": b"- 1\n",
        "latin.yaml": "flow: {type: maf} # é".encode("latin-1"),
        "nodata.yaml": b"flow: {type: maf}\n",
        "cut.safetensors": model[:-100],
        "flipped.safetensors": model[:-100] + bytes([model[-100] ^ 1]) + model[-99:],
        "junk.safetensors": b"junk" * 100,
        "zero.safetensors": b"",
        "header.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "theirs.safetensors": (2).to_bytes(8, "little") + b"{}",
    }
    for name, content in write.items():
        (world / name).write_bytes(content)
    (world / "nothing").mkdir()
    (world / "mixed").mkdir()
    shutil.copy(world / "t.csv", world / "mixed" / "1.csv")
    shutil.copy(world / "other.csv", world / "mixed" / "2.csv")
    (world / "taken.parquet").write_bytes(b"precious")
    (world / "notes").mkdir()
    (world / "notes" / "diary.txt").write_text("precious")
    shutil.copytree(world / "run", world / "shared")
    (world / "shared" / "thesis.txt").write_text("precious")
    (world / "project").mkdir()
    (world / "project" / "recipe.yaml").write_text("flow: {type: maf}")
    (world / "project" / "train.csv").write_bytes((world / "t.csv").read_bytes())
    (world / "halflabelled.csv").write_bytes(b"x,y,c,label\n" + b"1.5,2,a,1\n2.5,1,b,\n" * 20)
    return world


FIT = ["fit", "maf-affine"]
CASES: list[tuple[list[str], int, list[str]]] = [
    # recipes
    (["validate", "nowhere.yaml"], USAGE, ["nowhere.yaml", "no such file"]),
    (["validate", "maf-afine"], USAGE, ["Did you mean maf-affine?"]),
    (["validate", "nothing"], USAGE, ["nothing", "folder"]),
    (["validate", "bad.yaml"], USAGE, ["bad.yaml:2:1", "not valid YAML"]),
    (["validate", "list.yaml"], USAGE, ["list.yaml:1:1", "mapping"]),
    (["validate", "latin.yaml"], USAGE, ["latin.yaml", "cannot be read"]),
    (["validate", "wrong.yaml"], USAGE, ["wrong.yaml:1:14", "Did you mean maf?", "wrong.yaml:2:13", "number"]),
    (["validate", "maf-affine", "-s", "train.lrr=1"], USAGE, ["-s train.lrr", "Did you mean train.lr?"]),
    (["validate", "maf-affine", "-s", "nonsense"], USAGE, ["-s nonsense", "key=value"]),
    (["recipe", "show", "nope"], USAGE, ["nope", "Shipped recipes"]),
    (["fit", "nodata.yaml"], USAGE, ["no data"]),
    (["fit", "wrong.yaml", "t.csv"], USAGE, ["wrong.yaml:1:14"]),
    # files that cannot be read
    ([*FIT, "gone.csv"], DATA, ["gone.csv", "no such file"]),
    ([*FIT, "gone-*.csv"], DATA, ["gone-*.csv", "no such file"]),
    ([*FIT, "nothing"], DATA, ["nothing", "no data files"]),
    ([*FIT, "t.unknown"], USAGE, ["t.unknown", ".unknown", ".parquet"]),
    ([*FIT, "empty.csv"], DATA, ["empty.csv"]),
    ([*FIT, "header.csv"], DATA, ["header.csv", "no rows"]),
    ([*FIT, "ragged.csv"], DATA, ["ragged.csv", "cannot be read"]),
    ([*FIT, "binary.csv"], DATA, ["binary.csv"]),
    ([*FIT, "twice.csv"], DATA, ["twice.csv", "two columns", "'x'"]),
    ([*FIT, "bad.parquet"], DATA, ["bad.parquet", "cannot be read"]),
    ([*FIT, "short.parquet"], DATA, ["short.parquet", "cannot be read"]),
    ([*FIT, "bad.jsonl"], DATA, ["bad.jsonl", "cannot be read"]),
    ([*FIT, "bad.arrow"], DATA, ["bad.arrow", "cannot be read"]),
    ([*FIT, "mixed"], DATA, ["2.csv", "no column"]),
    ([*FIT, "-"], DATA, ["standard input"]),
    ([*FIT, "-", "-"], USAGE, ["standard input", "once"]),
    # tables that cannot be fitted
    ([*FIT, "few.csv"], DATA, ["2 rows", "too few"]),
    ([*FIT, "holes.csv"], DATA, ["'y'", "20 of 40", "missing"]),
    ([*FIT, "endless.csv"], DATA, ["'y'", "infinite"]),
    ([*FIT, "constant.csv"], DATA, ["no column", "constant"]),
    ([*FIT, "ids.csv"], DATA, ["'name'", "different values", "data.exclude"]),
    ([*FIT, "t.csv", "-s", "data.exclude=[z]"], DATA, ["no column 'z'"]),
    ([*FIT, "t.csv", "-s", "data.include=[xx]"], DATA, ["no column 'xx'"]),
    ([*FIT, "t.csv", "-s", "data.columns.c=real"], DATA, ["'c'", "real"]),
    ([*FIT, "t.csv", "-s", "data.columns.x=integer"], DATA, ["'x'", "not whole"]),
    ([*FIT, "t.csv", "-s", "data.columns.x.transform=log"], DATA, ["'x'", "above 0"]),
    ([*FIT, "t.csv", "-s", "data.validation=gone.csv"], DATA, ["gone.csv"]),
    ([*FIT, "t.csv", "-s", "data.validation=0.99"], USAGE, ["data.validation"]),
    ([*FIT, "t.csv", "--device", "cuda"], USAGE, ["cuda", "none on this machine"]),
    ([*FIT, "t.csv", "--max-time", "soon"], USAGE, ["soon", "30m"]),
    ([*FIT, "t.csv", "-o", "run"], USAGE, ["run", "--force", "--resume"]),
    ([*FIT, "t.csv", "-o", "notes", "--force"], USAGE, ["notes", "not a run folder"]),
    ([*FIT, "t.csv", "-o", "shared", "--force"], USAGE, ["shared", "thesis.txt"]),
    ([*FIT, "t.csv", "-o", "project", "--force"], USAGE, ["project", "not a run folder"]),
    ([*FIT, "t.csv", "-o", ".", "--force"], USAGE, ["not a run folder"]),
    ([*FIT, "t.csv", "-s", "data.include=[x,x,y]"], USAGE, ["include", "'x' twice"]),
    ([*FIT, "t.csv", "-s", "data.given=[c,c]"], USAGE, ["given", "'c' twice"]),
    ([*FIT, "t.csv", "-s", "data.given=[c]", "-s", "data.exclude=[c]"], USAGE, ["'c'", "both"]),
    ([*FIT, "t.csv", "-o", "absent", "--resume"], MODEL, ["resume.json", "nothing to resume"]),
    ([*FIT, "t.csv", "--init-from", "junk.safetensors"], MODEL, ["junk.safetensors"]),
    # models
    (["score", "gone", "t.csv"], MODEL, ["gone", "no such file"]),
    (["score", "nothing", "t.csv"], MODEL, ["model.safetensors", "no such file"]),
    (["score", "cut.safetensors", "t.csv"], MODEL, ["cut.safetensors", "damaged"]),
    (["score", "flipped.safetensors", "t.csv"], MODEL, ["flipped.safetensors", "damaged"]),
    (["inspect", "junk.safetensors"], MODEL, ["junk.safetensors", "header"]),
    (["inspect", "zero.safetensors"], MODEL, ["zero.safetensors"]),
    (["inspect", "header.safetensors"], MODEL, ["header.safetensors", "header"]),
    (["sample", "theirs.safetensors", "-n", "3"], MODEL, ["theirs.safetensors", "flowcli"]),
    # scoring, sampling, evaluating
    (["score", "run", "gone.csv"], DATA, ["gone.csv"]),
    (["score", "run", "other.csv"], DATA, ["no column 'x'"]),
    (["score", "run", "wordy.csv"], DATA, ["wordy.csv", "cannot be read"]),
    (["score", "run", "header.csv"], DATA, ["no rows"]),
    (["score", "run", "mixed"], DATA, ["2.csv", "no column"]),
    (["score", "run", "t.csv", "--keep", "zz"], DATA, ["--keep", "'zz'"]),
    (["score", "run", "t.csv", "-o", "taken.parquet"], USAGE, ["taken.parquet", "--force"]),
    (["score", "run", "t.csv", "-o", "out.xlsx"], USAGE, ["out.xlsx", ".xlsx"]),
    (["score", "run", "t.csv", "-o", "nothing"], USAGE, ["nothing"]),
    (["score", "run", "t.csv", "--format", "xml"], USAGE, ["xml", "parquet"]),
    (["score", "run", "t.csv", "--only-anomalies"], USAGE, ["--alpha"]),
    (["score", "run", "t.csv", "--alpha", "0.1", "--threshold", "3"], USAGE, ["--alpha", "--threshold"]),
    (["score", "run", "t.csv", "--alpha", "7"], USAGE, ["--alpha"]),
    (["sample", "run", "-n", "0"], USAGE, ["-n"]),
    (["sample", "run"], USAGE, ["-n"]),
    (["sample", "run", "-n", "3", "--given", "x=1"], USAGE, ["without given columns"]),
    (["evaluate", "run", "t.csv", "--label", "zz"], DATA, ["label", "'zz'"]),
    (["evaluate", "run", "halflabelled.csv", "--label", "label"], DATA, ["'label'", "without a label"]),
    (["evaluate", "run", "t.csv", "--label", "x"], DATA, ["'x'", "two values"]),
    (["nonsense"], USAGE, ["nonsense"]),
]


@pytest.mark.parametrize(("arguments", "code", "words"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_bad_input(world: Path, arguments: list[str], code: int, words: list[str]) -> None:
    before = {path: path.stat().st_size for path in world.rglob("*")}
    done = flowcli(*arguments, cwd=world)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    if "nonsense" not in arguments[0] and "Usage:" not in done.stderr:
        assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert {path: path.stat().st_size for path in world.rglob("*")} == before


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


def test_a_column_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'"\x1b[2J\x07x",y\n' + b"1.5,\n2.5,1\n" * 20)
    done = flowcli(*FIT, "t.csv", cwd=tmp_path)
    assert done.returncode == DATA
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr
