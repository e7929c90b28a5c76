"""Masks that follow the edges of the image: a guided filter over logits.

A backbone's masks are made of cells of several voxels. The image knows where within a cell a border runs. Source:
He, Sun and Tang 2013, Guided Image Filtering (https://doi.org/10.1109/TPAMI.2012.213).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uscl.prompting.clicks import Click

SURE = 4.0
"""Logits beyond this, about 98 %, count as sure, lest a few voxels outweigh the rest of their surroundings."""


class GuidedFilter:
    """Replaces logits by what, within every small cube, is a linear function of the image.

    Where the image is flat beside ``noise`` the function is nearly constant, and the logits are smoothed; where it has
    an edge the logits get theirs there. Clicks outweigh the logits around them, so that a mask has what its user says,
    and with it what lies near and looks the same, also where the model does not follow. The defaults were chosen on
    simulated CT and MR (``README.md``).

    Args:
        image: the guide [S, S, S], z-scored.
        radius: of the cubes, voxels; they are 2 radius + 1 wide.
        noise: variance of the image that is no edge.
        gain: what follows the image is added so many times to what is smooth; 1 is the published filter.
        click_weight: how many cubes full of voxels of its own kind a click adds to every cube around it; from 1 on it
            outweighs all else there. The published filter knows no clicks.
    """

    def __init__(
        self, image: Tensor, radius: int = 3, noise: float = 0.03, gain: float = 2.0, click_weight: float = 2.0
    ) -> None:
        self._noise, self._gain, self._click_voxels = noise, gain, click_weight * (2 * radius + 1) ** 3
        # Where a user allows TF32 a CUDA device multiplies floats with 10 bits, doubles never.
        self._dtype = torch.float64 if image.is_cuda else torch.float32
        self._window = _window(image.shape[-1], radius).to(image.device, self._dtype)
        self._image = image.to(self._dtype)
        self._mean = self._means(self._image)
        self._square = self._means(self._image.square())

    def __call__(self, logits: Tensor, clicks: Sequence[Click] = ()) -> Tensor:
        """Logits [S, S, S], from -4 to 4 but for what an edge adds, of logits [S, S, S] and clicks on the same grid.

        Of several clicks on a voxel the last counts; of opposite ones close by, on what looks alike, neither may.
        """
        values = logits.to(self._dtype).clamp(-SURE, SURE)
        level, product = self._means(values), self._means(self._image * values)
        mean, square = self._mean, self._square
        if clicks:
            said = {click.index: SURE if click.foreground else -SURE for click in clicks}
            index = torch.tensor(list(said), device=values.device)
            at = torch.tensor(list(said.values()), device=values.device, dtype=self._dtype)
            guide = self._image[tuple(index.T)]
            total = 1 + self._means_of_clicks(index, torch.ones_like(at))
            mean, square, level, product = (
                (all_voxels + self._means_of_clicks(index, clicked)) / total
                for all_voxels, clicked in ((mean, guide), (square, guide.square()), (level, at), (product, guide * at))
            )
        slope = (product - mean * level) / ((square - mean.square()).clamp_min(0) + self._noise)
        slope *= self._gain
        return (self._means(slope) * self._image + self._means(level - slope * mean)).float()

    def _means(self, values: Tensor) -> Tensor:
        """Means over the cube around every voxel [S, S, S]; at the border over what of it lies inside."""
        # In half precision the difference of two large means, which a variance is, would be noise.
        with torch.autocast(values.device.type, enabled=False):
            values = self._window @ values @ self._window.T
            means: Tensor = torch.tensordot(self._window, values, dims=([1], [0]))
            return means

    def _means_of_clicks(self, index: Tensor, values: Tensor) -> Tensor:
        """The same of an image [S, S, S] that has values [N] times the weight of a click at [N, 3], and 0 elsewhere."""
        with torch.autocast(values.device.type, enabled=False):
            near = [self._window[:, place] for place in index.T]
            planes = (near[1][:, None] * near[2]).flatten(0, 1)
            means = (near[0] * (self._click_voxels * values)) @ planes.T
            return means.reshape(self._image.shape)


def _window(size: int, radius: int) -> Tensor:
    """Matrix [S, S] of running means; as a product it is faster than pooling, whose cost grows with the cube."""
    place = torch.arange(size)
    near = ((place[:, None] - place).abs() <= radius).float()
    return near / near.sum(1, keepdim=True)
