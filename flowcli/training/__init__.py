"""Maximum likelihood: from a recipe and rows to a Model and a run folder."""

from flowcli.training.fit import fit

__all__ = ["fit"]
