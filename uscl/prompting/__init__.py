"""Clicks: simulating them, playing them, and what a promptable method has to offer."""

from uscl.prompting.clicks import Click, error_click
from uscl.prompting.rollout import TrainingClicks, evaluation_rollout, training_rollout
from uscl.prompting.segmenter import SamMed3DSegmenter, Segmenter

__all__ = [
    "Click",
    "SamMed3DSegmenter",
    "Segmenter",
    "TrainingClicks",
    "error_click",
    "evaluation_rollout",
    "training_rollout",
]
