"""log_prob → score, p-value, flag and status."""

from flowcli.scoring.copies import Copies, copies, draw_like, new_rows, train_rows
from flowcli.scoring.discoveries import FalseDiscoveries, Likeness, discoveries
from flowcli.scoring.evaluate import Evaluation, evaluate
from flowcli.scoring.predict import Predictor
from flowcli.scoring.rows import Piece, RowScorer, in_one_schema, pieces
from flowcli.scoring.score import Level, Scorer, p_values, score_batch

__all__ = [
    "Copies", "Evaluation", "FalseDiscoveries", "Level", "Likeness", "Piece", "Predictor", "RowScorer", "Scorer",
    "copies", "discoveries", "draw_like", "evaluate", "in_one_schema", "new_rows", "p_values", "pieces", "score_batch",
    "train_rows",
]  # fmt: skip
