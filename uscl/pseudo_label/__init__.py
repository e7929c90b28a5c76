"""From a sweep and a few key frames that somebody annotated to a checked mask for every frame."""

from uscl.pseudo_label.key_frames import read_key_frames
from uscl.pseudo_label.propagation import Propagation
from uscl.pseudo_label.sweep import CheckSettings, LabelledSweep, frames_of, label_sweep

__all__ = ["CheckSettings", "LabelledSweep", "Propagation", "frames_of", "label_sweep", "read_key_frames"]
