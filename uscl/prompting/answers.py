"""What methods of others answer, checked before it is clicked on and scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from uscl.errors import InputError


def as_logits(found: Any, shape: tuple[int, ...], method: object) -> Tensor:
    """The answer of a method as logits.

    A mask, bool, of whole numbers from 0 or of 0 and one other number, becomes 1 and -1, so that its border stays where
    it is when it is resampled.

    Args:
        found: what the method answered, tensor or array.
        shape: that is expected.
        method: for messages.

    Returns:
        float, of that shape.

    Raises:
        InputError: it is of another shape, not finite or not of numbers, or looks like probabilities, of which every
            one would count as foreground.
    """
    name = type(method).__name__
    values = found if isinstance(found, Tensor) else _as_tensor(found, name)
    if tuple(values.shape) != shape:
        raise InputError(f"{name}: answered {tuple(values.shape)} voxels, expected a mask or logits of {shape}")
    if values.is_complex():
        raise InputError(f"{name}: answered {values.dtype}, expected a mask or logits")
    if not values.is_floating_point():
        return torch.where(values.long() > 0, 1.0, -1.0)
    low, high = (float(value) for value in values.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name}: answered values that are not finite, expected a mask or logits")
    if low >= 0 and bool(((values == 0) | (values == high)).all() or (values == values.round()).all()):
        return torch.where(values > 0, 1.0, -1.0)
    if low >= 0 and high <= 1:
        raise InputError(
            f"{name}: answered values from {low:.3g} to {high:.3g}, which look like probabilities; give logits, above "
            "0 in the object, or a mask"
        )
    return values


def _as_tensor(found: Any, name: str) -> Tensor:
    array = np.asarray(found)
    if array.dtype.kind in "bui":
        return torch.from_numpy(array > 0)
    if array.dtype.kind != "f":
        raise InputError(f"{name}: answered {type(found).__name__} of {array.dtype}, expected a mask or logits")
    return torch.from_numpy(array.astype(np.float32))
