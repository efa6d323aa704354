"""`flowcli init` on odd tables: what it writes is always a recipe, and says of each column what an expert would."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import ENVIRONMENT, flowcli, succeed

from flowcli import recipe as recipes
from flowcli.recipe import Recipe
from flowcli.recipe.check import check
from flowcli.recipe.yaml import parse
from flowcli.training.prepare import prepare

N = 2000
RNG = np.random.default_rng(0)


def init(folder: Path, columns: dict[str, Any] | pa.Table, *options: str) -> tuple[Recipe, str]:
    """The recipe for a table, and its text; a fit has been prepared from it, as `fit --dry-run` does."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, folder / "t.parquet")
    recipe, text = read(succeed("init", "t.parquet", *options, cwd=folder))
    if table.num_rows >= 8:
        data = recipe.data.model_copy(update={"files": [str(folder / "t.parquet")]})
        assert len(prepare(recipe.model_copy(update={"data": data})).rows) > 0
    return recipe, text


def read(text: str) -> tuple[Recipe, str]:
    return check(parse(text, "recipe.yaml")), text


def line(text: str, name: str) -> str:
    """The line of a column."""
    (found,) = [line for line in text.splitlines() if line.strip().startswith((f"{name}:", f"- {name} ", f"# {name}:"))]
    return found


def noise(n: int = N) -> np.ndarray:
    return RNG.standard_normal(n)


# -- one column at a time -------------------------------------------------------------------------------------------


def test_every_kind_of_column(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 1)
    columns = {
        "real": noise(),
        "count": RNG.poisson(4, N),
        "whole": RNG.poisson(4, N).astype(float),
        "flag": RNG.random(N) < 0.25,
        "site": RNG.choice(["north", "south"], N),
        "level": pa.array(RNG.choice(["low", "high"], N)).dictionary_encode(),
        "when": [day + datetime.timedelta(seconds=int(s)) for s in RNG.integers(0, 10**6, N)],
        "date": [day.date() + datetime.timedelta(days=int(d)) for d in RNG.integers(0, 300, N)],
        "rating": RNG.choice([0.5, 1.0, 1.5, 2.5], N),
        "decimal": pa.array(noise()).cast(pa.decimal128(12, 4), safe=False),
        "unit": ["kg"] * N,
        "nothing": pa.nulls(N, pa.float64()),
        "name": [f"name {i}" for i in range(N)],
        "list": [[1, 2]] * N,
        "bytes": [b"x"] * N,
        "clock": pa.array(np.arange(N) % 86400, pa.int32()).cast(pa.time32("s")),
        "lasted": pa.array(np.arange(N), pa.int64()).cast(pa.duration("s")),
        "wild": np.where(np.arange(N) == 7, np.inf, noise()),
    }
    recipe, text = init(tmp_path, columns)
    assert {name: column.type for name, column in recipe.data.columns.items()} == {
        "real": "real", "count": "integer", "whole": "integer", "flag": "bool", "site": "category",
        "level": "category", "when": "datetime", "date": "datetime", "rating": "real", "decimal": "real",
    }  # fmt: skip
    assert recipe.data.exclude == ["nothing", "name", "list", "bytes", "clock", "lasted", "wild"]
    assert "always 'kg'" in line(text, "unit")
    assert "2 levels" in line(text, "site")
    assert line(text, "rating").endswith("only 4 different values: each has a probability of its own")
    assert "2026-01-01" in line(text, "when")


def test_what_only_numbers_the_rows_is_left_out(tmp_path: Path) -> None:
    order = RNG.permutation(N)
    recipe, text = init(
        tmp_path,
        {
            "row": np.arange(N),
            "seen_at": np.cumsum(RNG.integers(1, 9, N)),
            "user_id": order * 7 + 1000,
            "UserID": order + 5,
            "hash": RNG.integers(-(2**62), 2**62, N),
            "shop_id": RNG.integers(0, 9, N),
            "amount": RNG.integers(0, 10**9, N),
            "paid": RNG.poisson(3, N),
        },
    )
    assert recipe.data.exclude == ["row", "seen_at", "user_id", "UserID", "hash"]
    assert not line(text, "row").endswith("(a guess)")
    assert line(text, "user_id").endswith("(a guess)")
    assert recipe.data.columns["shop_id"].type == "category"
    assert recipe.data.columns["amount"].type == recipe.data.columns["paid"].type == "integer"


