"""A look at a table, and the recipe that an expert would write for it. Imports neither torch nor pandas."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from flowcli.data.source import Source
from flowcli.init.columns import advise
from flowcli.init.depend import lines, tell
from flowcli.init.survey import look
from flowcli.init.write import write

__all__ = ["propose"]


def propose(
    source: Source, names: Sequence[str], folder: pathlib.Path, given: Sequence[str] = (), exclude: Sequence[str] = ()
) -> str:
    """The recipe, as YAML, for the rows of ``source``, which the user called ``names``; it will lie in ``folder``.

    Raises DataError: no rows, nothing to model. Raises UsageError for a column that is not there.
    """
    survey = look(source)
    advice = advise(survey, given, exclude)
    tell(survey, advice, given, exclude)
    lines(survey, advice, given)
    return write(survey, advice, names, folder, given)
