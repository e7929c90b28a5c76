"""Clicks: simulating them, playing them, and what a promptable method has to offer."""

from uscl.prompting.clicks import Click, deepest_click, error_click
from uscl.prompting.inference import PUBLISHED, REFINED, Inference, Preset, resolve_inference
from uscl.prompting.objects import ObjectClicks
from uscl.prompting.protocol import ClickProtocol, RolloutStep, evaluation_rollout
from uscl.prompting.rollout import TrainingClicks, training_rollout
from uscl.prompting.segmenter import SamMed3DSegmenter, Segmenter
from uscl.prompting.training import ClickTraining
from uscl.prompting.whole_volume import VolumeSegmenter, WholeVolume

__all__ = [
    "PUBLISHED",
    "REFINED",
    "Click",
    "ClickProtocol",
    "ClickTraining",
    "Inference",
    "ObjectClicks",
    "Preset",
    "RolloutStep",
    "SamMed3DSegmenter",
    "Segmenter",
    "TrainingClicks",
    "VolumeSegmenter",
    "WholeVolume",
    "deepest_click",
    "error_click",
    "evaluation_rollout",
    "resolve_inference",
    "training_rollout",
]
