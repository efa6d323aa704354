"""Tensors and JSON in one safetensors file, under one digest. Nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flowcli.data import store
from flowcli.data.whole import write_whole
from flowcli.errors import DataError, ModelFileError
from flowcli.places import is_object

FORMAT = 1
MAX_HEADER = 8 << 20
_KEY = "flowcli"  # one key only: the order of several would differ from run to run


def write(path: pathlib.Path | str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON ``about`` whole. Equal contents give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    table, data = _split(safetensors.torch.save(plain))
    text = json.dumps({"format": FORMAT, **about}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    body = text.encode(errors="backslashreplace").decode()  # file names may hold bytes that are no UTF-8
    metadata = {_KEY: json.dumps({"sha256": _digest(table, body, data), "body": body}, ensure_ascii=False)}
    write_whole(path, safetensors.torch.save(plain, metadata))


def read(path: pathlib.Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of a file that :func:`write` wrote.

    Raises ModelFileError: no such file, a header over 8 MB, not safetensors, not ours, a newer format, a digest that
    does not fit, a weight that is not finite.
    """
    return parse(contents(path), path)


def contents(path: pathlib.Path | str) -> bytes:
    """The bytes of a file or an object of a store. Raises ModelFileError when it cannot be read, or its beginning says
    that it is none of ours."""
    try:
        with store.open_stream(str(path)) if is_object(path) else open(path, "rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= MAX_HEADER:
                raise ModelFileError(f"{path}: not a flowcli model: its header cannot be read.")
            return start + stream.read()
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file.") from None
    except (OSError, DataError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0].rstrip(".")
        raise ModelFileError(f"{path}: cannot be read: {reason}.") from None


def parse(content: bytes, path: pathlib.Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """:func:`read`, of the bytes that were in the file ``path``."""
    try:
        table, data = _split(content)
        ours = json.loads(table.pop("__metadata__", {}).get(_KEY, "null"))
        tensors = safetensors.torch.load(content)
        if not isinstance(ours, dict) or not isinstance(ours.get("body"), str):
            raise ModelFileError(f"{path}: a safetensors file, but not one that flowcli wrote.")
        if _digest(table, ours["body"], data) != ours.get("sha256"):
            raise ModelFileError(f"{path}: damaged: its contents do not match their digest.")
        about = json.loads(ours["body"])
        format = about.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError):
        raise ModelFileError(f"{path}: not a flowcli model, or damaged.") from None
    if format != FORMAT:
        raise ModelFileError(f"{path}: written by a newer flowcli; this one reads format {FORMAT}.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: the tensor {name} is not finite.")
    return tensors, about


def peek(path: pathlib.Path) -> Any:
    """The JSON of a file, by its header alone and unchecked: what kind of file it may be. Raises OSError, ValueError,
    KeyError, TypeError or struct.error when it is none of ours."""
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(min(length, MAX_HEADER)))
    return json.loads(json.loads(header["__metadata__"][_KEY])["body"])


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header's table of tensors, and the bytes of the tensors."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def _digest(table: Mapping[str, Any], body: str, data: bytes) -> str:
    """SHA-256 over everything that matters: which tensors there are and where, the JSON, the tensors' bytes."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(body.encode())
    digest.update(data)
    return digest.hexdigest()
