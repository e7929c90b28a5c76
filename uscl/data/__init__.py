"""Volumes in, 128^3 patches out, and masks back to where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uscl.data.patches import Preprocessing
from uscl.data.sweeps import SweepReading, read_sweep
from uscl.data.training_patches import PatchSampling
from uscl.data.volume import Volume, read_image, read_label, write_volume

if TYPE_CHECKING:
    from uscl.data.datamodule import VolumeDataModule

__all__ = [
    "PatchSampling",
    "Preprocessing",
    "SweepReading",
    "Volume",
    "VolumeDataModule",
    "read_image",
    "read_label",
    "read_sweep",
    "write_volume",
]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import and segmenting does not need it.
    if name == "VolumeDataModule":
        from uscl.data.datamodule import VolumeDataModule

        return VolumeDataModule
    raise AttributeError(f"module 'uscl.data' has no attribute {name!r}")
