"""What every command says of itself is what `golden/help.txt` holds: a change there is seen in review.

`python tests/test_help.py > tests/golden/help.txt` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from command import succeed

GOLDEN = Path(__file__).with_name("golden") / "help.txt"
COMMANDS = (
    "", "init", "fit", "score", "sample", "evaluate", "predict", "compare", "inspect", "report", "tune", "validate",
    "recipe", "recipe list", "recipe show", "recipe copy", "recipe schema",
)  # fmt: skip


def said() -> str:
    return "".join(f"$ flowcli {c} --help\n{succeed(*c.split(), '--help')}\n" for c in COMMANDS)


def test_help_is_what_it_was() -> None:
    assert said() == GOLDEN.read_text()


if __name__ == "__main__":
    print(said(), end="")