@pytest.mark.parametrize(
    "format", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%d.%m.%Y", "%m/%d/%Y", "%d %b %Y"]
)  # fmt: skip
def test_dates_as_text(tmp_path: Path, format: str) -> None:
    days = [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=int(d)) for d in RNG.integers(0, 900, N)]
    texts = [day.strftime(format) for day in days]
    recipe, text = init(tmp_path, {"x": noise(), "day": texts})
    assert recipe.data.exclude == ["day"]
    assert "dates as text" in line(text, "day")
    # CSV has no types: there Arrow reads ISO's.
    rows = "".join(f"{x:.6f},{day}\n" for x, day in zip(noise(), texts, strict=True))
    recipe, _ = read(succeed("init", "-", stdin=f"x,day\n{rows}".encode()))
    if format.startswith("%Y"):
        assert recipe.data.columns["day"].type == "datetime"
    else:
        assert recipe.data.exclude == ["day"]


def test_text_that_is_mixed_with_numbers(tmp_path: Path) -> None:
    numbers = [f"{x:.3f}" for x in noise()]
    recipe, text = init(
        tmp_path,
        {
            "x": noise(),
            "mostly": ["?" if i % 50 == 0 else v for i, v in enumerate(numbers)],
            "few": RNG.choice(["1", "2", "many"], N),
            "zip": RNG.choice(["01234", "04321"], N),
        },
    )
    assert recipe.data.exclude == ["mostly"]
    assert "98 % are numbers, and others like '?' not" in line(text, "mostly")
    assert recipe.data.columns["few"].type == recipe.data.columns["zip"].type == "category"
    assert "numbers stored as text" in line(text, "zip")
    assert all(line(text, name).endswith("(a guess)") for name in ("mostly", "few", "zip"))


def test_missing_values_are_learned(tmp_path: Path) -> None:
    gone = RNG.random(N) < 0.25
    recipe, text = init(
        tmp_path,
        {
            "nan": np.where(gone, np.nan, noise()),
            "null": pa.array(RNG.poisson(3, N), mask=gone),
            "text": pa.array(RNG.choice(["a", "b"], N), mask=gone),
            "flag": pa.array(RNG.random(N) < 0.5, mask=gone),
            "one": pa.array(["x"] * N, mask=gone),
            "full": noise(),
        },
    )
    kept = {name: column.missing for name, column in recipe.data.columns.items()}
    assert kept == dict.fromkeys(("nan", "null", "text", "flag"), "indicator") | {"full": "error"}
    assert f"{round(100 * gone.mean())} % missing" in line(text, "nan")
    assert "marginalise" in text
    assert recipe.data.exclude == ["one"]


def test_spikes_and_what_is_only_rounded(tmp_path: Path) -> None:
    zero = RNG.random(N)
    recipe, _ = init(
        tmp_path,
        {
            "rain": np.where(zero < 0.7, 0.0, RNG.gamma(2, size=N)),
            "two": np.where(zero < 0.5, 0.0, np.where(zero < 0.9, -1.0, RNG.gamma(2, size=N))),
            "gain": np.where(zero < 0.7, 0, RNG.integers(1, 5000, N)),
            "float32": pa.array(np.where(zero < 0.1, 0.1, noise()), pa.float32()),
            "rounded": np.round(noise() * 2, 1) + 0.5,
            "waits": RNG.geometric(0.1, N),  # few enough that each has a probability of its own
            "far": np.round(RNG.standard_t(1.5, N) * 5),
            "smooth": noise(),
        },
    )
    atoms = {name: column.atoms for name, column in recipe.data.columns.items()}
    assert atoms == {
        "rain": [0], "two": [-1, 0], "gain": [0], "float32": [float(np.float32(0.1))],
        "rounded": "auto", "waits": "auto", "far": [], "smooth": "auto",
    }  # fmt: skip


