"""What a benchmark says of the machine it ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}


def machine() -> dict[str, Any]:
    """Cores, processor and system, in general terms."""
    return {"cores": os.cpu_count(), "processor": _processor(), "system": platform.system()}


def _processor() -> str:
    """The architecture, where Linux tells, whose it is, and the instructions that torch uses: products are as fast as
    the library for these."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text() if cpus.exists() else ""
    vendors = [name for vendor, name in VENDORS.items() if vendor in lines]
    return " ".join([platform.machine(), *vendors, torch.backends.cpu.get_cpu_capability()])
