"""Which device a fit or a score runs on."""

from __future__ import annotations

import torch

from flowcli.errors import UsageError


def choose(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``mps`` means here. Raises UsageError where there is none."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if here["cuda"] else "cpu")
    if not here.get(name, False):
        raise UsageError(
            f"device {name}: there is none on this machine. Here: {', '.join(d for d in here if here[d])}."
        )
    return torch.device(name)


def holds(device: torch.device, size: int) -> bool:
    """Whether ``size`` bytes of data may stay on the device: at most half of what is free."""
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] // 2
