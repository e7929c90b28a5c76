"""The embedded data: procedural patients and simulated ultrasound sweeps with exact labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uscl.phantom.study import StudySettings, simulate_study

if TYPE_CHECKING:
    from uscl.phantom.datamodule import PhantomDataModule

__all__ = ["PhantomDataModule", "StudySettings", "simulate_study"]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import and simulating does not need it.
    if name == "PhantomDataModule":
        from uscl.phantom.datamodule import PhantomDataModule

        return PhantomDataModule
    raise AttributeError(f"module 'uscl.phantom' has no attribute {name!r}")
