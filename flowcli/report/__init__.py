"""One page that says of a run whether to trust its model, and shows why. Needs the ``report`` extra."""

from flowcli.report.evidence import gather
from flowcli.report.page import render, tell, write_pictures
from flowcli.report.posterior import gather_posterior

__all__ = ["gather", "gather_posterior", "render", "tell", "write_pictures"]
