"""What a row of ``score`` can be, worst last: a row has the worst status of its columns."""

from __future__ import annotations

OK, UNSEEN, MISSING, NONFINITE, VIOLATED, UNREADABLE = range(6)

NAMES = ("ok", "unseen_category", "missing", "nonfinite", "constant_violated", "unreadable")
