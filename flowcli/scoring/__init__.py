"""log_prob → score, p-value, flag and status."""

from flowcli.scoring.evaluate import Evaluation, evaluate
from flowcli.scoring.score import FalseDiscoveries, Level, p_values, score_batch

__all__ = ["Evaluation", "FalseDiscoveries", "Level", "evaluate", "p_values", "score_batch"]
