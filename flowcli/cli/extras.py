"""Commands that need what a plain installation has not."""

from __future__ import annotations

import importlib.util

from flowcli.errors import UsageError


def require_extra(extra: str, command: str, *modules: str) -> None:
    """Raises UsageError, which says what to install, when one of the modules is not there."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        raise UsageError(f"{command} needs {' and '.join(absent)}: pip install 'flowcli[{extra}]'.")
