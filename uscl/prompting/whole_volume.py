"""Methods that segment whole volumes, clicked on within a patch as every other method is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uscl.data.patches import Grid, cut_box
from uscl.data.volume import Array, Index, Volume
from uscl.prompting.answers import as_logits
from uscl.prompting.clicks import Click


class VolumeSegmenter(Protocol):
    """A method that wants the scan itself: its intensities, its grid, its geometry."""

    def set_image(self, volume: Volume) -> None:
        """Takes the volume to segment, as its file has it; forgets everything about the one before."""

    def segment(self, clicks: Sequence[Click]) -> Array:
        """A mask, or logits with the object above 0, [x, y, z] on the volume's own grid.

        Clicks are voxels of the volume, all that were given so far.
        """


class WholeVolume:
    """Shows a :class:`VolumeSegmenter` as a segmenter of one patch, so that its clicks are those of every other method.

    Args:
        method: segments whole volumes.
        volume: the image of the patch.
        grid: of the prepared image.
        corner: of the patch on the prepared grid.
        size: edge of the patch, voxels.

    Attributes:
        mask: what came out last, bool, on the volume's own grid.
    """

    def __init__(self, method: VolumeSegmenter, volume: Volume, grid: Grid, corner: Index, size: int) -> None:
        self._method, self._volume, self._grid, self._corner, self._size = method, volume, grid, corner, size
        self.mask: NDArray[np.bool_] = np.zeros(volume.shape, bool)

    def set_image(self, image: Tensor) -> None:
        """Gives the method a copy of the whole volume; the patch, [1, 1, S, S, S], is not looked at."""
        self._method.set_image(self._volume.with_array(self._volume.array.copy()))

    def segment(self, clicks: Sequence[Click]) -> Tensor:
        """Logits [S, S, S] of the patch, resampled from what the method says of the volume.

        Raises:
            InputError: the method's answer cannot be used (see :func:`~uscl.prompting.answers.as_logits`).
        """
        places = np.add([click.index for click in clicks], self._corner).tolist()
        placed = [Click(self._grid.to_source(at), click.foreground) for at, click in zip(places, clicks, strict=True)]
        logits = as_logits(self._method.segment(placed), self._volume.shape, self._method).float().cpu().numpy()
        self.mask = logits > 0
        prepared = self._grid.resample(self._grid.orient(logits), nearest=False)
        return torch.from_numpy(cut_box(prepared, self._corner, self._size))
