"""The command line in several processes at once, as torchrun starts them, forked from one that has imported everything.

A JSON line in, one out. With ``torchrun`` this process keeps a store, as that does. ``mishap`` befalls the process
``victim`` at its training step number ``at``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command itself sets it before it imports torch

from forks import Done, forked
from torch.distributed import TCPStore

from flowcli.training import rows
from flowcli.training.loop import Trainer


def befall(mishap: str, at: int) -> None:
    """Let it happen to this process."""
    step, count = Trainer._step, iter(range(1, 1 << 30))

    def mishaps(self: Trainer, *arguments: Any) -> Any:
        honest, now = self.loss_and_gradient, next(count)
        if now == at and mishap in ("SIGKILL", "SIGTERM", "SIGINT"):
            for _ in range(2):  # a launcher passes on what its processes hear as well
                os.kill(os.getpid(), signal.Signals[mishap])
        if now == at and mishap == "infinity":
            self.loss_and_gradient = lambda *batch: tuple(part * math.inf for part in honest(*batch))
        try:
            return step(self, *arguments)
        finally:
            self.loss_and_gradient = honest

    Trainer._step = mishaps  # type: ignore[method-assign]


def one(rank: int, port: int, request: dict[str, Any]) -> Done:
    def prepare() -> None:
        os.chdir(request["folders"][rank])
        place = {"RANK": rank, "WORLD_SIZE": request["processes"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place["TORCHELASTIC_USE_AGENT_STORE"] = request["torchrun"]
        os.environ.update({name: str(value) for name, value in place.items()})
        rows.WINDOW, rows.BATCHES = 120, 1
        if rank == request["victim"]:
            befall(request["mishap"], request["at"])

    return forked(request["arguments"], prepare, limit=120)


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for line in iter(requests.readline, ""):
        request, found = json.loads(line), []
        store: TCPStore | None = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
        if not request["torchrun"]:
            store = None  # the first process has the port
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / str(rank) for rank in range(request["processes"])]
            children = []
            for rank, file in enumerate(said):
                if (child := os.fork()) == 0:
                    done = one(rank, port, request)
                    file.write_text(json.dumps({"code": done.code, "out": done.out.decode(), "err": done.err}))
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)
            found = [json.loads(file.read_text()) for file in said]
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
