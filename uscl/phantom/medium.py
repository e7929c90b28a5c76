"""An anatomy made ready to be insonated: smooth edges, and the direction every interface faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from uscl.phantom.canvas import Anatomy, Point
from uscl.phantom.structures import ACOUSTICS, lookup_table

_BLUR = 0.7
"""Standard deviation of the vote that smooths edges, voxels."""


@dataclass(frozen=True)
class Medium:
    """Structure ids and interface normals on a grid, on the device that simulates.

    Attributes:
        structure: ids, uint8 [x * y * z], x slowest.
        mixed: whether the cell between a voxel and its upper neighbours holds more than one structure, bool, same
            layout.
        normal: unit vectors across interfaces, float16 [x * y * z, 3]; zero where nothing changes.
        shape: of the grid.
        origin: position of voxel (0, 0, 0), mm.
        voxel: edge of a voxel, mm.
    """

    structure: Tensor
    mixed: Tensor
    normal: Tensor
    shape: tuple[int, int, int]
    origin: Point
    voxel: float

    @classmethod
    def of(cls, anatomy: Anatomy, device: str | torch.device = "cpu", normals: bool = True) -> Medium:
        """Prepares an anatomy; do it once per patient.

        Args:
            anatomy: the patient.
            device: where to simulate.
            normals: False if nothing is to be insonated and only structures are looked up.
        """
        ids = anatomy.structure
        mixed = ndimage.maximum_filter(ids, size=3) != ndimage.minimum_filter(ids, size=3)
        normal = _interface_normals(ids) if normals else np.zeros((0, 3), np.float16)
        nx, ny, nz = ids.shape
        return cls(
            torch.from_numpy(ids.ravel()).to(device),
            torch.from_numpy(mixed.ravel()).to(device),
            torch.from_numpy(normal).to(device),
            (nx, ny, nz),
            anatomy.origin,
            anatomy.voxel,
        )

    def sample(self, start: Tensor, step: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Structures along rays.

        Near a boundary the nearest voxel's structure and the one across its nearest face are weighed over the 27
        voxels around (a Gaussian of 0.7 voxels) and the heavier counts, which draws smooth edges through the steps of
        the grid; beyond the grid its outermost voxels go on.

        Args:
            start: where each ray begins, mm [..., 3].
            step: its unit direction [..., 3].
            reach: distances along it, mm [samples].

        Returns:
            Structure ids, int64 [..., samples], and the nearest voxel's place in the flattened grid.
        """
        position = []
        for axis, size in enumerate(self.shape):
            begin = ((start[..., axis] - self.origin[axis]) / self.voxel)[..., None]
            position.append((begin + (step[..., axis] / self.voxel)[..., None] * reach).clamp_(0, size - 1))
        index = [along.round().long() for along in position]
        nearest = self._flatten(index)
        ids = self.structure[nearest.reshape(-1)].long()
        edge = self.mixed[nearest.reshape(-1)].nonzero()[:, 0]
        if len(edge):
            place = [i.reshape(-1)[edge] for i in index]
            offset = [p.reshape(-1)[edge] - i for p, i in zip(position, place, strict=True)]
            ids[edge] = self._vote(ids[edge], place, offset)
        return ids.reshape(nearest.shape), nearest

    def _flatten(self, index: list[Tensor]) -> Tensor:
        _, ny, nz = self.shape
        return (index[0] * ny + index[1]) * nz + index[2]

    def _vote(self, own: Tensor, place: list[Tensor], offset: list[Tensor]) -> Tensor:
        """The heavier of the nearest voxel's structure and its strongest rival among the neighbours."""
        neighbours = [
            [(i + d).clamp_(0, size - 1) for d in (-1, 0, 1)] for i, size in zip(place, self.shape, strict=True)
        ]
        weights = [[torch.exp(-((o - d) ** 2) / (2 * _BLUR**2)) for d in (-1, 0, 1)] for o in offset]
        score = torch.zeros_like(offset[0])
        # The rival lies across the nearest face: it is the structure met by going that way.
        x, y, z = (o.abs() for o in offset)
        farthest = [(x >= y) & (x >= z), (y > x) & (y >= z), (z > x) & (z > y)]
        toward = [i + far * o.sign().long() for i, o, far in zip(place, offset, farthest, strict=True)]
        rival = self.structure[
            self._flatten([t.clamp(0, size - 1) for t, size in zip(toward, self.shape, strict=True)])
        ].long()
        other = torch.zeros_like(score)
        for x, wx in zip(neighbours[0], weights[0], strict=True):
            for y, wy in zip(neighbours[1], weights[1], strict=True):
                for z, wz in zip(neighbours[2], weights[2], strict=True):
                    found = self.structure[self._flatten([x, y, z])]
                    weight = wx * wy * wz
                    score += weight * (found == own)
                    other += weight * (found == rival)
        return torch.where(other > score, rival, own)


def _interface_normals(ids: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Unit vectors across interfaces [x * y * z, 3], from the gradient of the smoothed impedance."""
    impedance = lookup_table({s: a.impedance for s, a in ACOUSTICS.items()}, 1.6, np.float32)[ids]
    # Logarithms, so that bone and air do not drown the capsule of the liver beside them.
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(np.log(impedance), 1.0)), axis=-1)
    length = np.linalg.norm(gradient, axis=-1, keepdims=True)
    gradient /= np.maximum(length, 1e-6)
    gradient[length[..., 0] <= 1e-6] = 0
    return gradient.reshape(-1, 3).astype(np.float16)
