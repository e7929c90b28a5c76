"""Dice, normalised surface Dice and Hausdorff distance of one mask, with a rule for every empty case.

| reference | prediction | dice | nsd | hd95 |
|---|---|---|---|---|
| empty | empty | nan | nan | nan |
| empty | not | 0 | 0 | inf |
| not | empty | 0 | 0 | inf |

nan means that there was nothing to find and nothing was found: such a case is counted apart, never averaged. inf is a
miss: averages of hd95 are taken over the hits and shown with the number of misses, never over hits alone without saying
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """How well a mask fits.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|), in [0, 1].
        nsd: share of both surfaces that lies within ``tolerance`` of the other, in [0, 1].
        hd95: 95th percentile of the distance between the surfaces, the larger of both directions, mm.
    """

    dice: float
    nsd: float
    hd95: float


def score(prediction: Mask, reference: Mask, spacing: tuple[float, float, float], tolerance: float = 1.0) -> Scores:
    """Scores a mask against its reference on the same grid.

    Surfaces are found between voxels and weighted by their area, as in DeepMind's surface-distance package
    (https://github.com/google-deepmind/surface-distance); MONAI does that part.

    Args:
        prediction: bool [x, y, z].
        reference: bool [x, y, z].
        spacing: mm.
        tolerance: of the normalised surface Dice, mm.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"mask of shape {prediction.shape} against a reference of shape {reference.shape}")
    predicted, wanted = int(prediction.sum()), int(reference.sum())
    if predicted == 0 and wanted == 0:
        return Scores(nan, nan, nan)
    if predicted == 0 or wanted == 0:
        return Scores(0.0, 0.0, inf)
    dice = 2 * int((prediction & reference).sum()) / (predicted + wanted)
    box = _box(prediction | reference)
    (edge_p, edge_r), distances, areas = get_edge_surface_distance(
        torch.from_numpy(np.ascontiguousarray(prediction[box])),
        torch.from_numpy(np.ascontiguousarray(reference[box])),
        spacing=list(spacing),
        use_subvoxels=True,
        symmetric=True,
    )
    to_reference, to_prediction = (np.asarray(d, np.float64) for d in distances)
    area_p, area_r = (np.asarray(a[e], np.float64) for a, e in zip(areas, (edge_p, edge_r), strict=True))
    within = area_p[to_reference <= tolerance].sum() + area_r[to_prediction <= tolerance].sum()
    hd95 = max(_percentile(to_reference, area_p, 0.95), _percentile(to_prediction, area_r, 0.95))
    return Scores(dice, float(within / (area_p.sum() + area_r.sum())), hd95)


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
