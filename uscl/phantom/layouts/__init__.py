"""Phantom studies in each data set's own layout on disk."""

from __future__ import annotations

from uscl.phantom.layouts import amos, brats, totalsegmentator, ultrasound
from uscl.phantom.study import Layout
from uscl.registry import Registry

LAYOUTS: Registry[Layout] = Registry(
    "phantom layout",
    {layout.name: layout for layout in (ultrasound.LAYOUT, amos.LAYOUT, totalsegmentator.LAYOUT, brats.LAYOUT)},
    lambda found: isinstance(found, Layout),
    "a uscl.phantom.study.Layout",
)

__all__ = ["LAYOUTS"]
