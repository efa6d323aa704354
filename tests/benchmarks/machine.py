"""What a benchmark says of the machine it ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}


def machine() -> dict[str, Any]:
    """Cores, processor and system, in general terms."""
    return {"cores": os.cpu_count(), "processor": _processor(), "system": platform.system()}


def _processor() -> str:
    """The architecture and, where Linux tells, whose it is: products are as fast as the vendor's library."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text() if cpus.exists() else ""
    vendors = [name for vendor, name in VENDORS.items() if vendor in lines]
    return " ".join([platform.machine(), *vendors])
