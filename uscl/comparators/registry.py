"""The comparators that ``uscl comparators`` lists and tests."""

from __future__ import annotations

from uscl.comparators.comparator import Comparator
from uscl.comparators.methods import MobileSam, Sam, SamMed2D, TinySam
from uscl.registry import Registry

COMPARATORS: Registry[Comparator] = Registry(
    "comparator",
    {
        "sam_vit_b": Sam(size="vit_b"),
        "sam_vit_l": Sam(size="vit_l"),
        "sam_vit_h": Sam(size="vit_h"),
        "mobile_sam": MobileSam(),
        "tinysam": TinySam(),
        "sam_med2d": SamMed2D(),
    },
    lambda found: isinstance(found, Comparator),
    "an instance of uscl.comparators.Comparator",
)
