"""Variational inference: a flow fitted to an unnormalised log-density in place of data."""

from flowcli.variational.evaluate import evaluate
from flowcli.variational.fit import fit
from flowcli.variational.posterior import Posterior

__all__ = ["Posterior", "evaluate", "fit"]
