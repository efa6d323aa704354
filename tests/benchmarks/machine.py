"""What a benchmark says of the machine it ran on."""

from __future__ import annotations

import os
import platform
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, processor and system, in general terms."""
    return {"cores": os.cpu_count(), "processor": platform.machine(), "system": platform.system()}
