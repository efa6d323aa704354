"""Input that no one thought of: files bent at random, for as long as one likes.

    python tests/fuzz.py SECONDS [SEED]

Takes good recipes, model files and tables, bends them (bits, bytes, spans, tokens, numbers; the JSON of a model file
and its header, signed again), and lets the recipe loader, the model loader and the table reader have them, in processes
forked from this one. Each must end well or with one of our own errors, in 10 seconds and 1 GB. Prints JSON: how many
cases each target had, how many of them were accepted, and the ``wrong`` ones, whose inputs are kept in a folder.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from forks import Done  # noqa: F401 (imports everything once)

import flowcli
from flowcli import recipe as recipes
from flowcli import tensorfile
from flowcli.data.source import Source
from flowcli.errors import FlowcliError
from flowcli.training.prepare import prepare

SECONDS, MEMORY = 10, 1 << 20  # memory in KiB
CASES = 100  # in a process
TOKENS = [
    b"null", b"true", b"nan", b"inf", b"-1", b"0", b"1e308", b"1e-320", b"9" * 30, b"[", b"{", b"}", b"]", b"&a", b"*a",
    b"!!python/object/apply:os.system", b"<<: ", b"---\n", b": ", b"- ", b"\n", b"\r", b"\0", b",", b'"', b"'", b"\t",
    b"%", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", "é".encode(), b"\x1b[2J", b"../", b"#", b"|", b">", b"\x85",
    b"\\", b"flow", b"type", b"maf", b"PAR1", b"ARROW1", b"__metadata__", b"F32", b"2020-01-01", b"12:00", b"0x10",
    b"1_000", b"=cmd()",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 1.5, 1e308, -0.0, "", "x", "../x", "\ud800", "nan", [], [[]], {},
    {"": 0}, [0] * 50,
]  # fmt: skip


def bent(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A few random changes to a file."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        span = data[at : at + draw.choice((1, 2, 4, 8, 100))]
        change = draw.randrange(8)
        if change == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif change == 1 and at < len(data):
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif change == 2:
            del data[at : at + len(span)]
        elif change == 3:
            data[at:at] = span * draw.choice((1, 2, 50))
        elif change == 4:
            data[at:at] = draw.choice(TOKENS)
        elif change == 5:
            other = draw.choice(others)
            cut = draw.randrange(len(other) + 1)
            data[at:] = other[cut : cut + 4000]
        elif change == 6:
            del data[at:]
        else:
            number = struct.pack("<q", draw.choice((0, -1, 1, 2**31, 2**62, -(2**63), draw.randrange(2**20))))
            data[at : at + draw.choice((1, 4, 8))] = number[: draw.choice((1, 4, 8))]
    return bytes(data)


def bent_json(value: Any, draw: random.Random) -> Any:
    """Plain JSON with a value somewhere replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    if draw.random() < 0.1:
        del changed[key]
    elif draw.random() < 0.1 and isinstance(changed, dict):
        changed[draw.choice(["", "kind", "type", "columns", str(key) + "x"])] = changed[key]
    else:
        changed[key] = bent_json(value[key], draw)
    return changed


