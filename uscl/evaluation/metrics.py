"""Dice, normalised surface Dice, Hausdorff distance and volume error of one mask, with a rule for every empty case.

| reference | prediction | dice | nsd | hd95 | volume error |
|---|---|---|---|---|---|
| empty | empty | nan | nan | nan | nan |
| empty | not | 0 | 0 | inf | inf |
| not | empty | 0 | 0 | inf | -1 |

nan means that there was nothing to find and nothing was found: such a case is counted apart, never averaged. inf is a
miss: averages of hd95 are taken over the hits and shown with the number of misses, never over hits alone without saying
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """How well a mask fits.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|), in [0, 1].
        nsd: share of both surfaces that lies within ``tolerance`` of the other, in [0, 1].
        hd95: 95th percentile of the distance between the surfaces, the larger of both directions, mm.
        volume_error: volume of the mask over that of the reference, minus 1.
    """

    dice: float
    nsd: float
    hd95: float
    volume_error: float


class Reference:
    """What masks are scored against; its surface is found once for all of them.

    Surfaces run between voxels and are weighted by their area, as in DeepMind's surface-distance package
    (https://github.com/google-deepmind/surface-distance): every corner where eight voxels meet that do not all agree is
    a piece of surface, whose area MONAI's table gives by which of the eight lie inside.

    Args:
        mask: bool [x, y, z].
        spacing: mm.
    """

    def __init__(self, mask: Mask, spacing: tuple[float, float, float]) -> None:
        # Takes seconds to import, and segmenting does not need it.
        from monai.metrics.utils import create_table_neighbour_code_to_surface_area

        self.mask = mask
        self.spacing = spacing
        self._areas = create_table_neighbour_code_to_surface_area(spacing)[0].numpy().astype(np.float64)
        self._surface: _Surface | None = None

    def score(self, prediction: Mask, tolerance: float = 1.0) -> Scores:
        """Scores a mask on the same grid.

        Args:
            prediction: bool [x, y, z].
            tolerance: of the normalised surface Dice, mm.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != self.mask.shape:
            raise ValueError(f"mask of shape {prediction.shape} against a reference of shape {self.mask.shape}")
        predicted, wanted = int(np.count_nonzero(prediction)), int(np.count_nonzero(self.mask))
        if predicted == 0 and wanted == 0:
            return Scores(nan, nan, nan, nan)
        if predicted == 0 or wanted == 0:
            return Scores(0.0, 0.0, inf, -1.0 if wanted else inf)
        dice = 2 * int(np.count_nonzero(prediction & self.mask)) / (predicted + wanted)
        self._surface = self._surface or _find_surface(self.mask, self.spacing, self._areas)
        own, other = _find_surface(prediction, self.spacing, self._areas), self._surface
        threads = torch.get_num_threads()
        to_reference = other.tree.query(own.points, workers=threads)[0]
        to_prediction = own.tree.query(other.points, workers=threads)[0]
        within = own.areas[to_reference <= tolerance].sum() + other.areas[to_prediction <= tolerance].sum()
        hd95 = max(_percentile(to_reference, own.areas, 0.95), _percentile(to_prediction, other.areas, 0.95))
        nsd = float(within / (own.areas.sum() + other.areas.sum()))
        return Scores(dice, nsd, hd95, predicted / wanted - 1)


def score(prediction: Mask, reference: Mask, spacing: tuple[float, float, float], tolerance: float = 1.0) -> Scores:
    """Scores one mask against its reference on the same grid; see :class:`Reference`.

    Args:
        prediction: bool [x, y, z].
        reference: bool [x, y, z].
        spacing: mm.
        tolerance: of the normalised surface Dice, mm.

    Raises:
        ValueError: the shapes differ.
    """
    return Reference(reference, spacing).score(prediction, tolerance)


@dataclass(frozen=True)
class _Surface:
    points: NDArray[np.float64]
    areas: NDArray[np.float64]
    tree: cKDTree


def _find_surface(mask: Mask, spacing: tuple[float, float, float], areas: NDArray[np.float64]) -> _Surface:
    box = _box(mask)
    inside = np.pad(mask[box], 1).view(np.uint8)
    code = np.zeros(tuple(n - 1 for n in inside.shape), np.uint8)
    for x, y, z in np.ndindex(2, 2, 2):
        # The bits of MONAI's table: the corner's first voxel along every axis has the highest.
        corner = inside[x : x + code.shape[0], y : y + code.shape[1], z : z + code.shape[2]]
        code |= corner << np.uint8(7 - (4 * x + 2 * y + z))
    index = np.argwhere((code > 0) & (code < 255))
    points = (index + [span.start for span in box]) * np.asarray(spacing, np.float64)
    return _Surface(points, areas[code[tuple(index.T)]], cKDTree(points))


def _percentile(distance: NDArray[np.float64], area: NDArray[np.float64], share: float) -> float:
    """The smallest distance within which at least ``share`` of the surface lies."""
    order = np.argsort(distance)
    reached = np.cumsum(area[order]) / area.sum()
    return float(distance[order][min(int(np.searchsorted(reached, share)), distance.size - 1)])


def _box(mask: Mask) -> tuple[slice, ...]:
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(spans)