def test_shapes(tmp_path: Path) -> None:
    x = noise()
    recipe, text = init(
        tmp_path,
        {
            "gauss": x,
            "far": noise() + 1e6,
            "income": np.exp(10 + x),
            "price": np.exp(noise() / 2),
            "cauchy": RNG.standard_cauchy(N),
            "share": RNG.beta(0.6, 0.6, N).clip(1e-6, 1 - 1e-6),
            "percent": 100 * RNG.beta(1, 1, N),
            "touching": np.where(np.arange(N) == 7, 1.0, RNG.beta(0.6, 0.6, N)),
            "narrow": RNG.beta(50, 50, N),
            "modes": RNG.choice([-9, 9], N) + noise(),
            "uniform": RNG.random(N) * 7 + 3,
        },
    )
    found = {name: column.transform for name, column in recipe.data.columns.items()}
    touching = found.pop("touching")
    assert touching in ("none", "quantile")
    assert found == {
        "gauss": "none", "far": "none", "income": "log", "price": "log", "cauchy": "asinh", "share": "logit",
        "percent": "logit", "narrow": "none", "modes": "quantile", "uniform": "none",
    }  # fmt: skip
    assert (recipe.data.columns["percent"].low, recipe.data.columns["percent"].high) == (0, 100)
    assert "decades" in line(text, "income")


# -- columns together -----------------------------------------------------------------------------------------------


def test_what_others_tell_stays_out_of_the_flow(tmp_path: Path) -> None:
    n = 20_000
    origin, dest, city = RNG.integers(0, 3, n), RNG.integers(0, 40, n), RNG.integers(0, 12, n)
    hour, minute = RNG.integers(0, 24, n), RNG.integers(0, 60, n)
    a, b, c = RNG.integers(0, 5, (3, n))
    three = RNG.permutation(125)
    table = {
        "origin": origin, "dest": dest,
        "distance": RNG.permutation(120)[origin * 40 + dest] * 10.5,
        "city": city,
        "town": np.array([f"city {k}" for k in range(12)])[city],
        "clock": 100 * hour + minute, "hour": hour, "minute": minute,
        "a": a, "b": b, "c": c, "abc": three[25 * a + 5 * b + c],
        "rare": (np.arange(n) == 5).astype(int),
        "holes": pa.array(city * 2, mask=np.arange(n) == 9),
        "x": noise(n),
        "spot": (spot := RNG.integers(0, 40, n)) + 0.5, "zone": spot // 4,  # a real number is never looked up
    }  # fmt: skip
    recipe, text = init(tmp_path, table)
    by = {name: column.by for name, column in recipe.data.columns.items() if column.by}
    assert by == {
        "distance": ["origin", "dest"], "town": ["city"], "clock": ["hour", "minute"], "abc": ["a", "b", "c"],
    }  # fmt: skip
    assert "told by them in all 20,000 rows" in line(text, "distance")
    recipe, _ = init(tmp_path, table, "--exclude", "origin,hour", "--given", "city")
    assert {name for name, column in recipe.data.columns.items() if column.by} == {
        "abc",
        "minute",
    }  # what is given is not drawn
    assert recipe.data.given == ["city"]
    assert recipe.data.columns["city"].type == "integer"


def test_a_rule_that_one_row_breaks_is_none(tmp_path: Path) -> None:
    n = 300_000  # more than the sample
    city = RNG.integers(0, 12, n)
    code, broken = city * 3 + 1, city * 5 + 1
    broken[77_777] += 5
    table = {"city": city, "code": code, "broken": broken}
    recipe, _ = init(tmp_path, table)
    assert {name for name, column in recipe.data.columns.items() if column.by} == {"code"}
    # What comes through a pipe is not read twice.
    csv = "city,code,x\n" + "".join(f"{k},{3 * k},{i % 7}\n" for i, k in enumerate(city.tolist()))
    recipe, text = read(succeed("init", "-", stdin=csv.encode()))
    assert recipe.data.columns["code"].by == ["city"]
    assert line(text, "code").endswith("(a guess)")
    assert recipe.data.files == []


