"""SAM-Med3D itself: pure torch, knowing nothing of Lightning, data or LoRA."""

from uscl.backbone.checkpoints import LoadReport, load_checkpoint, save_weights
from uscl.backbone.config import VARIANTS, SamMed3DConfig
from uscl.backbone.sam_med3d import SamMed3D, build_sam_med3d
from uscl.backbone.trunk import EMBEDDED, RANDOM_WEIGHTS, Trunk, announce_trunk, load_trunk

__all__ = [
    "EMBEDDED",
    "RANDOM_WEIGHTS",
    "VARIANTS",
    "LoadReport",
    "SamMed3D",
    "SamMed3DConfig",
    "Trunk",
    "announce_trunk",
    "build_sam_med3d",
    "load_checkpoint",
    "load_trunk",
    "save_weights",
]
