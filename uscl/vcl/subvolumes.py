"""Base volumes, crops and the position labels that tie them together.

Source: section 2.2.2 and figure 5 of the paper; VoCo (https://github.com/Luffy03/VoCo) for what it leaves open: bases
cut the plane only, crops have a base's size, and the label of a crop is the share of its volume that lies in each base.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.errors import InputError
from uscl.seeds import Draw


@dataclass(frozen=True)
class SubVolumes:
    """How an input patch is cut.

    Attributes:
        grid: bases along x, y and z; (2, 2, 1) gives the paper's n = 4 non-overlapping base volumes, each
            64 x 64 x 128 of a 128^3 patch. Together they cover the patch, so the labels of a crop sum to 1.
        crops: crops drawn per patch.
        size: edge that bases and crops are resized to before they are encoded, voxels; null is that of the encoder's
            input, as in the paper. Half of it leaves an eighth of the voxels, and of the tokens.
    """

    grid: tuple[int, int, int] = (2, 2, 1)
    crops: int = 2
    size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.size is not None and self.size < 1:
            raise InputError(f"VCL's sub-volumes have a size of at least one voxel, found {self.size}")
        if self.crops < 1 or min(self.grid) < 1 or self.number < 2:
            raise InputError(f"VCL needs at least two base volumes and one crop, found grid {self.grid}, {self.crops}")

    @property
    def number(self) -> int:
        """Number n of base volumes."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def edges(self, size: int) -> tuple[int, int, int]:
        """Extent of a base and of a crop, voxels, in a patch of ``size`` voxels.

        Raises:
            InputError: the grid does not divide the patch.
        """
        if any(size % parts for parts in self.grid):
            raise InputError(f"a grid of {self.grid} base volumes does not divide a patch of {size} voxels")
        return size // self.grid[0], size // self.grid[1], size // self.grid[2]

    def base_corners(self, size: int) -> Tensor:
        """Lowest voxel of every base: [n, 3]."""
        edges = self.edges(size)
        corners = product(*(range(0, size, edge) for edge in edges))
        return torch.tensor(list(corners))

    def draw_crop_corners(self, size: int, draw: Draw) -> Tensor:
        """Lowest voxel of every crop, uniform over all that stay inside the patch: [crops, 3]."""
        edges = self.edges(size)
        return torch.tensor([[draw(size - edge + 1) for edge in edges] for _ in range(self.crops)])


def position_labels(crop_corners: Tensor, base_corners: Tensor, edges: tuple[int, int, int]) -> Tensor:
    """Share of each crop's volume that lies in each base.

    Args:
        crop_corners: [k, 3].
        base_corners: [n, 3].
        edges: extent of a crop and of a base.

    Returns:
        [k, n] in [0, 1]; rows sum to 1 where the bases cover the patch.
    """
    extent = torch.tensor(edges)
    apart = (crop_corners[:, None] - base_corners[None]).abs()
    return ((extent - apart).clamp_min(0) / extent).prod(-1)


def cut(patch: Tensor, corners: Tensor, edges: tuple[int, int, int], size: int | None = None) -> Tensor:
    """Cuts boxes out of a patch and resizes each to a cube, by default of the patch's size.

    The boxes are never encoded with the absolute positions of the place they come from: the position is what the
    pretext task asks for.

    Args:
        patch: [1, S, S, S].
        corners: [m, 3].
        edges: extent of the boxes.
        size: edge of what is returned; None for S.

    Returns:
        [m, 1, size, size, size], trilinear.
    """
    dx, dy, dz = edges
    boxes = torch.stack([patch[:, x : x + dx, y : y + dy, z : z + dz] for x, y, z in corners.tolist()])
    return F.interpolate(boxes, size=(size or patch.shape[-1],) * 3, mode="trilinear", align_corners=False)
