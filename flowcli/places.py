"""What a name is of: a file, or an object of a store (``s3://bucket/key``, ``gs://bucket/key``)."""

from __future__ import annotations

import pathlib

SCHEMES = ("s3://", "gs://")


def is_object(name: str | pathlib.Path) -> bool:
    """Whether a name is of an object, or of what objects' names begin with."""
    return isinstance(name, str) and name.startswith(SCHEMES)


def from_folder(name: str, folder: pathlib.Path) -> str:
    """A name that is meant from ``folder``, as it is from here. Objects and ``-`` are the same from everywhere."""
    return name if name == "-" or is_object(name) else str(folder / name)
