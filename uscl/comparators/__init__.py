"""The 2D methods of the paper's tables, slice by slice, behind the contract that ours satisfies.

FastSAM3D is a 3D method and a variant of the backbone: see :data:`uscl.backbone.VARIANTS`.
"""

from uscl.comparators.methods import Comparator, MobileSam, Sam, SamMed2D, TinySam, load_comparator
from uscl.comparators.registry import PUBLISHED, Published
from uscl.comparators.slices import SliceSegmenter, Slicing

__all__ = [
    "PUBLISHED",
    "Comparator",
    "MobileSam",
    "Published",
    "Sam",
    "SamMed2D",
    "SliceSegmenter",
    "Slicing",
    "TinySam",
    "load_comparator",
]
