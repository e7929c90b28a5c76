"""Scores, rows, tables and pictures."""

from uscl.evaluation.metrics import Scores, score
from uscl.evaluation.rows import ResultRow, read_rows, write_rows

__all__ = ["ResultRow", "Scores", "read_rows", "score", "write_rows"]
