"""What a model is, said as a tree: nothing counted twice, nothing left out."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import succeed
from flow_cases import CASES, IMAGE_CASES, random_flow

from flowcli.flows.levels import Cells
from flowcli.flows.outline import Node, _folded, outline

CELLS = [Cells(torch.tensor([0.5, 0.5], dtype=torch.float64), None)]


def total(node: Node) -> int:
    """The parameters of a node's parts, for as often as it is there."""
    return node.times * sum(part.parameters for part in node.parts)


def check(node: Node) -> None:
    assert total(node) <= node.parameters
    for part in node.parts:
        check(part)


@pytest.mark.parametrize("case", CASES)
def test_every_flow_is_counted_once(case: str) -> None:
    flow = random_flow(case, 5, context=2, cells=CELLS)
    tree = outline(flow)
    assert tree.parameters == total(tree) == sum(p.numel() for p in flow.parameters())
    check(tree)


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_every_image_flow_is_counted_once(case: str) -> None:
    flow = random_flow(case, 192, shape=(3, 8, 8))
    tree = outline(flow)
    assert tree.parameters == total(tree) == sum(p.numel() for p in flow.parameters())
    scales = tree.parts[0]
    assert (scales.name, scales.shapes) == ("MultiScale", "3×8×8")
    assert total(scales) == scales.parameters
    shapes = [part.shapes.removeprefix("latents ").split("×") for part in scales.parts]
    assert sum(math.prod(map(int, shape)) for shape in shapes) == 192


def test_shapes() -> None:
    maf = outline(random_flow("maf-spline-reverse", 5)).parts
    assert [(part.name, part.times) for part in maf] == [
        ("Triangular", 1), ("together", 2), ("Autoregressive, spline of 6 bins", 1), ("base Gaussian", 1),
    ]  # fmt: skip
    assert maf[2].parts[0].shapes == "16×5, 16×16, 95×16"


def test_folding_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = rng.choice(list("abc"), rng.integers(0, 14))
        nodes = [Node(name, "", ord(name)) for name in names]
        unfolded: list[str] = []
        for node in _folded(nodes):
            unfolded += [part.name for part in node.parts or [node]] * node.times
        assert unfolded == list(names)


def test_of_a_run_and_of_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.standard_normal((300, 2)), columns=["a", "b\n"]).to_csv(tmp_path / "t.csv", index=False)
    small = ("-s", "flow.layers=2", "-s", "flow.hidden=[8]", "-s", "train.epochs=1", "-s", "data.validation=0.5")
    succeed("fit", "maf-affine", "t.csv", "-o", "run", *small, cwd=tmp_path)
    text = succeed("inspect", "run", cwd=tmp_path)
    digest = hashlib.sha256((tmp_path / "run" / "model.safetensors").read_bytes()).hexdigest()
    assert f"sha256    {digest}" in text
    assert f"data      {tmp_path / 't.csv'}, " in text
    assert "└─ base StudentT" in text
    assert "score at alpha 0.001        needs 999 calibration rows" in text
    about = json.loads(succeed("inspect", "run", "--json", cwd=tmp_path))
    assert about["tree"]["parameters"] == about["parameters"]
    assert set(about["thresholds"]) == {"0.01", "0.05"}
    succeed("score", "run", "t.csv", "-o", "s.csv", "--alpha", "0.05", cwd=tmp_path)
    scores = pd.read_csv(tmp_path / "s.csv")
    assert (scores["is_anomaly"] == (scores["score"] >= about["thresholds"]["0.05"])).all()
    alone = succeed("inspect", "run/model.safetensors", cwd=tmp_path)
    assert digest in alone
    assert "command" not in alone


def test_what_rows_are_compared_with_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.standard_normal((200, 2)), columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    succeed("fit", "anomaly", "t.csv", "-o", "run", "-s", "train.epochs=1", "-s", "score.folds=3", cwd=tmp_path)
    lines = [line.split() for line in succeed("inspect", "run", cwd=tmp_path).splitlines()]
    assert ["score", "method", "neighbours"] in lines
    assert ["rows", "compared", "with", "200"] in lines
    assert ["calibration", "rows", "90"] in lines
    about = json.loads(succeed("inspect", "run", "--json", cwd=tmp_path))
    assert (about["reference_rows"], about["calibration_rows"]) == (200, 90)
