"""Input bent at random: for seconds here, for an hour with ``-m slow``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ENVIRONMENT


@pytest.mark.parametrize("seconds", [15, pytest.param(3600, marks=pytest.mark.slow)])
def test_whatever_is_read_ends_well_or_with_a_sentence(seconds: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(seconds)]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=seconds + 600)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    for counts in found["cases"].values():
        assert counts["refused"] > 10
        assert counts["accepted"] > 0
