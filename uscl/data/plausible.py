"""Sizes that no scan of a patient has: the header is wrong more often than the patient is that small."""

from __future__ import annotations

from collections.abc import Sequence

SMALLEST_MM, LARGEST_MM = 30.0, 2200.0
"""Bounds of the longest edge: a small linear transducer covers more than the one, a patient less than the other."""


def size_note(shape: Sequence[int], spacing: Sequence[float]) -> str:
    """What is to be said of the size of a scan; empty if nothing is.

    Args:
        shape: voxels along every axis.
        spacing: mm along the same axes.
    """
    edges = [count * step for count, step in zip(shape, spacing, strict=True)]
    if SMALLEST_MM <= max(edges) <= LARGEST_MM:
        return ""
    found = " x ".join(f"{edge:.3g}" for edge in edges)
    return (
        f"measures {found} mm, which no scan of a patient does; if its header is wrong, give the distances in a "
        "manifest of sweeps (columns spacing and step) or, to uscl segment, as --reading.spacing and --reading.step"
    )
