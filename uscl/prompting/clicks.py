"""Clicks, and where a simulated user would set the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from uscl.errors import InputError
from uscl.seeds import Draw


@dataclass(frozen=True)
class Click:
    """One click.

    Attributes:
        index: voxel (x, y, z); in the patch, unless the caller says in which grid.
        foreground: True if the voxel belongs to the object, False if it does not.
    """

    index: tuple[int, int, int]
    foreground: bool = True


def as_points(clicks: Sequence[Click], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Clicks as the prompt encoder takes them: coordinates [1, N, 3] and labels [1, N]."""
    coords = torch.tensor([click.index for click in clicks], device=device)[None]
    labels = torch.tensor([int(click.foreground) for click in clicks], device=device)[None]
    return coords, labels


def error_click(prediction: Tensor, target: Tensor, draw: Draw) -> Click:
    """The click of a user who corrects a mask: one voxel drawn uniformly from all that are wrong.

    The click is foreground where the object was missed and background where the mask spilled over. Where nothing is
    wrong it is a foreground click on the object, as in SAM-Med3D's inference script.
    Source: ``get_next_click3D_torch_2`` of https://github.com/uni-medical/SAM-Med3D; the k-th wrong voxel in row-major
    order is clicked for k drawn from [0, number of wrong voxels), so the same k gives the same voxel.

    Args:
        prediction: bool mask [x, y, z].
        target: bool mask [x, y, z] of the object.
        draw: picks k.

    Raises:
        InputError: there is nothing wrong and no object either.
    """
    wrong = prediction ^ target
    count = int(wrong.count_nonzero())
    if count == 0:
        wrong, count = target, int(target.count_nonzero())
        if count == 0:
            raise InputError("there is no object to click on: the target mask is empty")
    index = _kth_true(wrong, draw(count))
    return Click(index, foreground=bool(target[index]))


def deepest_click(prediction: Tensor, target: Tensor, draw: Draw) -> Click:
    """The click of a user who goes for the middle of the largest error, as RITM simulates it.

    Of what was missed and what was spilled over, the part that reaches deeper is clicked (what was spilled where both
    are equally deep): a voxel drawn from those whose distance to the part's border, or to that of the patch, is more
    than half the greatest. Where nothing is wrong it is the middle of the object.
    Source: Sofiiuk et al. 2021 (https://arxiv.org/abs/2102.06583) as SAM-Med3D's scripts have it in 3D.

    Args:
        prediction: bool mask [x, y, z].
        target: bool mask [x, y, z] of the object.
        draw: picks the voxel, in row-major order.

    Raises:
        InputError: there is nothing wrong and no object either.
    """
    missed, spilled = (_depth(part) for part in (target & ~prediction, prediction & ~target))
    if missed.max() == spilled.max() == 0:
        missed = _depth(target)
        if missed.max() == 0:
            raise InputError("there is no object to click on: the target mask is empty")
    foreground = bool(missed.max() > spilled.max())
    depth = missed if foreground else spilled
    deep = np.argwhere(depth > depth.max() / 2)
    x, y, z = deep[draw(len(deep))].tolist()
    return Click((x, y, z), foreground)


def _depth(mask: Tensor) -> NDArray[np.float64]:
    """Distance of every voxel of a mask to the nearest one outside; beyond the patch everything is outside.

    A mask of one slice is flat: its depth is that within the slice.
    """
    flat = tuple(axis for axis, size in enumerate(mask.shape) if size == 1)
    array = np.pad(mask.cpu().numpy().squeeze(flat), 1)
    inside = tuple(slice(1, -1) for _ in array.shape)
    return np.expand_dims(distance_transform_edt(array)[inside], flat)


def _kth_true(mask: Tensor, k: int) -> tuple[int, int, int]:
    """Index of the k-th true voxel in row-major order; counts slabs first, which beats listing every true voxel."""
    ends = mask.flatten(1).sum(1).cumsum(0)
    slab = int(torch.searchsorted(ends, k, right=True))
    inside = k - (int(ends[slab - 1]) if slab else 0)
    y, z = mask[slab].nonzero()[inside].tolist()
    return slab, y, z
