"""A search for a recipe that learns more from the same rows. Needs the ``tune`` extra."""

from flowcli.tune.study import Study, Trial
from flowcli.tune.write import best_recipe

__all__ = ["Study", "Trial", "best_recipe"]
