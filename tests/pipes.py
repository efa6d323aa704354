"""A ``flowcli`` for shell lines that starts in milliseconds.

    python tests/pipes.py

Imports everything once, writes a ``flowcli`` into a new folder, prints the folder and serves until standard input ends.
That ``flowcli`` hands its arguments, folder, environment and standard streams to a process forked from this one, and
ends as that one does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path

CLIENT = """#!{python} -ISs
import json, os, socket, sys
streams = []
for number in range(3):
    try:
        os.fstat(number)
        streams.append(number)
    except OSError:
        pass
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
mask = os.umask(0)
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), mask, streams]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "little")], streams)
server.sendall(request)
answer = server.recv(8)
os._exit(int.from_bytes(answer, "little") if answer else 99)
"""


def serve(connection: socket.socket) -> None:
    """Run the command line that a client asks for, in a process forked from this one, and tell the client its end."""
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(head, "little") and (more := connection.recv(1 << 16)):
        content += more
    arguments, folder, environment, mask, numbers = json.loads(content)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number in range(3):
            os.close(number)
        for number, stream in zip(numbers, streams, strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.umask(mask)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # As Python has them at its start: None for one that is closed.
        streams = [os.fdopen(i, "w" if i else "r") if i in numbers else None for i in range(3)]
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.argv = ["flowcli", *arguments]
        run()
    for stream in streams:
        os.close(stream)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall((status if status >= 0 else 128 - status).to_bytes(8, "little"))


def main(folder: Path) -> None:
    address = str(folder / "socket")
    client = folder / "flowcli"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        print(folder, flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                try:
                    serve(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    import forks  # noqa: F401 (which imports everything)

    from flowcli.cli import run

    with tempfile.TemporaryDirectory() as new:
        main(Path(new))
