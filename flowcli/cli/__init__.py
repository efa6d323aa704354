"""The commands. This package imports neither torch nor pandas nor pyarrow until a command needs them."""

from flowcli.cli.app import main, run

__all__ = ["main", "run"]
