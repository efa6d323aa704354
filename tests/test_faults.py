"""The disk fails: at every write, fsync and rename of a fit, a score and a sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ENVIRONMENT


@pytest.mark.parametrize("faults", [[], pytest.param(["ENOSPC", "EIO", "short"], marks=pytest.mark.slow)])
def test_whatever_fails_there_is_a_sentence_and_what_was_there_is_there(faults: list[str]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("faults.py")), *faults]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=1800)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["events"]["fit"] > 30
    assert min(found["events"].values()) >= 5
