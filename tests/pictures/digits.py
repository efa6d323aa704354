"""Makes digits.png, the README's picture: ten draws of each class.

    python tests/pictures/digits.py RUN

RUN is what ``flowcli fit glow-digits sample_data/digits.zip -o RUN`` left.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "labels.csv"
        given.write_text("label\n" + "".join(f"{digit}\n" for digit in range(10)))
        sheet = Path(__file__).with_suffix(".png")
        command = ["sample", sys.argv[1], "-n", "10", "--given", str(given), "-o", str(sheet), "--force"]
        subprocess.run([sys.executable, "-m", "flowcli", *command], check=True)


if __name__ == "__main__":
    main()
