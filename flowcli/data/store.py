"""Objects of a store, ``s3://bucket/key`` or ``gs://bucket/key``, through ``pyarrow.fs``. All other names are of files.

Who may read and write what is the business of the store's own environment variables and files (``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS`` …). An object appears when all of it is there: nothing in a
store is renamed.
"""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import IO

import pyarrow as pa
import pyarrow.fs

from flowcli.errors import DataError


def place(name: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The store and the path in it. Raises DataError when there is no such store."""
    scheme, path = name.split("://", 1)
    bucket = path.split("/", 1)[0]
    try:
        return _store(scheme, bucket), path.rstrip("/")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be reached: {str(error).splitlines()[0].rstrip('.')}.") from None


@functools.cache
def _store(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    # An S3 object of up to 10 MB is then one request, and a larger one appears when its last part is there.
    delayed = "?allow_delayed_open=true" if scheme == "s3" else ""
    store, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}{delayed}")
    return store


def info(name: str) -> pyarrow.fs.FileInfo:
    """What is known of an object, or that it is not there. Raises OSError."""
    store, path = place(name)
    return store.get_file_info(path)


def open_object(name: str) -> pa.NativeFile:
    """An object to read anywhere in it. Raises OSError."""
    store, path = place(name)
    return store.open_input_file(path)


def open_stream(name: str) -> IO[bytes]:
    """An object to read from its beginning, as a file of Python's."""
    return io.BufferedReader(open_object(name), 1 << 20)


def put(name: str, file: pathlib.Path) -> None:
    """Make a file's content an object. Raises OSError."""
    store, path = place(name)
    # All of it in one write: closing a stream, as an error in between would, makes an object of what came before.
    content = pa.memory_map(str(file)).read_buffer() if file.stat().st_size else b""
    with store.open_output_stream(path) as stream:
        stream.write(content)


def remove(name: str) -> None:
    """Delete an object. Raises OSError."""
    store, path = place(name)
    store.delete_file(path)


def below(name: str, deep: bool = True) -> list[str]:
    """The objects whose names begin with ``name`` and a slash, sorted; not ``deep``, without a slash after that.
    Raises OSError."""
    store, path = place(name)
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=deep)
    scheme = name.split("://", 1)[0]
    return sorted(f"{scheme}://{found.path}" for found in store.get_file_info(selector) if found.is_file)


def named(name: str, endings: Collection[str]) -> list[str]:
    """The objects that a name, a pattern or a folder stands for; of a folder, those with one of the endings. Raises
    OSError."""
    parts = name.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(parts) if set("*?[") & set(part)), None)
    if fixed is not None:
        return [found for found in below("/".join(parts[:fixed])) if _fits(found.split("/"), parts)]
    kind = info(name)
    if kind.is_file:
        return [name]
    return [found for found in below(name) if pathlib.PurePosixPath(found).suffix.lower() in endings]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a name fits a pattern, of which ``**`` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
