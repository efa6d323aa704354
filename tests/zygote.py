"""A process that has imported everything and forks a command line for each request: a JSON line in, one out."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from forks import forked


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for line in iter(requests.readline, ""):
        request = json.loads(line)

        def prepare(request: dict[str, Any] = request) -> None:
            os.chdir(request["cwd"])
            os.environ.update(request["environment"])

        done = forked(request["arguments"], prepare, bytes.fromhex(request["stdin"]), 300)
        print(json.dumps({"code": done.code, "out": done.out.hex(), "err": done.err}), file=answers, flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
