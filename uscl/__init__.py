"""USCL-Med3D: promptable 3D segmentation of ultrasound sweeps, from a few key frames and one GPU.

The names below are loaded on first use, so that ``import uscl`` and ``uscl --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uscl.backbone import build_sam_med3d, load_checkpoint
    from uscl.serving import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "build_sam_med3d", "load_checkpoint"]

_HOMES = {
    "build_sam_med3d": "uscl.backbone",
    "load_checkpoint": "uscl.backbone",
    "Predictor": "uscl.serving",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'uscl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
