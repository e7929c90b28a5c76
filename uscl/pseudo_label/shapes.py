"""Shapes between key frames, from the signed distances to their borders.

Source of the idea: S. P. Raya and J. K. Udupa, "Shape-based interpolation of multidimensional objects", IEEE TMI 1990;
the monotone cubic is Fritsch and Carlson's, scipy's PCHIP, which does not overshoot between key frames.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import distance_transform_edt

from uscl.pseudo_label.engine import KeyMasks, Mask

Distances = NDArray[np.float32]


def signed_distance(mask: Mask) -> Distances:
    """Distance to the border of a mask in pixels, positive inside; above 0 exactly where the mask is.

    The border lies between pixels, half a pixel from the centres of both: filters that put 0 on the pixels of the
    border themselves lose one pixel all around when thresholded.

    Args:
        mask: neither empty nor everywhere.
    """
    inside, outside = (distance_transform_edt(part).astype(np.float32) for part in (mask, ~mask))
    distance: Distances = np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)
    return distance


def key_distances(key_masks: KeyMasks) -> dict[int, Distances]:
    """Signed distances of all key frames.

    Where the class is absent everything is as far outside as the neighbouring shape reaches inside, so that what is
    interpolated between both vanishes half way.
    """
    numbers = sorted(key_masks)
    shown = {n: signed_distance(_with_border(key_masks[n])) for n in numbers if key_masks[n].any()}
    deepest = {n: float(distance.max()) for n, distance in shown.items()}
    found = {}
    for place, n in enumerate(numbers):
        if n in shown:
            found[n] = shown[n]
        else:
            beside = [deepest[m] for m in numbers[max(0, place - 1) : place + 2] if m in deepest]
            found[n] = np.full(key_masks[n].shape, -max(beside, default=1.0), np.float32)
    return found


def between(distances: Mapping[int, Distances], t: int, absent: Container[int] = ()) -> Distances:
    """Signed distances of a frame between key frames [row, column]: a monotone cubic through the nearest four.

    Linear where one of the nearest two lacks the class: what draws in until it vanishes has no slope to follow.

    Args:
        distances: by number of the key frame; at least two.
        t: between the first and the last key frame.
        absent: key frames that lack the class.
    """
    near = nearest(list(distances), t)
    before, after = around(near, t)
    if len(near) > 2 and before not in absent and after not in absent:
        curve = PchipInterpolator(near, np.stack([distances[n] for n in near]), axis=0)
        return np.asarray(curve(t), np.float32)
    share = (t - before) / (after - before)
    mixed: Distances = (1 - share) * distances[before] + share * distances[after]
    return mixed


def nearest(numbers: Sequence[int], t: int) -> list[int]:
    """At most two key frames before frame ``t`` and two after, in order."""
    return sorted(n for n in numbers if n < t)[-2:] + sorted(n for n in numbers if n > t)[:2]


def around(numbers: Sequence[int], t: int) -> tuple[int, int]:
    """The nearest key frames before and after frame ``t``, which lies between the first and the last."""
    return max(n for n in numbers if n < t), min(n for n in numbers if n > t)


def _with_border(mask: Mask) -> Mask:
    """A mask that leaves one pixel free, where it covers the whole frame."""
    if not mask.all():
        return mask
    free = mask.copy()
    free[0, 0] = False
    return free
