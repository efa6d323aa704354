"""A strict YAML reader that remembers where everything stands.

Strict means: at most 1 MB and 32 levels, one document, no aliases, no tags, no duplicate keys. Plain scalars are read
as JSON would: ``1e-3`` is a number; ``no`` and ``010`` are strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from flowcli.errors import UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass
class Document:
    """A YAML file's contents as plain Python, and the ``line:column`` of each key and value by path."""

    name: str
    value: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)

    def position(self, path: Path, key: bool = False) -> tuple[int, int]:
        """Line and column of ``path``, or of its nearest parent that is in the file."""
        if key and path in self.keys:
            return self.keys[path]
        inside = (path[:end] for end in range(len(path), -1, -1))
        return next((self.values[p] for p in inside if p in self.values), (1, 1))

    def place(self, path: Path, key: bool = False) -> str:
        """Where ``path`` stands, for a message: ``file:line:col``, or the override that set it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return f"-s {self.overrides[path[:end]]}"
        line, column = self.position(path, key)
        return f"{self.name}:{line}:{column}"


def scalar(text: str) -> Any:
    """A plain YAML scalar as null, bool, int, float or str."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 400 else text
    return float(text) if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text) else text


def parse(text: str, name: str) -> Document:
    """Read YAML ``text``; ``name`` is the file's name in messages. Raises UsageError with ``file:line:col``."""
    if len(text.encode()) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES // 1_000_000} MB, which no recipe needs.")
    document = Document(name)
    try:
        _build(yaml.parse(text, Loader=yaml.SafeLoader), document)
    except yaml.reader.ReaderError as error:
        raise UsageError(
            f"{name}:1:1: character #x{ord(str(error.character)[:1] or ' '):04x} may not stand in YAML."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{name}:1:1"
        raise UsageError(f"{where}: not valid YAML: {error.problem or error.context}.") from None
    return document


def _place(event: yaml.Event) -> tuple[int, int]:
    """Line and column at which an event starts, counted from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _build(events: Any, document: Document) -> None:
    """Put the parser's events together without recursion, noting where each thing stands."""
    stack: list[tuple[Path, Any]] = []  # open containers
    key: str | None = None  # the key waiting for its value, in the innermost mapping
    pending: list[str | None] = []
    documents = 0

    def refuse(event: Any, why: str) -> UsageError:
        line, column = _place(event)
        return UsageError(f"{document.name}:{line}:{column}: {why}")

    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise refuse(event, "a recipe is one document; remove what follows '---'.")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refuse(event, "anchors and aliases are not allowed; write the value out.")
        if getattr(event, "tag", None):
            raise refuse(event, f"the tag {event.tag} is not allowed.")
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            stack.pop()
            key = pending.pop()
            continue
        if not isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent):
            continue

        where = _place(event)
        parent_path, parent = stack[-1] if stack else ((), None)
        if isinstance(parent, dict) and key is None:
            if not isinstance(event, yaml.ScalarEvent):
                raise refuse(event, "a key must be a word.")
            key = event.value
            if key in parent:
                raise refuse(event, f"{'.'.join(map(str, (*parent_path, key)))}: this key is here twice.")
            document.keys[(*parent_path, key)] = where
            parent[key] = None
            continue

        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        path: Path
        if isinstance(parent, dict):
            path = (*parent_path, key or "")
            parent[key] = value
            key = None
        elif isinstance(parent, list):
            path = (*parent_path, len(parent))
            parent.append(value)
        else:
            path = ()
            document.value = value
        document.values[path] = where
        if isinstance(value, dict | list):
            if len(stack) >= MAX_DEPTH:
                raise refuse(event, f"nested deeper than {MAX_DEPTH} levels.")
            stack.append((path, value))
            pending.append(None)
            key = None