class Corpus:
    """Good files, each with what its target is given."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal(60)
        frame = pd.DataFrame({"x": x, "k": rng.poisson(3, 60), "c": rng.choice(["a", 'b "é,'], 60), "f": x > 0})
        frame.to_parquet(folder / "t.parquet")
        frame.assign(c=frame["c"].astype("category"), d=pd.Timestamp("2020-01-01")).to_parquet(folder / "u.parquet")
        frame.to_csv(folder / "t.csv", index=False)
        frame.to_csv(folder / "t.tsv", index=False, sep="\t")
        frame.to_json(folder / "t.jsonl", orient="records", lines=True)
        frame.to_feather(folder / "t.arrow", compression="uncompressed")
        with pa.ipc.new_stream(folder / "t.arrows", pa.Schema.from_pandas(frame)) as writer:
            writer.write_table(pa.Table.from_pandas(frame))
        pq.write_table(pa.table({"l": [[1.0]] * 60, "s": [{"a": 1}] * 60, "x": x}), folder / "n.parquet")
        self.tables = {path: path.read_bytes() for path in sorted(folder.iterdir())}
        self.recipes = [path.read_bytes() for path in sorted(recipes.shipped.folder().glob("*.yaml"))]
        self.models: list[bytes] = []
        self.codec = flowcli.fit({"flow": {"type": "planar"}, "train": {"epochs": 1}}, frame).codec
        for flow in ("maf", "planar", "radial", "realnvp", "glow"):
            recipe = {
                "flow": {"type": flow, "layers": 1},
                "train": {"epochs": 1},
                "score": {"dequantization_samples": 1},
            }
            flowcli.fit(recipe, frame).save(folder / "m.safetensors")
            self.models.append((folder / "m.safetensors").read_bytes())
        (folder / "m.safetensors").unlink()

    def recipe(self, draw: random.Random, path: Path) -> Callable[[], None]:
        text = path.with_suffix(".yaml")
        text.write_bytes(bent(draw.choice(self.recipes), draw, self.recipes))
        keys = ("flow.layers", "train.lr", "data.columns.x", "data.image", "score", "flow", "data.files", "version", "")
        pairs = [f"{draw.choice(keys)}={draw.choice(TOKENS).decode(errors='surrogateescape')}" for _ in range(2)]

        def use() -> None:
            found = recipes.load(str(text), pairs if draw.random() < 0.3 else [])
            assert recipes.from_dict(found.model_dump(mode="json")) == found

        return use

    def model(self, draw: random.Random, path: Path) -> Callable[[], None]:
        content = draw.choice(self.models)
        path.write_bytes(content)
        way = draw.random()
        if way < 0.6:  # what it says of itself, under a digest that fits
            tensors, about = tensorfile.read(path)
            for _ in range(draw.choice((1, 1, 2, 4))):
                about = bent_json(about, draw)
            if isinstance(about, dict):
                tensorfile.write(path, tensors, {key: value for key, value in about.items() if key != "format"})
        elif way < 0.8:
            length = 8 + struct.unpack("<Q", content[:8])[0]
            header = json.dumps(bent_json(json.loads(content[8:length]), draw)).encode()
            path.write_bytes(struct.pack("<Q", len(header)) + header + content[length:])
        else:
            path.write_bytes(bent(content, draw, self.models))

        def use() -> None:
            found = flowcli.load(path)
            drawn = found.sample(3)
            found.log_prob(drawn)

        return use

    def table(self, draw: random.Random, path: Path) -> Callable[[], None]:
        good, content = draw.choice(list(self.tables.items()))
        data = path.with_suffix(good.suffix)
        data.write_bytes(bent(content, draw, list(self.tables.values())))
        fitted = self.codec

        def use() -> None:
            recipe = {"flow": {"type": "planar", "layers": 1, "hidden": [2]}, "data": {"files": str(data)}}
            try:
                prepare(recipes.from_dict(recipe | {"train": {"stream": draw.random() < 0.3}}))
            finally:
                for _, batch in Source.of([str(data)], None, fitted.text_types).batches():
                    fitted.read(batch)

        return use


def child(corpus: Corpus, seed: int, folder: Path, report: int) -> None:
    """Run cases and write a line for each: its target and how it ended."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(CASES):
        draw = random.Random(f"{seed} {i}")
        target = draw.choice(["recipe", "model", "table"])
        use = getattr(corpus, target)(draw, folder / "case")
        os.write(report, f"{i} {target} ".encode())
        signal.alarm(SECONDS)
        try:
            use()
            end = "accepted"
        except FlowcliError as error:
            end = "refused" if str(error).strip() else "an error without a sentence"
        except BaseException:  # noqa: BLE001 (finding these is what this is for)
            end = json.dumps(traceback.format_exc()[-1500:])
        signal.alarm(0)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEMORY:
            end = "more than 1 GB"
        os.write(report, f"{end}\n".encode())
        if end not in ("accepted", "refused"):
            os._exit(0)  # with the input still there
        for path in folder.iterdir():
            path.unlink()
    os._exit(0)


def main(limit: float, seed: int) -> dict[str, Any]:
    counts = {target: {"accepted": 0, "refused": 0} for target in ("recipe", "model", "table")}
    wrong: list[Any] = []
    with tempfile.TemporaryDirectory() as good:
        corpus = Corpus(Path(good))
        ends = time.monotonic() + limit
        while time.monotonic() < ends:
            seed += 1
            folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{seed}-"))
            receive, report = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(receive)
                child(corpus, seed, folder, report)
            os.close(report)
            with os.fdopen(receive) as lines:
                said = lines.read().splitlines()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for line in said:
                i, target, end = (*line.split(" ", 2), "")[:3]
                if end in counts[target]:
                    counts[target][end] += 1
                else:
                    wrong.append({"seed": seed, "case": i, "target": target, "end": end or f"killed: {status}",
                                  "input": str(folder)})  # fmt: skip
                    print(json.dumps(wrong[-1]), file=sys.stderr, flush=True)
            if not list(folder.iterdir()):
                folder.rmdir()
    return {"seconds": limit, "cases": counts, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), int((sys.argv[2:] or [0])[0])), indent=1))
