"""Masks that follow the edges of the image: a guided filter over logits.

A backbone's masks are made of cells of several voxels. The image knows where within a cell a border runs. Source:
He, Sun and Tang 2013, Guided Image Filtering (https://doi.org/10.1109/TPAMI.2012.213).
"""

from __future__ import annotations

import torch
from torch import Tensor

SURE = 4.0
"""Logits beyond this, about 98 %, count as sure, lest a few voxels outweigh the rest of their surroundings."""


class GuidedFilter:
    """Replaces logits by what, within every small cube, is a linear function of the image.

    Where the image is flat beside ``noise`` the function is nearly constant, and the logits are smoothed; where it has
    an edge the logits get theirs there. The defaults were chosen on simulated CT and MR (``README.md``).

    Args:
        image: the guide [S, S, S], z-scored.
        radius: of the cubes, voxels; they are 2 radius + 1 wide.
        noise: variance of the image that is no edge.
        gain: what follows the image is added so many times to what is smooth; 1 is the published filter.
    """

    def __init__(self, image: Tensor, radius: int = 3, noise: float = 0.03, gain: float = 2.0) -> None:
        self._gain = gain
        # Where a user allows TF32 a CUDA device multiplies floats with 10 bits, doubles never.
        self._dtype = torch.float64 if image.is_cuda else torch.float32
        self._window = _window(image.shape[-1], radius).to(image.device, self._dtype)
        self._image = image.to(self._dtype)
        self._mean = self._means(self._image)
        self._variance = (self._means(self._image.square()) - self._mean.square()).clamp_min(0) + noise

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [S, S, S], from -4 to 4 but for what an edge adds, of logits [S, S, S]."""
        values = logits.to(self._dtype).clamp(-SURE, SURE)
        mean = self._means(values)
        slope = (self._means(self._image * values) - self._mean * mean) / self._variance
        slope *= self._gain
        return (self._means(slope) * self._image + self._means(mean - slope * self._mean)).float()

    def _means(self, values: Tensor) -> Tensor:
        """Means over the cube around every voxel [S, S, S]; at the border over what of it lies inside."""
        # In half precision the difference of two large means, which a variance is, would be noise.
        with torch.autocast(values.device.type, enabled=False):
            values = self._window @ values @ self._window.T
            means: Tensor = torch.tensordot(self._window, values, dims=([1], [0]))
            return means


def _window(size: int, radius: int) -> Tensor:
    """Matrix [S, S] of running means; as a product it is faster than pooling, whose cost grows with the cube."""
    place = torch.arange(size)
    near = ((place[:, None] - place).abs() <= radius).float()
    return near / near.sum(1, keepdim=True)
