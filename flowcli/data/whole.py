"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import tempfile
from collections.abc import Collection, Iterator

from flowcli.data import store
from flowcli.errors import DataError
from flowcli.places import is_object


@contextlib.contextmanager
def whole_file(path: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """A path to write beside ``path``; renamed onto it when the block ends well, removed when it does not.

    The file is fsynced before the rename and its folder after it. Its mode is what the umask gives a new file,
    whatever mode the writer chose. An object of a store is put when the block ends well. Raises DataError, naming
    ``path``, when any of that fails.
    """
    if is_object(path):
        with tempfile.TemporaryDirectory(prefix="flowcli-") as folder:
            beside = pathlib.Path(folder) / "object"
            yield beside
            with writing(path):
                store.put(str(path), beside)
        return
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = beside.stat().st_mode
    try:
        yield beside
        with writing(path):
            beside.chmod(mode)
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: pathlib.Path | str) -> Iterator[None]:
    """Turns what writing can raise into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: cannot be written: {reason}.") from None


def write_whole(path: pathlib.Path | str, content: bytes | str) -> None:
    """Write ``content`` to ``path`` with :func:`whole_file`. Raises DataError."""
    with whole_file(path) as beside, writing(path):
        # Names of files may hold bytes that are no UTF-8; JSON and YAML have the same escapes for them as Python.
        beside.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def sweep(folder: pathlib.Path, names: Collection[str]) -> None:
    """Remove what :func:`whole_file` left beside ``names`` in processes that were killed."""
    for path in folder.glob(".*.part") if folder.is_dir() else ():
        name, _, _ = path.name[1:].removesuffix(".part").rpartition(".")
        if name in names:
            path.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
