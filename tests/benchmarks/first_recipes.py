"""``init`` on every table at hand: a recipe that ``validate`` accepts and ``fit --dry-run`` runs.

    python -m tests.benchmarks.first_recipes --data DIR --work DIR [--only NAME ...]

DIR of ``--data`` is searched for parquet files and for ``.npz`` files of arrays; an array file becomes a parquet file
under ``--work``, its columns named by their place (``x0``, ``x1`` …). To these come scikit-learn's bundled tables
and ``sample_data``. Prints a line for each table, with what a command that failed said, writes
``results/first_recipes.json``, and has exit code 1 where anything failed. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn import datasets

from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "first_recipes.json"
SAMPLES = Path(__file__).parents[2] / "sample_data"
BUNDLED = ("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud")
Array = NDArray[Any]


def columns_of(file: Path) -> dict[str, Array]:
    """The columns that an array file holds: all its arrays that are as long as the longest, side by side. Of draws
    ``(chain, draw, parameter)`` the chains follow one another; of ADBench only the rows count, not their labels."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if "draws" in arrays:
        draws = arrays["draws"].reshape(-1, arrays["draws"].shape[-1])
        return dict(zip(arrays["names"].tolist(), draws.T, strict=True))
    if file.parent.name == "adbench":
        del arrays["y"]
    rows = max(len(array) for array in arrays.values() if array.ndim <= 2 and array.dtype.kind in "fiub")
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        if len(array) == rows and array.ndim == 1:
            found[name] = array
        elif len(array) == rows and array.ndim == 2:
            found |= {f"{name.lower()}{i}": column for i, column in enumerate(array.T)}
    return found


def tables(data: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of all tables; those that are arrays are written first."""
    for file in sorted(data.rglob("*.parquet")):
        yield f"{file.parent.name}/{file.stem}", file
    for file in sorted(data.rglob("*.npz")):
        if file.parent.name != "images":
            yield f"{file.parent.name}/{file.stem}", written(work / f"{file.parent.name}-{file.stem}", columns_of(file))
    for name in BUNDLED:
        frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
        yield f"sklearn/{name}", written(work / f"sklearn-{name}", {c: frame[c].to_numpy() for c in frame})
    for file in sorted([*SAMPLES.glob("*.csv"), *SAMPLES.glob("*.parquet")]):
        yield f"sample_data/{file.stem}", file


def written(path: Path, columns: dict[str, Array]) -> Path:
    path = path.with_name(path.name + ".parquet")
    pq.write_table(pa.table(columns), path)
    return path


def flowcli(*arguments: object) -> dict[str, Any]:
    """Seconds, exit code and, where that is not 0, the last lines of stderr."""
    began = time.monotonic()
    command = [sys.executable, "-m", "flowcli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = "\n".join(done.stderr.strip().splitlines()[-4:]) if done.returncode else ""
    return {"seconds": round(time.monotonic() - began, 2), "code": done.returncode, "said": said}


def attempt(file: Path, recipe: Path) -> dict[str, Any]:
    """What became of ``init``, ``validate`` and ``fit --dry-run``; those after a failure are not tried."""
    commands = {
        "init": ("init", file, "-o", recipe, "--force"),
        "validate": ("validate", recipe),
        "dry_run": ("fit", recipe, "--dry-run"),
    }
    found: dict[str, Any] = {}
    for name, command in commands.items():
        found[name] = flowcli(*command)
        if found[name]["code"]:
            break
    text = recipe.read_text() if recipe.exists() else ""
    flow = [line.removeprefix("flow: ") for line in text.splitlines() if line.startswith("flow: ")]
    return found | {"flow": flow[0] if flow else None, "guesses": text.count("(a guess)") - 1 if flow else None}


def failure(found: dict[str, Any]) -> str | None:
    """The command that failed, with its exit code and what it said."""
    for name in ("init", "validate", "dry_run"):
        if found[name]["code"]:
            return f"{name}: exit code {found[name]['code']}: {found[name]['said']}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="tables whose name holds one of these")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    print(f"{'table':<48}{'rows':>10}{'columns':>9}{'init':>8}{'dry run':>9}{'guesses':>9}")
    for name, file in tables(options.data, options.work):
        if options.only and not any(part in name for part in options.only):
            continue
        if file.suffix == ".parquet":
            size = pq.read_metadata(file).num_rows, len(pq.read_schema(file))
        else:
            lines = file.read_text().splitlines()
            size = len(lines) - 1, len(lines[0].split(","))
        recipe = options.work / f"{name.replace('/', '-')}.yaml"
        recipe.unlink(missing_ok=True)
        found = {"rows": size[0], "columns": size[1]} | attempt(file, recipe)
        results[name] = found
        wrong = failure(found)
        end = f"{found['dry_run']['seconds']:>7.1f} s{found['guesses']:>9}" if wrong is None else f"  {wrong}"
        print(f"{name:<48}{size[0]:>10,}{size[1]:>9}{found['init']['seconds']:>6.1f} s{end}", flush=True)
    failed = sum(failure(found) is not None for found in results.values())
    print(f"{len(results) - failed} of {len(results)} tables have a recipe that validates and runs")
    if not options.only:
        RESULTS.parent.mkdir(exist_ok=True)
        result = {"machine": machine(), "tables": len(results), "failed": failed, "results": results}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
