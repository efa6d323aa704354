"""Hundreds of malformed inputs, and a state of things in which none of them is a surprise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from command import ENVIRONMENT


def test_malformed_input_of_every_family() -> None:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("hostile.py"))]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=1200)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["cases"].values()) >= 300
    assert min(found["cases"].values()) >= 40
