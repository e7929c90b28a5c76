"""Other promptable methods behind the contract that ours satisfies: the 2D methods of the paper's tables, and yours.

FastSAM3D is a 3D method and a variant of the backbone: see :data:`uscl.backbone.VARIANTS`.
"""

from uscl.comparators.comparator import Comparator, Loaded
from uscl.comparators.methods import MobileSam, Sam, SamMed2D, SliceComparator, TinySam
from uscl.comparators.published import PUBLISHED, Published
from uscl.comparators.registry import COMPARATORS
from uscl.comparators.slices import SliceSegmenter, Slicing

__all__ = [
    "COMPARATORS",
    "PUBLISHED",
    "Comparator",
    "Loaded",
    "MobileSam",
    "Published",
    "Sam",
    "SamMed2D",
    "SliceComparator",
    "SliceSegmenter",
    "Slicing",
    "TinySam",
]
