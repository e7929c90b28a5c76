"""The grid that anatomies are painted on, and the brushes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uscl.phantom.structures import Structure

Array = NDArray[Any]
Point = tuple[float, float, float]
VOXEL = 2.0
"""Edge of a torso's voxel, mm."""


@dataclass(frozen=True)
class Anatomy:
    """A patient.

    Attributes:
        structure: :class:`Structure` ids, uint8 [x, y, z]; LPS: x to the patient's left, y to the back, z to the head.
        origin: position of voxel (0, 0, 0), mm.
        voxel: edge of a voxel, mm.
        parameters: everything that was drawn.
    """

    structure: NDArray[np.uint8]
    origin: Point
    voxel: float = VOXEL
    parameters: dict[str, Any] = field(default_factory=dict)


class Canvas:
    """Coordinates, smooth noise and structure ids on a grid.

    Args:
        shape: voxels along x, y, z.
        origin: position of voxel (0, 0, 0), mm.
        random: source of everything drawn.
        voxel: edge of a voxel, mm.

    Attributes:
        x: coordinates, shaped to broadcast against a volume; so are ``y`` and ``z``.
        structure: what has been painted, uint8.
    """

    def __init__(
        self, shape: tuple[int, int, int], origin: Point, random: np.random.Generator, voxel: float = VOXEL
    ) -> None:
        steps = [np.arange(n, dtype=np.float32) * np.float32(voxel) for n in shape]
        axes = [step + np.float32(o) for step, o in zip(steps, origin, strict=True)]
        self.x, self.y, self.z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        self.shape, self.origin, self.random, self.voxel = shape, origin, random, voxel
        self.structure = np.zeros(shape, np.uint8)

    def noise(self, scale: float, flat: bool = False) -> Array:
        """Smooth noise of unit variance with features of about ``scale`` mm.

        Args:
            scale: mm.
            flat: over x and y alone: [x, y, 1].
        """
        shape = (*self.shape[:2], 1) if flat else self.shape
        coarse = [max(4, int(np.ceil(n * self.voxel / scale)) + 3) if n > 1 else 1 for n in shape]
        values: Array = self.random.standard_normal(coarse)
        for axis in range(3):  # each product moves the next axis to the front: after three the order is restored
            matrix = _cubic(shape[2 - axis], coarse[2 - axis]) if shape[2 - axis] > 1 else np.ones((1, 1))
            values = np.tensordot(matrix, values, axes=(1, 2))
        # Summed in double precision, so that no machine's order of summation moves the edge of an organ.
        scaled: Array = (values / values.std()).astype(np.float32)
        return scaled

    def paint(self, where: Array, structure: Structure) -> None:
        """Writes a structure over whatever is there."""
        self.structure[where] = structure

    def box(self, centre: Point, radius: float | Point) -> tuple[slice, slice, slice]:
        """The voxels within ``radius`` mm of a point along every axis."""
        radii = (radius,) * 3 if isinstance(radius, float | int) else radius
        spans = []
        for axis, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True):
            low, high = np.searchsorted(axis.ravel(), (c - r, c + r))
            spans.append(slice(int(low), int(high)))
        return spans[0], spans[1], spans[2]

    def offsets(self, centre: Point, box: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """Coordinates within a box, relative to a point."""
        x, y, z = self.x[box[0]], self.y[:, box[1]], self.z[:, :, box[2]]
        return x - centre[0], y - centre[1], z - centre[2]


def ellipsoid(canvas: Canvas, centre: Point, radii: Point) -> Array:
    """Distance from a centre in units of the radii: 1 on the surface."""
    x, y, z = (canvas.x - centre[0]) / radii[0], (canvas.y - centre[1]) / radii[1], (canvas.z - centre[2]) / radii[2]
    distance: Array = np.sqrt(x * x + y * y + z * z)
    return distance


def at_volume(field_: Array, room: Array, millilitres: float, voxel: float = VOXEL) -> Array:
    """The voxels of ``room`` with the highest values of a field that make up a volume; all if there are fewer."""
    count = int(millilitres * 1000 / voxel**3)
    values = np.broadcast_to(field_, room.shape)[room]
    if count >= values.size:
        return room.copy()
    limit = np.partition(values, values.size - count)[values.size - count]
    chosen: Array = room & (field_ >= limit)
    return chosen


def tube(canvas: Canvas, start: Array, end: Array, radius: float, inside: Array, structure: Structure) -> None:
    """Paints a structure within ``radius`` mm of a line segment, inside a mask."""
    middle, half = (start + end) / 2, np.abs(end - start) / 2 + radius
    box = canvas.box((middle[0], middle[1], middle[2]), (half[0], half[1], half[2]))
    x, y, z = canvas.offsets((start[0], start[1], start[2]), box)
    dx, dy, dz = end - start
    along = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
    distance = (x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2
    canvas.structure[box][(distance < radius * radius) & inside[box]] = structure


@lru_cache(maxsize=32)
def _cubic(size: int, points: int) -> Array:
    """Cubic (Catmull-Rom) interpolation of ``points`` values, but the outermost two, to ``size``: [size, points]."""
    matrix = np.zeros((size, points))
    position = np.linspace(1, points - 2, size)
    base = np.clip(np.floor(position).astype(int), 1, points - 3)
    t = position - base
    rows = np.arange(size)
    matrix[rows, base - 1] = 0.5 * (-t + 2 * t**2 - t**3)
    matrix[rows, base] = 0.5 * (2 - 5 * t**2 + 3 * t**3)
    matrix[rows, base + 1] = 0.5 * (t + 4 * t**2 - 3 * t**3)
    matrix[rows, base + 2] = 0.5 * (-(t**2) + t**3)
    return matrix
