"""Several processes that fit one model: what they have to agree on.

``torchrun`` starts them and says in the environment who is who. Each one has all rows, takes its share of every batch
and of the held-out rows, and then the same step as the others; the first alone writes and speaks.

The gradient is summed over the processes in one piece, each step. torch's DistributedDataParallel sums it in buckets
while the backward pass still runs; but it needs batches of one size, hides the sum from the decision whether a step is
finite, and its overlap has little to win here, where a network is one node for autograd and the gradient small.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from flowcli.errors import DataError, TrainingError, UsageError
from flowcli.training.state import State

PATIENCE = datetime.timedelta(minutes=30)  # that others wait at most, such as for the first, which saves
ANSWERS = 60.0  # seconds in which the first process's own store has to answer
PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher says


class Group:
    """One process, which agrees with itself. Several are :class:`Processes`.

    ``first`` is the process that writes; ``begun``, the folder in which an earlier attempt of this job began its run.
    """

    rank, size = 0, 1
    begun: str | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The one of its kind that is this process's. Raises UsageError when there is none."""
        return device

    def share(self, n: int) -> slice:
        """Which of ``n`` things are this process's."""
        return slice(0, n)

    def mean(self, loss: Tensor, gradient: Tensor, weight: float, one: bool) -> tuple[Tensor, bool]:
        """The whole batch's loss, of means over shares with these weights, and :meth:`any`, in one message; the
        ``gradient``, a vector, becomes that of that loss."""
        return loss, one

    def sum(self, parts: Tensor) -> Tensor:
        """Of what each process has."""
        return parts

    def any(self, one: bool) -> bool:
        """Whether it is so in any process."""
        return one

    def firsts(self, number: float) -> float:
        """The number that the first process has."""
        return number

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Make all as they are in the first process."""

    def state(self, state: State | None) -> State | None:
        """The state that the first process has read."""
        return state

    def same(self, fingerprint: Mapping[str, str]) -> None:
        """Raises DataError when this process has another recipe or other data than the first."""

    def begin(self, folder: str) -> None:
        """Let later attempts of this job know where its run began."""

    def wait(self) -> None:
        """Until all processes are here, or one is gone."""

    def speaks(self) -> bool:
        """Whether this process, which ends with an error, is the first that does: the others end because of it."""
        return True


class Processes(Group):
    """One of several processes, each of which calls the same methods in the same order.

    A method raises TrainingError when another process is gone.
    """

    def __init__(self, rank: int, size: int, host: str, port: int) -> None:
        self.rank, self.size = rank, size
        # torchrun's store outlives its processes: the next ones would find the addresses of the dead in it, and wait
        # for them (torch 2.13). So it only says where the store of this attempt is, which the first process serves.
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        with self._together():
            self.board = TCPStore(host, port, size, not kept and rank == 0, PATIENCE)
            self.begun = self.board.get("begun").decode() if self.board.check(["begun"]) else None
            store = self._own_store(host) if kept else self.board
            self.attempt = store.port
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)

    def _own_store(self, host: str) -> TCPStore:
        """A store of this attempt alone. The first process runs where torchrun's store is."""
        if self.first:
            store = TCPStore(host, 0, self.size, True, PATIENCE, wait_for_workers=False)
            self.board.set("port", str(store.port))
            return store
        port, end = int(self.board.get("port")), time.monotonic() + ANSWERS
        while not _answers(host, port):  # that of an earlier attempt
            if time.monotonic() > end:
                raise TrainingError(
                    f"process {self.rank} cannot reach the first process, which says that it listens on port {port} of "
                    f"{host}, beside the launcher's; let all machines reach all ports of that one."
                )
            time.sleep(0.1)
            port = int(self.board.get("port"))
        return TCPStore(host, port, self.size, False, PATIENCE)

    def device(self, device: torch.device) -> torch.device:
        if device.type == "mps":
            raise UsageError("device mps: several processes fit on cpu or cuda.")
        if device.type == "cuda":
            place, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if place >= there:
                raise UsageError(
                    f"device cuda: there are {there} on this machine, too few for a process each; "
                    f"start as many processes as there are, or name --device cpu."
                )
            torch.cuda.set_device(place)
        return device

    def share(self, n: int) -> slice:
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def mean(self, loss: Tensor, gradient: Tensor, weight: float, one: bool) -> tuple[Tensor, bool]:
        head = torch.stack([loss.detach(), loss.new_tensor(float(one))])
        message = self.sum(torch.cat([head, gradient]).mul_(weight))
        gradient.copy_(message[2:])
        return message[0], bool(message[1])

    def sum(self, parts: Tensor) -> Tensor:
        with self._together():
            dist.all_reduce(parts)
        return parts

    def any(self, one: bool) -> bool:
        return bool(self.sum(torch.tensor(float(one))))

    def firsts(self, number: float) -> float:
        return float(self.sum(torch.tensor(number if self.first else 0.0, dtype=torch.float64)))

    def copy(self, tensors: Iterable[Tensor]) -> None:
        with self._together():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def state(self, state: State | None) -> State | None:
        counters = json.loads(self._told(json.dumps(state and asdict(state.counters)).encode()))
        if counters is None:
            return None
        tensors = safetensors.torch.load(self._told(safetensors.torch.save(state.tensors()) if state else b""))
        return State.of(tensors, counters)

    def same(self, fingerprint: Mapping[str, str]) -> None:
        firsts = json.loads(self._told(json.dumps(fingerprint).encode()))
        for name in sorted({*firsts, *fingerprint}):
            there, here = firsts.get(name, "not set"), fingerprint.get(name, "not set")
            if there != here:
                raise DataError(
                    f"{name} is {here} in process {self.rank} and {there} in process 0; all need the same recipe and "
                    f"data."
                )

    def begin(self, folder: str) -> None:
        with self._together():
            self.board.set("begun", folder)

    def wait(self) -> None:
        with contextlib.suppress(TrainingError):
            self.any(True)

    def speaks(self) -> bool:
        try:
            return self.board.add(f"failed {self.attempt}", 1) == 1
        except RuntimeError:
            return True

    def _told(self, content: bytes) -> bytes:
        """What the first process says."""
        length = torch.tensor(len(content))
        self.copy([length])
        text = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if self.first
            else torch.empty(int(length), dtype=torch.uint8)
        )
        self.copy([text])
        return text.numpy().tobytes()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = re.sub(r"^\[\S+\] |\. .*", "", str(error).partition("\n")[0])  # gloo says where in gloo
            raise TrainingError(
                f"process {self.rank} of {self.size} has lost another, which has ended or cannot be reached, and does "
                f"not go on alone ({reason}); --resume goes on from the last state."
            ) from error


def join() -> Group:
    """The group that this process was started in, by torchrun or in its way. Raises UsageError, TrainingError."""
    said = {name: os.environ[name] for name in PLACE if os.environ.get(name)}
    if said.keys() != {*PLACE}:
        if said.get("WORLD_SIZE", "1") != "1":
            raise UsageError(
                f"WORLD_SIZE is {said['WORLD_SIZE']}, but {next(n for n in PLACE if n not in said)} is not set; "
                f"torchrun sets both."
            )
        return Group()
    try:
        rank, size, port = (int(said[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE, MASTER_PORT: {error}; torchrun sets them.") from None
    return Processes(rank, size, said["MASTER_ADDR"], port)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True
