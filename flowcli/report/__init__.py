"""One page that says of a run whether to trust its model, and shows why. Needs the ``report`` extra."""

from flowcli.report.evidence import gather
from flowcli.report.page import render, tell, write_pictures

__all__ = ["gather", "render", "tell", "write_pictures"]
