"""Makes session.svg, the README's picture: a real session, run in a scratch folder.

python tests/pictures/session.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "sample_data" / "breast_cancer.csv"
COMMANDS = [
    ("flowcli fit quickstart cells.csv -s 'data.exclude=[diagnosis]' -o run", 6),
    ("flowcli score run cells.csv --keep diagnosis | sort -t, -k5,5gr | head -n 5", 5),
    ("flowcli evaluate run cells.csv --label diagnosis", 8),
    ("flowcli sample run -n 3 | cut -d, -f1-5", 4),
]


def main() -> None:
    console = Console(record=True, width=104, file=open(os.devnull, "w"))  # noqa: SIM115
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "cells.csv").symlink_to(DATA)
        for command, lines in COMMANDS:
            done = subprocess.run(
                ["bash", "-c", f"{command} 2>&1"],
                cwd=scratch,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            out = done.stdout.splitlines()
            if len(out) > lines:
                out = [*out[: lines // 2], "…", *out[-(lines - lines // 2) :]]
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            for line in out:
                console.print(Text(line[:104]), no_wrap=True)
            console.print()
    # rich names a font to be fetched from the web; the reader's own monospace will do.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="flowcli"), flags=re.DOTALL)
    (HERE / "session.svg").write_text(picture.replace("Fira Code, monospace", "monospace"))


if __name__ == "__main__":
    main()
