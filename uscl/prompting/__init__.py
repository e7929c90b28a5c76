"""Clicks: simulating them, playing them, and what a promptable method has to offer."""

from uscl.prompting.clicks import Click, deepest_click, error_click
from uscl.prompting.protocol import ClickProtocol, RolloutStep, evaluation_rollout
from uscl.prompting.rollout import TrainingClicks, training_rollout
from uscl.prompting.segmenter import SamMed3DSegmenter, Segmenter, Shifts

__all__ = [
    "Click",
    "ClickProtocol",
    "RolloutStep",
    "SamMed3DSegmenter",
    "Segmenter",
    "Shifts",
    "TrainingClicks",
    "deepest_click",
    "error_click",
    "evaluation_rollout",
    "training_rollout",
]
