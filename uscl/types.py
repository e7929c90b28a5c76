"""Shapes, axis order and units, stated once for the whole package.

Axis order
    Every volume in memory is indexed ``[x, y, z]``: the voxel indices *i, j, k* of the file, as NIfTI counts them and
    as ITK-SNAP and 3D Slicer show them. SimpleITK hands out ``[z, y, x]``; :mod:`uscl.data.volume` is the only module
    that converts. After canonical orientation the axes point Right, Anterior, Superior (RAS), which is the order the
    published SAM-Med3D weights were trained in (its tensors are indexed ``[D, H, W]`` = ``[x, y, z]``).
    For a sweep that carries no patient orientation x is lateral, y is depth and z counts frames.
Points
    A click is a voxel index in the same ``[x, y, z]`` order; label 1 is foreground, 0 background, -1 padding.
Units
    Spacing, origin and distances are millimetres. Physical points are ITK's LPS unless a name says RAS.
    Mask prompts and predictions are logits (foreground above 0) until a name says mask.

The aliases are for annotations. Worked numbers are those of the published model: S = 128 voxels, g = S / 16 = 8 tokens,
m = 4 g = 32 voxels of the low-resolution mask, E = 384 channels.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

PatchBatch = Float[Tensor, "batch 1 S S S"]
"""Normalised intensities of image patches, e.g. (2, 1, 128, 128, 128)."""
LogitBatch = Float[Tensor, "batch 1 S S S"]
"""Segmentation logits on the patch grid."""
Embedding = Float[Tensor, "batch E g g g"]
"""What the image encoder returns, e.g. (2, 384, 8, 8, 8)."""
LowResLogits = Float[Tensor, "batch masks m m m"]
"""What the mask decoder returns and takes back as the mask prompt, e.g. (2, 1, 32, 32, 32)."""
PointCoords = Int[Tensor, "batch points 3"]
"""Voxel indices in the patch."""
PointLabels = Int[Tensor, "batch points"]
"""1 foreground, 0 background, -1 padding."""
TokenGrid = Float[Tensor, "batch d h w C"]
"""Image tokens, channels last."""
