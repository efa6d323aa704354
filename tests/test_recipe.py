"""Recipes: every mistake at once, in its place, with the right word; and what is shipped is good."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowcli import recipe as recipes
from flowcli.errors import UsageError
from flowcli.recipe import Recipe, shipped
from flowcli.recipe.check import check
from flowcli.recipe.yaml import parse


def read(text: str, *overrides: str) -> Recipe:
    return check(parse(text, "r.yaml"), overrides)


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as error:
        read(text, *overrides)
    return str(error.value).split("\n")


def test_everything_but_the_flows_type_has_a_default() -> None:
    recipe = read("flow: {type: maf}")
    assert recipe.train.epochs == 100
    assert recipe.flow.hidden == [128, 128]
    assert read(recipes.dump(recipe)) == recipe


def test_every_mistake_is_reported_at_once_in_order() -> None:
    text = """\
version: 1
data:
  columns: {age: intger, b: {type: real, transfrm: log}}
flow:
  type: realnpv
train:
  lr: abc
  learning_rat: 3
  batch_size: big
  epochs: 1.5
zzz: 1
"""
    assert mistakes(text) == [
        "r.yaml:3:18: data.columns.age.type: 'intger' is not one of auto, real, integer, category, bool, "
        "datetime. Did you mean integer?",
        "r.yaml:3:42: data.columns.b.transfrm: unknown key. Did you mean data.columns.b.transform?",
        "r.yaml:5:9: flow.type: 'realnpv' is not one of planar, radial, realnvp, maf, glow. Did you mean realnvp?",
        "r.yaml:7:7: train.lr: 'abc' must be a number.",
        "r.yaml:8:3: train.learning_rat: unknown key. Did you mean train.lr?",
        "r.yaml:9:15: train.batch_size: 'big' must be a whole number, or must be auto.",
        "r.yaml:10:11: train.epochs: 1.5 must be a whole number.",
        "r.yaml:11:1: zzz: unknown key. Known here: version, data, target, parameters, flow, train, score.",
    ]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("{}", "r.yaml:1:1: flow.type: is missing"),
        ("", "r.yaml:1:1: flow.type: is missing"),
        ("flow: {}", "r.yaml:1:7: flow.type: is missing"),
        ("flow: maf", "r.yaml:1:7: flow: 'maf' must be a mapping"),
        ("- 1", "r.yaml:1:1: a recipe is a mapping"),
        ("flow: {type: maf, type: maf}", "r.yaml:1:19: flow.type: this key is here twice"),
        ("flow: &a {type: maf}", "r.yaml:1:7: anchors and aliases"),
        ("flow: *a", "r.yaml:1:7: anchors and aliases"),
        ("flow: !!python/object/apply:os.system [ls]", "r.yaml:1:7: the tag"),
        ("? [a]\n: 1", "r.yaml:1:3: a key must be a word"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: a recipe is one document"),
        ("a: [1", "r.yaml:1:6: not valid YAML"),
        ("a:\tb: c", "r.yaml:1:"),
        ("\x00", "r.yaml:1:1: character"),
        ("[" * 40, "r.yaml:1:33: nested deeper than 32"),
        ("a: " + "x" * 1_000_001, "r.yaml: larger than 1 MB"),
        ("flow: {type: maf}\ntrain: {seed: 010}", "r.yaml:2:15: train.seed: '010' must be a whole number"),
        ("flow: {type: maf, whiten: no}", "r.yaml:1:27: flow.whiten: 'no' must be true or false"),
        ("flow: {type: maf, hidden: []}", "r.yaml:1:27: flow.hidden: [] must have at least 1 item"),
        ("flow: {type: maf, hidden: [8, x]}", "r.yaml:1:31: flow.hidden.1: 'x' must be a whole number"),
        ("flow: {type: planar, transform: spline}", "r.yaml:1:22: flow.transform: unknown key"),
        ("flow: {type: maf}\ntrain: {lr: -1}", "r.yaml:2:13: train.lr: -1 must be above 0"),
        ("flow: {type: maf}\ntrain: {max_time: 5 parsecs}", "r.yaml:2:19: train.max_time: '5 parsecs' is not"),
        ("flow: {type: maf}\ndata: {validation: 1.5}", "r.yaml:2:20: data.validation: 1.5 must be below 1"),
        ("flow: {type: maf}\ndata: {columns: {a: {transform: logit}}}", "r.yaml:2:21: data.columns.a: low and high"),
        ("flow: {type: maf}\nversion: 2", "r.yaml:2:10: version: 2 must be 1"),
    ],
)  # fmt: skip
def test_mistakes(text: str, start: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(start), line


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (
            "{columns: {a: {type: datetime, transform: log}}}",
            "1:21: data.columns.a: transform: log is for real columns",
        ),
        ("{columns: {a: {missing: drop}}}", "1:31: data.columns.a.missing: 'drop' is not one of error, indicator"),
        ("{columns: {a: {type: bool, atoms: [0]}}}", "1:21: data.columns.a: atoms are for real and integer columns"),
        ("{columns: {a: {atoms: [0, 0.0]}}}", "1:21: data.columns.a: atoms: names a value twice"),
        ("{columns: {a: {atoms: none}}}", "1:29: data.columns.a.atoms: 'none' must be a list, or must be auto"),
        ("{columns: {a: {by: b}}}", "1:26: data.columns.a.by: 'b' must be a list"),
        ("{columns: {a: {by: []}}}", "1:26: data.columns.a.by: [] must have at least 1 item"),
        ("{columns: {a: {by: [b, c, d, e]}}}", "1:26: data.columns.a.by: ['b', 'c', 'd', 'e'] must have at most 3"),
        ("{columns: {a: {by: [b, b]}}}", "1:21: data.columns.a: by: names a column twice"),
        ("{columns: {a: {by: [b], transform: log}}}", "1:21: data.columns.a: a column that others tell (by)"),
        ("{columns: {a: {by: [b], atoms: [0]}}}", "1:21: data.columns.a: a column that others tell (by)"),
        ("{columns: {a: {by: [a]}}}", "1:7: data: 'a' is told by itself"),
        ("{columns: {a: {by: [b]}, b: {by: [c, a]}}}", "1:7: data: 'a' is told by itself"),
        ("{exclude: [b], columns: {a: {by: [b]}}}", "1:7: data: 'a' is told by 'b', which is excluded"),
        ("{given: [a], columns: {a: {by: [b]}}}", "1:7: data: 'a' cannot be both given and told by others"),
    ],
)
def test_mistakes_about_columns(data: str, start: str) -> None:
    (line,) = mistakes(f"data: {data}\nflow: {{type: maf}}")
    assert line.startswith(f"r.yaml:{start}"), line


def test_what_a_column_may_be() -> None:
    recipe = read(
        "flow: {type: maf}\ndata: {exclude: [gone], columns: {a: datetime, b: {transform: quantile, atoms: [0, -1.5]}, "
        "c: {atoms: []}, d: {type: integer, atoms: auto, missing: marginalise}, e: {by: [a, b]}, f: {by: [e]}, "
        "gone: {by: [f]}}}"
    )
    columns = recipe.data.columns
    assert columns["a"].type == "datetime"
    assert columns["b"].atoms == [0, -1.5]
    assert columns["d"].missing == "marginalise"
    assert columns["e"].by == ["a", "b"]
    assert (columns["f"].missing, columns["f"].atoms) == ("error", "auto")
    assert read(recipes.dump(recipe)) == recipe


def test_numbers_are_read_as_json_would() -> None:
    recipe = read("flow: {type: maf}\ntrain: {lr: 1e-3, weight_decay: 0, ema: .5}")
    assert recipe.train.lr == 1e-3
    assert recipe.train.ema == 0.5
    assert parse("a: [no, 010, 0x10, 1_000, 1:30, ~, null, true, .inf, 2026-01-01]", "x").value == {
        "a": ["no", "010", "0x10", "1_000", "1:30", None, None, True, ".inf", "2026-01-01"]
    }


def test_overrides_obey_the_same_rules() -> None:
    recipe = read("flow: {type: maf}", "train.lr=1e-2", "flow.hidden=[3, 4]", "data.columns.age=integer")
    assert recipe.train.lr == 0.01
    assert recipe.flow.hidden == [3, 4]
    assert recipe.data.columns["age"].type == "integer"
    assert mistakes("flow: {type: maf}", "train.lrr=3", "flow.layers=zero") == [
        "-s train.lrr: train.lrr: unknown key. Did you mean train.lr?",
        "-s flow.layers: flow.layers: 'zero' must be a whole number.",
    ]
    assert mistakes("flow: {type: maf}", "train.lr")[0].startswith("-s train.lr: write it as key=value")
    assert mistakes("flow: {type: maf}", "flow.type.x=3")[0].startswith("-s flow.type.x: type is not a section")


def complaints(attempt: Callable[[], object]) -> list[str]:
    """What a UsageError said, line by line; nothing if there was none. Any other exception fails the test."""
    try:
        attempt()
    except UsageError as error:
        return list(error.args)
    return []


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@example({"\n": None})
@settings(max_examples=300, deadline=None)
def test_json_is_read_as_it_is_and_never_crashes_the_check(value: object) -> None:
    text = json.dumps(value)
    try:
        document = parse(text, "r.yaml")
    except UsageError:
        return  # a control character that YAML does not allow
    assert document.value == value or "\\u" in text
    assert all(line.startswith("r.yaml:") for line in complaints(lambda: check(document)))


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_recipe_or_a_sentence(text: str) -> None:
    assert all(line.startswith("r.yaml:") for line in complaints(lambda: read(text)))


def test_plain_yaml_agrees_with_pyyaml() -> None:
    text = "a: 1\nb:\n  - x\n  - {c: 'd', e: [1.5, true]}\nf: |\n  two\n  lines\n"
    assert parse(text, "x").value == yaml.safe_load(text)


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipes_are_valid_and_say_when_to_choose_them(name: str) -> None:
    recipes.load(name)
    comment = "".join(line for line in shipped.path(name).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "Choose it" in comment
    assert "Costs" in comment
    assert len(shipped.about(name)) < 120


def test_one_recipe_is_shipped_for_each_flow_and_transform() -> None:
    found = {(r.flow.type, getattr(r.flow, "transform", None)) for r in map(recipes.load, shipped.names())}
    assert found >= {
        ("planar", None), ("radial", None),
        ("realnvp", "affine"), ("realnvp", "spline"), ("maf", "affine"), ("maf", "spline"),
    }  # fmt: skip


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean maf-affine"):
        recipes.load("maf-afine")


def test_the_json_schema_knows_every_section() -> None:
    schema = recipes.json_schema()
    assert set(schema["properties"]) == {"version", "data", "target", "parameters", "flow", "train", "score"}
    json.dumps(schema)


def test_paths_are_taken_from_the_recipes_folder(tmp_path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("flow: {type: maf}\ndata: {files: d.csv, validation: v.csv}")
    recipe = recipes.load(str(file))
    assert recipe.data.files == [str(tmp_path / "d.csv")]
    assert recipe.data.validation == str(tmp_path / "v.csv")
