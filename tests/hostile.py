"""Malformed input by the hundred: files of every kind made wrong in every way, one family after the other.

    python tests/hostile.py

Prints JSON: how many ``cases`` each family has, and the ``wrong`` ones: those that ended with another exit code than
they may, without a sentence, with a traceback or control characters, with a partial output, after more than 10 seconds
or with more than 1 GB of memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import safetensors.torch
import torch
from forks import Done, forked

from flowcli import tensorfile

USAGE, DATA, MODEL = 2, 3, 5
FINE = 0
GOOD = "x,y,c\n" + "".join(f"{i % 13}.5,{i * i % 17}.25,{'ab'[i % 2]}\n" for i in range(60))
SMALL = ["-s", "train.epochs=1", "-s", "flow.layers=1", "-s", "flow.hidden=[4]"]
SECONDS, MEMORY = 10.0, 1 << 30

Case = tuple[str, list[str], tuple[int, ...], bytes]  # name, arguments, the exit codes it may have, standard input


def case(name: str, arguments: list[str], *codes: int, stdin: bytes = b"") -> Case:
    return name, arguments, codes, stdin


def written(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def damaged(content: bytes, cuts: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """A file cut short and with flipped bits, at random places."""
    draw = random.Random(0)
    for _ in range(cuts):
        end = draw.randrange(len(content))
        yield f"cut at {end}", content[:end]
    for _ in range(flips):
        place = draw.randrange(len(content))
        yield (
            f"flipped at {place}",
            content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :],
        )


def models() -> Iterator[Case]:
    content = Path("run/model.safetensors").read_bytes()
    tensors, about = tensorfile.read(Path("run/model.safetensors"))
    contents = dict(damaged(content, 20, 20))
    size = len(content)
    for length in (0, 1, 2, size - 8, size, size + 1, 8 << 20, (8 << 20) + 1, 2**31, 2**62, 2**64 - 1):
        contents[f"header of {length}"] = struct.pack("<Q", length) + content[8:]
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":1}',
        b"{}" + b" " * 100,
        b'{"__metadata__":3}',
        b"\xff" * 50,
        b"[" * 9000,
    ):
        contents[f"header {body[:20]!r}"] = struct.pack("<Q", len(body)) + body
    empty = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(150_000)}
    many = json.dumps(empty).encode()
    contents["150,000 empty tensors"] = struct.pack("<Q", len(many)) + many
    huge = json.dumps({"t": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    contents["a tensor of 4 TB"] = struct.pack("<Q", len(huge)) + huge
    contents["another tool's"] = safetensors.torch.save({"w": torch.zeros(3)}, {"format": "pt"})
    contents |= {"empty": b"", "text": b"hello", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99), "pickle": b"\x80\x04N."}
    for i, (name, text) in enumerate(contents.items()):
        yield case(f"model: {name}", ["score", written(f"m{i}", text), "good.csv"], MODEL)

    def forge(name: str, change: Any) -> Case:
        other, text = dict(tensors), json.loads(json.dumps(about))
        change(other, text)
        file = Path(f"forged-{name.replace(' ', '-').replace('/', '-')}")
        tensorfile.write(file, other, text)
        return case(f"model: {name}", ["score", str(file), "good.csv"], MODEL)

    first = next(name for name in tensors if name.startswith("flow.") and tensors[name].numel() > 1)
    for value in (float("nan"), float("inf"), -float("inf")):
        yield forge(f"weights {value}", lambda t, a, v=value: t.update({first: torch.full_like(t[first], v)}))
    yield forge("weights of another shape", lambda t, a: t.update({first: torch.zeros(3, 3, 3)}))
    yield forge("weights of another type", lambda t, a: t.update({first: t[first].half()}))
    yield forge("a tensor too many", lambda t, a: t.update(extra=torch.zeros(2)))
    yield forge("a tensor too few", lambda t, a: t.pop(first))
    yield forge("newer", lambda t, a: a.update(format=99))
    for key in about:
        yield forge(f"without {key}", lambda t, a, k=key: a.pop(k))
    for key in ("recipe", "codec"):
        for value in (None, 3, [], {}, "x"):
            yield forge(f"{key} {json.dumps(value)}", lambda t, a, k=key, v=value: a.update({k: v}))
    yield forge("a million layers", lambda t, a: a["recipe"]["flow"].update(layers=10**6))
    yield forge("layers as wide as memory", lambda t, a: a["recipe"]["flow"].update(hidden=[65536] * 16))
    yield forge("a path for a level", lambda t, a: a["codec"]["columns"][0].update(kind="../../etc/passwd"))


def recipes() -> Iterator[Case]:
    flow = b"flow: {type: maf}\n"
    bombs = {
        "aliases": b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n" + flow,
        "an anchor": b"flow: &x {type: maf}\n",
        "a tag": b"flow: !!python/object/apply:os.system ['touch owned']\n",
        "a local tag": b"flow: !evil {type: maf}\n",
        "a merge": b"d: &d {type: maf}\nflow: {<<: *d}\n",
        "nesting": b"flow: " + b"[" * 5000 + b"]" * 5000,
        "10 MB of nesting": b"{a: " * 2_500_000,
        "2 MB": b"# " + b"x" * (2 << 20) + b"\n" + flow,
        "two documents": flow + b"---\n" + flow,
        "a key twice": flow + flow,
        "a tab": b"flow:\n\ttype: maf\n",
        "NUL": b"flow: {type: maf}\0\n",
        "UTF-16": "flow: {type: maf}\n".encode("utf-16"),
        "latin-1": "flow: {type: maf} # é".encode("latin-1"),
        "random bytes": random.Random(1).randbytes(2000),
        "empty": b"", "null": b"null\n", "a number": b"3\n", "text": b"maf\n", "a list": b"- flow\n",
        "an open bracket": b"flow: {type: maf", "an open quote": b"flow: 'maf\n", "a colon": b":\n", "a percent": b"%YAML 9\n",
        "a key that is a list": b"[a, b]: 1\n" + flow, "a key that is null": b"null: 1\n" + flow,
        "a control character": b'"\\e[2J": 1\n' + flow, "a long key": b"x" * 5000 + b": 1\n" + flow,
        "a line break in a key": b'"a\\nb": 1\n' + flow,
    }  # fmt: skip
    for name, content in bombs.items():
        yield case(f"recipe: {name}", ["validate", written(f"r-{name.replace(' ', '-')}.yaml", content)], USAGE)
    wrong = [
        "version=2", "flow.type=mav", "flow.layers=0", "flow.layers=-1", "flow.layers=1.5", "flow.layers=many",
        "flow.layers=1e9", "flow.hidden=[]", "flow.hidden=[0]", "flow.hidden=64", "flow.hidden=[a]", "flow.base=beta",
        "flow.transform=cubic", "flow.bins=1", "flow.whiten=perhaps", "flow.levels=2", "train.lr=0", "train.lr=-1",
        "train.lr=nan", "train.lr=inf", "train.lr=1e400", "train.epochs=0", "train.epochs=1e3", "train.batch_size=0",
        "train.ema=1", "train.ema=-0.1", "train.precision=float16", "train.precision=mixed", "train.seed=-1",
        "train.max_time=0s", "train.max_time=5", "train.device=tpu", "train.patience=0", "train.clip=0",
        "train.noise=-1", "train.weight_decay=2", "data.validation=1.5", "data.validation=0", "data.include=x",
        "data.columns.x.type=complex", "data.columns.x.transform=sqrt", "data.columns.x={low: 1}", "score.method=magic",
        "score.dequantization_samples=0", "data.image.bits=17", "data.image.alpha=0.5", "data.image.resize=[3]",
        "data.files=[", "=3", "train", "train.=3", ".train=3", "train.lr.x=3", "a" * 3000 + "=1",
    ]  # fmt: skip
    for override in wrong:
        yield case(
            f"recipe: -s {override[:40]}", ["fit", "maf-affine", "good.csv", "-o", "out", "-s", override], USAGE, DATA
        )


def texts() -> Iterator[Case]:
    row = "1.5,2.5,a\n"
    contents: dict[str, tuple[bytes, tuple[int, ...]]] = {
        "empty": (b"", (DATA,)), "a line break": (b"\n", (DATA,)), "only a header": (b"x,y,c\n", (DATA,)),
        "a short row": (GOOD.encode() + b"1,2\n", (DATA,)), "a long row": (GOOD.encode() + b"1,2,a,4\n", (DATA,)),
        "a NUL": (GOOD.encode() + b"1.5,2.\0,a\n", (FINE,)), "NULs": (bytes(5000), (DATA,)),
        "latin-1": (("x,y,c\n" + "1.5,2.5,é\n" * 40).encode("latin-1"), (DATA,)),
        "UTF-16": (GOOD.encode("utf-16"), (DATA,)),
        "a BOM": (b"\xef\xbb\xbf" + GOOD.encode(), (FINE,)),
        "CRLF": (GOOD.replace("\n", "\r\n").encode(), (FINE,)), "CR": (GOOD.replace("\n", "\r").encode(), (FINE, DATA)),
        "an open quote": (GOOD.encode() + b'1.5,2.5,"a\n', (FINE, DATA)),
        "random bytes": (random.Random(2).randbytes(9000), (DATA,)),
        "gzip": (gzip.compress(GOOD.encode()), (DATA,)), "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(999), (DATA,)),
        "semicolons": (GOOD.replace(",", ";").encode(), (DATA,)), "a header twice": (b"x,x,c\n" + b"1.5,2.5,a\n" * 40, (DATA,)),
        "a header without names": (b",,\n" + b"1.5,2.5,a\n" * 40, (DATA,)),
        "a cell of 8 MB": (GOOD.encode() + b"1.5,2.5," + b"a" * (8 << 20) + b"\n", (FINE, DATA)),
        "300,000 columns": (",".join(f"c{i}" for i in range(300_000)).encode() + b"\n", (DATA,)),
        "formulas": (("x,y,c\n" + "1.5,2.5,=cmd|' /C calc'!A0\n1.25,3.5,+1\n" * 20).encode(), (FINE,)),
        "escapes in names": (("\x1b[2Jx,../y,\x07c\n" + row * 40).encode(), (FINE, DATA)),
        "a line break in a name": (('"x\ny",y,c\n' + row * 40).encode(), (FINE, DATA)),
        "words": (("x,y,c\n" + "one,two,a\ntwo,one,b\n" * 20).encode(), (FINE,)),
        "dates": (("x,y,c\n" + "2020-01-01,2.5,a\n2021-01-01,1.5,b\n" * 20).encode(), (FINE, DATA)),
        "holes": (GOOD.encode() + b",,\n", (DATA,)), "NaN everywhere": (b"x,y\n" + b"nan,1.5\nnan,2.5\n" * 20, (DATA,)),
        "infinite": (b"x,y\n" + b"inf,1.5\n-inf,2.5\n" * 20, (DATA,)),
        "huge": (b"x,y\n" + b"1e308,1.5\n-1e308,2.5\n" * 20, (FINE, DATA)),
        "beyond doubles": (b"x,y\n" + b"1e999,1.5\n-1e999,2.5\n" * 20, (DATA,)),
        "subnormal": (b"x,y\n" + b"5e-324,1.5\n1e-310,2.5\n" * 20, (FINE, DATA)),
        "beyond int64": (b"x,y\n" + b"99999999999999999999,1.5\n1,2.5\n" * 20, (FINE, DATA)),
        "constant": (b"x,y\n" + b"1.5,2\n" * 40, (DATA,)),
    }  # fmt: skip
    for i, (name, (content, codes)) in enumerate(contents.items()):
        file = written(f"t{i}.csv", content)
        yield case(f"csv: fit {name}", ["fit", "maf-affine", file, "-o", "out", *SMALL], *codes)
        yield case(f"csv: score {name}", ["score", "run", file, "-o", "out.csv"], FINE, DATA)
        yield case(f"csv: init {name}", ["init", file], FINE, DATA)
        if content:
            yield case(f"csv: stdin {name}", ["score", "run", "-", "-o", "out.csv"], FINE, DATA, stdin=content)
    lines = [
        "{", "[]", "3", "null", '"x"', '{"x": }', '{"x": 1,}', "{x: 1}", '{"x": NaN}', '{"x": [1], "y": 1, "c": "a"}',
        '{"x": {"a": 1}, "y": 1, "c": "a"}', '{"x": "1", "y": true, "c": 3}', '{"x": 1e999, "y": 1, "c": "a"}',
        '{"x": 1, "x": 2, "y": 1, "c": "a"}', "\ufeff{}", "{}" * 3, '{"x": 1}\n\n\n{"y"', "\0" * 10, '{"\\u0000": 1}',
        "[" * 5000, '{"a":' * 2000,
    ]  # fmt: skip
    for i, line in enumerate(lines):
        file = written(f"j{i}.jsonl", (line + "\n").encode() * 3)
        yield case(f"jsonl: {line[:30]!r}", ["score", "run", file, "-o", "out.csv"], FINE, DATA)


def tables() -> Iterator[Case]:
    table = pa.table({"x": np.arange(60) + 0.5, "y": np.arange(60) % 7 + 0.25, "c": ["a", "b"] * 30})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    parquet = buffer.getvalue()
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    arrow = buffer.getvalue()
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    stream = buffer.getvalue()
    for kind, content, codes in (
        ("parquet", parquet, (FINE, DATA)),
        ("arrow", arrow, (FINE, DATA)),
        ("arrows", stream, (FINE, DATA)),
    ):
        for i, (name, text) in enumerate(damaged(content, 10, 15)):
            file = written(f"d{i}.{kind}", text)
            yield case(f"{kind}: {name}", ["score", "run", file, "-o", "out.parquet"], *codes)
    odd: dict[str, pa.Table] = {
        "nested": pa.table({"x": [[1.5]] * 40, "y": [{"a": 1}] * 40}),
        "twice": pa.Table.from_arrays([pa.array([1.5] * 40), pa.array([2.5] * 40)], names=["x", "x"]),
        "no columns": pa.table({}), "no rows": table.slice(0, 0), "nulls": pa.table({"x": pa.nulls(40), "y": pa.nulls(40)}),
        "bytes": pa.table({"x": [b"a", b"b"] * 20, "y": [1.5, 2.5] * 20}),
        "lists of text": pa.table({"x": [["a"]] * 40, "y": [1.5, 2.5] * 20}),
        "times": pa.table({"x": pa.array(range(40), pa.timestamp("ns")), "y": pa.array(range(40), pa.duration("s"))}),
        "a map": pa.table({"x": pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())), "y": [1.5, 2.5] * 20}),
        "tensors": pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((40, 2, 2))), "y": [1.5, 2.5] * 20}),
        "dictionaries of numbers": pa.table({"x": pa.array([1.5, 2.5] * 20).dictionary_encode(), "y": [1.5, 2.5] * 20}),
        "a name with everything": pa.table({"\x1b[31m../\n'\"": [1.5, 2.5] * 20, "y": [1.5, 2.5] * 20}),
        "millions of rows in a kilobyte": pa.table({"x": pa.array(np.zeros(3_000_000)), "y": pa.array(np.zeros(3_000_000))}),
    }  # fmt: skip
    for i, (name, content) in enumerate(odd.items()):
        with contextlib.suppress(pa.ArrowException):
            pq.write_table(content, f"o{i}.parquet")
        if not Path(f"o{i}.parquet").exists():
            continue
        yield case(f"parquet: fit {name}", ["fit", "maf-affine", f"o{i}.parquet", "-o", "out", *SMALL], FINE, DATA)
        yield case(f"parquet: score {name}", ["score", "run", f"o{i}.parquet", "-o", "out.parquet"], DATA)
        yield case(f"parquet: init {name}", ["init", f"o{i}.parquet"], FINE, DATA)
    Path("mixed").mkdir()
    pq.write_table(table, "mixed/1.parquet")
    for i, other in enumerate(
        (table.drop_columns("y"), table.append_column("z", table["x"]), table.rename_columns(["x", "y", "C"]))
    ):
        pq.write_table(other, "mixed/2.parquet")
        Path("mixed").rename(f"mixed{i}")
        yield case(f"parquet: a folder of two schemas {i}", ["score", "run", f"mixed{i}", "-o", "out.csv"], DATA)
        yield case(f"parquet: fit a folder of two schemas {i}", ["fit", "maf-affine", f"mixed{i}", "-o", "out"], DATA)
        Path("mixed").mkdir()
        pq.write_table(table, "mixed/1.parquet")


def words() -> Iterator[Case]:
    long = "x" * 300
    for arguments in (
        ["score"], ["score", "run"], ["score", "run", "good.csv", "--alfa", "1"], ["score", "run", "good.csv", "--alpha"],
        ["score", "run", "good.csv", "--alpha", "x"], ["score", "run", "good.csv", "--threshold", ""],
        ["score", "run", "good.csv", "--fdr", "-1"], ["score", "run", "good.csv", "--fail-over", "0.1"],
        ["score", "run", "good.csv", "--method", "complexity"], ["score", "run", "good.csv", "--method", ""],
        ["score", "run", "good.csv", "--dequantization-samples", "0"], ["score", "run", "good.csv", "-o", "x.docx"],
        ["score", "run", "good.csv", "-o", ""], ["score", "run", "good.csv", "--format", "yaml"],
        ["score", "run", "good.csv", "--device", "tpu"], ["sample"], ["sample", "run", "-n", "-1"],
        ["sample", "run", "-n", "1.5"], ["sample", "run", "-n", "x"], ["sample", "run", "-n", "3", "--temperature", "-1"],
        ["sample", "run", "-n", "3", "--between", "a", "b"], ["sample", "run", "--between", "good.csv", "good.csv"],
        ["sample", "run", "-n", "3", "-o", "sheet.png"], ["sample", "run", "-n", "3", "--given", "c=a"],
        ["sample", "run", "-n", "3", "--latents"], ["sample", "run", "-n", "3", "--seed", "-1"],
        ["evaluate"], ["evaluate", "run"], ["inspect"], ["validate"], ["validate", ""], ["validate", long],
        ["recipe", "nope"], ["recipe", "copy", "maf-affine", "good.csv"],
        ["fit"], ["fit", ""], ["fit", "maf-affine"], ["fit", "maf-affine", "good.csv", "--max-time", "-5m"],
        ["fit", "maf-affine", "good.csv", "--seed", "x"], ["fit", "maf-affine", "good.csv", "-o", "good.csv", "--force"],
    ):  # fmt: skip
        yield case(f"words: {' '.join(arguments)[:60]}", arguments, USAGE, DATA)
    for arguments in (
        ["score", "run", long], ["score", long, "good.csv"], ["score", "run", "good.csv", "-o", f"{long}.csv"],
        ["fit", "maf-affine", "good.csv", "-o", long, *SMALL], ["score", "run", "good.csv", "-o", "good.csv/out.csv"],
        ["fit", "maf-affine", "good.csv", "-o", "good.csv/run", *SMALL], ["score", "run", "run"], ["score", "good.csv", "run"],
        ["inspect", "."], ["inspect", ""], ["score", "run", "/dev/null"], ["score", "run", "."], ["evaluate", "run", "good.csv", "--label", ""],
    ):  # fmt: skip
        yield case(f"words: {' '.join(arguments)[:60]}", arguments, USAGE, DATA, MODEL)


FAMILIES = {"models": models, "recipes": recipes, "texts": texts, "tables": tables, "words": words}


def complaint(done: Done, codes: tuple[int, ...]) -> str:
    """What is wrong with how a process ended; empty, if nothing."""
    usage = done.code == USAGE and "Error:" in done.err
    sentence = usage or any(line.startswith("error: ") for line in done.err.splitlines())
    made = [path for path in ("out", "out.csv", "out.parquet", "owned") if Path(path).exists()]
    parts = [path.name for path in Path().iterdir() if path.name.endswith(".part")]
    faults = {
        f"exit code {done.code}": done.code not in codes,
        "no sentence": done.code != FINE and not sentence,
        "more than a sentence": done.code in (DATA, MODEL) and len(done.err.splitlines()) > 1,
        "a traceback": "Traceback" in done.err or "bug in flowcli" in done.err,
        "control characters": any((c < " " and c != "\n") or c == "\x7f" for c in done.err),
        f"left {made or parts}": bool(parts) or "owned" in made or (done.code != FINE and bool(made)),
        f"{done.seconds:.1f} s": done.seconds > SECONDS,
        f"{done.memory >> 20} MB": done.memory > MEMORY,
    }
    return ", ".join(words for words, found in faults.items() if found)


def main() -> dict[str, Any]:
    os.chdir(tempfile.mkdtemp())
    Path("good.csv").write_text(GOOD)
    done = forked(["fit", "maf-affine", "good.csv", "-o", "run", *SMALL])
    assert done.code == 0, done.err
    cases, wrong = {}, []
    for family, make in FAMILIES.items():
        cases[family] = 0
        for name, arguments, codes, stdin in make():
            done = forked(arguments, stdin=stdin)
            cases[family] += 1
            if found := complaint(done, codes):
                wrong.append([name, found, done.err[-300:]])
            for path in ("out.csv", "out.parquet"):
                Path(path).unlink(missing_ok=True)
            if Path("out").is_dir():
                for path in Path("out").iterdir():
                    path.unlink()
                Path("out").rmdir()
    return {"cases": cases, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
