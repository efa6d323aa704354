"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Collection, Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write beside ``path``; renamed onto it when the block ends well, removed when it does not.

    The file is fsynced before the rename and its folder after it. Its mode is what the umask gives a new file,
    whatever mode the writer chose.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = beside.stat().st_mode
    try:
        yield beside
        beside.chmod(mode)
        _sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: pathlib.Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` with :func:`whole_file`."""
    with whole_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def sweep(folder: pathlib.Path, names: Collection[str]) -> None:
    """Remove what :func:`whole_file` left beside ``names`` in processes that were killed."""
    for path in folder.glob(".*.part") if folder.is_dir() else ():
        name, _, _ = path.name[1:].removesuffix(".part").rpartition(".")
        if name in names:
            path.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
