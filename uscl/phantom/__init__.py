"""The embedded data: procedural patients, simulated ultrasound, CT and MR with exact labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uscl.phantom.layouts import LAYOUTS
from uscl.phantom.layouts.ultrasound import SweepStudy
from uscl.phantom.study import simulate_study

if TYPE_CHECKING:
    from uscl.phantom.datamodule import PhantomDataModule, PhantomScansDataModule

__all__ = ["LAYOUTS", "PhantomDataModule", "PhantomScansDataModule", "SweepStudy", "simulate_study"]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import and simulating does not need it.
    if name in ("PhantomDataModule", "PhantomScansDataModule"):
        from uscl.phantom import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module 'uscl.phantom' has no attribute {name!r}")
