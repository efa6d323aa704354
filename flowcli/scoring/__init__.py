"""log_prob → score, p-value, flag and status."""

from flowcli.scoring.evaluate import Evaluation, evaluate
from flowcli.scoring.score import Level, p_values, score_batch

__all__ = ["Evaluation", "Level", "evaluate", "p_values", "score_batch"]
