"""Which device a fit or a score runs on, and in how many threads a fit takes its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from flowcli.errors import UsageError

WIDE = 1 << 23  # products of a batch with a layer's weights from which on a second thread takes a share of the time


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


def narrow(flow: nn.Module, rows: int) -> bool:
    """Whether a step of so many rows is one thread's.

    A step of a narrow flow is hundreds of operations of some microseconds, and threads wait for each other after each.
    With 64 hidden units and 512 rows a second one saves a twentieth (with 128 a seventh, with 256 a quarter). And they
    wait by spinning: where another process has one of the cores, it may keep it for milliseconds at each wait. A step
    of 3 milliseconds took 900 there.
    """
    return max(p.numel() for p in flow.parameters()) * rows < WIDE


@contextmanager
def threads(number: int) -> Iterator[None]:
    """With so many of torch's threads."""
    own = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(own)
