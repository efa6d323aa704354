"""``python -m flowcli``."""

from flowcli.cli import run

if __name__ == "__main__":
    run()