def test_straight_lines_are_left_out(tmp_path: Path) -> None:
    x = noise()
    recipe, text = init(
        tmp_path,
        {
            "celsius": x,
            "fahrenheit": np.where(np.arange(N) < 99, np.nan, 32 + 1.8 * x),
            "near": x + 0.1 * noise(),
            "wild": np.where(np.arange(N) == 0, 1e12, noise()),
            "wilder": np.where(np.arange(N) == 0, 1e12, noise()),
        },
    )
    assert recipe.data.exclude == ["fahrenheit"]
    assert "a straight line of celsius" in line(text, "fahrenheit")
    recipe, _ = init(tmp_path, {"c": x, "f": 32 + 1.8 * x, "y": noise()}, "--given=f")
    assert recipe.data.exclude == ["c"]


# -- tables as a whole ----------------------------------------------------------------------------------------------


def test_small_wide_and_empty_tables(tmp_path: Path) -> None:
    recipe, _ = init(tmp_path, {"x": noise()})
    assert list(recipe.data.columns) == ["x"]
    assert recipe.flow.layers == 3
    recipe, text = init(tmp_path, {f"x{i}": noise(1200) for i in range(500)})
    assert len(recipe.data.columns) == 500
    assert recipe.flow.transform == "affine"
    assert "500 columns" in text
    for columns in ({"x": [1.5]}, {"x": [1.5] * 9}, {"x": pa.nulls(9)}, {"x": pa.array([], pa.float64())}):
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        done = flowcli("init", "t.parquet", cwd=tmp_path)
        assert done.returncode == 3
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""


def test_the_flow_fits_the_table(tmp_path: Path) -> None:
    small, _ = init(tmp_path, {c: noise(300) for c in "abcde"})
    middle, _ = init(tmp_path, {c: noise(3000) for c in "abcde"})
    large, _ = init(tmp_path, {c: noise(60_000) for c in "abcde"})
    assert (small.flow.transform, small.flow.hidden, small.train.noise) == ("affine", [64, 64], 0.05)
    assert (middle.flow.transform, middle.flow.layers, middle.train.epochs) == ("spline", 5, 100)
    assert (large.flow.bins, large.train.epochs, large.train.max_time) == (16, 1000, "30m")


HOSTILE = (
    "a: b", "a#b", " # c", "no", "null", "010", "1e5", "", " ", "two\nlines", "tab\t", "ü", "数", "\u2028", "\ufeff",
    "\x1b[31mred", "'", '"', "\\", "[x]", "{y}", "- z", "&a", "*b", "!c", "%d", "@e", "? f", "x" * 3000, "\U0001f600",
    "type", "version", "\x85", "~", "true", "a,b", ": ", "|", ">", "\u202eabc",
)  # fmt: skip


def test_hostile_names(tmp_path: Path) -> None:
    for values in (lambda: noise(100), lambda: [f"\x1b\n#{i}" for i in range(100)], lambda: ["\x1b[2J\n: #"] * 100):
        columns = dict.fromkeys(HOSTILE) | {name: values() for name in HOSTILE} | {"x": noise(100)}
        recipe, text = init(tmp_path, columns)
        assert {*recipe.data.columns} | {*recipe.data.exclude} <= {*columns}
        assert all(c.isprintable() or c == "\n" for c in text)
    recipe, text = init(tmp_path, {name: noise(100) for name in HOSTILE})
    assert list(recipe.data.columns) == list(HOSTILE)
    recipe, _ = init(tmp_path, {name: noise(100) for name in HOSTILE} | {"fine": noise(100)}, "--given=no,010")
    assert recipe.data.given == ["no", "010"]


