"""A look at a table, and the recipe that an expert would write for it. Imports neither torch nor pandas."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from flowcli.data.source import Source
from flowcli.errors import UsageError
from flowcli.init.columns import Advice, advise
from flowcli.init.depend import lines, tell
from flowcli.init.survey import look
from flowcli.init.write import write

__all__ = ["propose"]


def propose(
    source: Source,
    names: Sequence[str],
    folder: pathlib.Path,
    given: Sequence[str] = (),
    exclude: Sequence[str] = (),
    anomaly: bool = False,
) -> str:
    """The recipe, as YAML, for the rows of ``source``, which the user called ``names``; it will lie in ``folder``. With
    ``anomaly`` it is one for finding odd rows, as the shipped ``anomaly`` is.

    Raises DataError: no rows, nothing to model. Raises UsageError for a column that is not there.
    """
    if anomaly and given:
        raise UsageError("--task anomaly compares whole rows, so it has no --given columns.")
    survey = look(source)
    advice = advise(survey, given, exclude)
    tell(survey, advice, given, exclude)
    lines(survey, advice, given)
    if anomaly:
        _measure(advice)
    return write(survey, advice, names, folder, given, anomaly)


def _measure(advice: Mapping[str, Advice]) -> None:
    """Let numbers be real ones without spikes, which have distances."""
    for found in advice.values():
        if found.options.get("type") in ("integer", "real"):
            missing = {k: v for k, v in found.options.items() if k == "missing"}
            found.options, found.reason = {"type": "real", "atoms": [], **missing}, found.reason.split(";")[0]