def test_several_files_json_lines_and_late_fractions(tmp_path: Path) -> None:
    for i in range(2):
        pq.write_table(
            pa.table({"x": noise(500), "n": pa.array(range(500), [pa.int32(), pa.float64()][i])}),
            tmp_path / f"{i}.parquet",
        )
    recipe, text = read(succeed("init", "0.parquet", "1.parquet", cwd=tmp_path))
    assert recipe.data.files == ["0.parquet", "1.parquet"]
    assert "1,000 rows" in text
    assert read(succeed("init", "*.parquet", cwd=tmp_path))[0].data.files == ["*.parquet"]
    rows = [json.dumps({"x": x, "k": i % 5, "in": {"side": 1}}) for i, x in enumerate(noise(300))]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    recipe, _ = read(succeed("init", "t.jsonl", cwd=tmp_path))
    assert {name: c.type for name, c in recipe.data.columns.items()} == {"x": "real", "k": "integer"}
    assert recipe.data.exclude == ["in"]
    (tmp_path / "t.csv").write_text("x,k\n" + "".join(f"{i % 97},{i % 5}\n" for i in range(400_000)) + "0.5,1\n" * 5)
    recipe, _ = read(succeed("init", "t.csv", cwd=tmp_path))
    assert recipe.data.columns["x"].type == "real"


def test_paths_are_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "recipes").mkdir()
    pq.write_table(pa.table({"x": noise(), "y": noise()}), tmp_path / "data" / "a b.parquet")
    assert succeed("init", "data/a b.parquet", "-o", "r.yaml", cwd=tmp_path) == "r.yaml\n"
    assert succeed("init", "data/a b.parquet", "-o", "recipes/r.yaml", cwd=tmp_path) == "recipes/r.yaml\n"
    assert "data/a b.parquet" in (tmp_path / "r.yaml").read_text()
    for file in ("r.yaml", "recipes/r.yaml"):
        assert succeed("validate", file, cwd=tmp_path) == f"{file}: ok\n"
        assert Path(recipes.load(str(tmp_path / file)).data.files[0]) == tmp_path / "data" / "a b.parquet"
    done = flowcli("init", "data", "-o", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "--force" in done.stderr
    done = flowcli("init", "data", "-o", "r.yaml", "--force", cwd=tmp_path)
    assert done.returncode == 0
    assert "flowcli fit r.yaml" in done.stderr
    assert "files: [data]" in (tmp_path / "r.yaml").read_text()


def test_the_same_data_give_the_same_recipe(tmp_path: Path) -> None:
    n = 250_000
    pq.write_table(
        pa.table({"x": noise(n), "k": RNG.integers(0, 99, n), "p": np.exp(2 * noise(n))}), tmp_path / "t.parquet"
    )
    assert succeed("init", "t.parquet", cwd=tmp_path) == succeed("init", "t.parquet", cwd=tmp_path)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    pq.write_table(pa.table({"age": noise(), "y": noise(), "b": [b"x"] * N}), tmp_path / "t.parquet")
    for options, said in (
        (["--exclude", "agee"], "Did you mean age?"),
        (["--given", "zzz"], "no column 'zzz'"),
        (["--given", "age", "--exclude", "age"], "both given and excluded"),
        (["--format", "xls"], "--format"),
    ):
        done = flowcli("init", "t.parquet", *options, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    done = flowcli("init", "t.parquet", "--given", "b", cwd=tmp_path)
    assert done.returncode == 3
    assert "holds binary" in done.stderr


def test_it_is_light_and_quick(tmp_path: Path) -> None:
    n = 500_000
    columns = {f"x{i}": noise(n) for i in range(5)} | {f"k{i}": RNG.integers(0, 40, n) for i in range(5)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    code = (
        "import sys\nfrom flowcli.cli import main\nsys.argv = ['flowcli', 'init', 't.parquet']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert time.monotonic() - start < 20
