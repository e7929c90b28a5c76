"""How the content of a sweep moves from frame to frame, found once for all classes.

Neighbouring frames are registered with SimpleITK's symmetric demons on a pyramid, after smoothing: speckle decorrelates
within a slice width, what is worth following are echoes larger than that. Displacements are chained by composition, so
that a key frame is resampled once however far it is carried.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage

from uscl.errors import InputError
from uscl.pseudo_label.engine import GreyFrames

log = logging.getLogger(__name__)
Field = NDArray[np.float32]
"""Where a pixel comes from, in pixels of the whole frame, as an offset (row, column) [2, row, column]."""


_LEVELS = 4
"""Of the pyramid at most: frames are halved from one to the next."""


@dataclass(frozen=True)
class Registration:
    """How neighbouring frames are registered.

    Attributes:
        longest: pixels of the longer edge that frames are reduced to.
        blur: standard deviation of the smoothing before, in reduced pixels.
        smoothness: standard deviation of the smoothing of the displacement, in reduced pixels.
        iterations: on every level of the pyramid, coarse to fine.
    """

    longest: int = 128
    blur: float = 1.0
    smoothness: float = 2.0
    iterations: tuple[int, ...] = (20, 15)

    def __post_init__(self) -> None:
        if self.longest < 16 or self.blur < 0 or self.smoothness < 0:
            raise InputError(
                f"registration: longest is {self.longest}, blur {self.blur} and smoothness "
                f"{self.smoothness}; expected at least 16, 0 and 0"
            )
        if not 1 <= len(self.iterations) <= _LEVELS or min(self.iterations) < 1:
            raise InputError(
                f"registration: iterations are {self.iterations}; expected at least 1 on each of 1 to {_LEVELS} levels"
            )


class Motion:
    """Displacements between the frames of one sweep, each found when it is asked for first.

    Args:
        frames: the sweep.
        settings: how.
        folder: where displacements are kept, so that another run, with more key frames or after an interruption, need
            not find them again; None keeps them in memory alone.

    Attributes:
        key: differs whenever the displacements would.
    """

    def __init__(self, frames: GreyFrames, settings: Registration = Registration(), folder: Path | None = None) -> None:
        self.shape = frames.shape[1:]
        self.settings = settings
        self._factor = max(1.0, max(self.shape) / settings.longest)
        self._reduced = [_reduce(frame, self._factor, settings.blur) for frame in frames]
        self._steps: dict[tuple[int, int], Field] = {}
        self.key = hashlib.sha256(frames.tobytes() + repr((frames.shape, settings)).encode()).hexdigest()[:16]
        self._folder = None if folder is None else folder / f"motion-{self.key}"
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def find_all(self) -> None:
        """Finds the displacements between all neighbours, showing progress."""
        pairs = [pair for t in range(len(self._reduced) - 1) for pair in ((t, t + 1), (t + 1, t))]
        for start, end in track(pairs, "Registering neighbouring frames", transient=True):
            self._step(start, end)

    def carry(self, start: int, way: int) -> Iterator[tuple[int, Field]]:
        """Where the pixels of frame after frame come from in frame ``start``, until the sweep ends.

        Args:
            start: number of a frame.
            way: 1 forwards, -1 backwards.

        Yields:
            The number of the frame, and for each of its pixels the offset to where it was in frame ``start``, reduced
            (see :meth:`enlarge`).
        """
        grid = np.indices(self._reduced[0].shape, dtype=np.float32)
        total = np.zeros_like(grid)
        for t in range(start, len(self._reduced) - 1 if way > 0 else 0, way):
            step = self._step(t, t + way)
            total = step + np.stack(
                [ndimage.map_coordinates(part, grid + step, order=1, mode="nearest") for part in total]
            )
            yield t + way, total

    def _step(self, start: int, end: int) -> Field:
        """Offset from the pixels of frame ``end`` to where they were in its neighbour ``start``, reduced pixels."""
        if (start, end) not in self._steps:
            file = None if self._folder is None else self._folder / f"{start}-{end}.npy"
            if file is not None and file.is_file():
                found = np.load(file).astype(np.float32)
            else:
                found = _register(self._reduced[end], self._reduced[start], self.settings)
                if file is not None:
                    partial = file.with_suffix(".partial")
                    with partial.open("wb") as stream:
                        np.save(stream, found.astype(np.float16))
                    partial.replace(file)
                # What is read back must be what was used.
                found = found.astype(np.float16).astype(np.float32)
            self._steps[start, end] = found
        return self._steps[start, end]

    def enlarge(self, field: Field) -> Field:
        """A displacement in pixels of the whole frame."""
        if self._factor == 1.0:
            return field
        small = field.shape[1:]
        rows, columns = (
            (np.arange(n, dtype=np.float32) + 0.5) * m / n - 0.5 for n, m in zip(self.shape, small, strict=True)
        )
        where = np.meshgrid(rows, columns, indexing="ij")
        scale = [n / m for n, m in zip(self.shape, small, strict=True)]
        return np.stack(
            [
                s * ndimage.map_coordinates(part, where, order=1, mode="nearest")
                for part, s in zip(field, scale, strict=True)
            ]
        ).astype(np.float32)


def warp(values: NDArray[np.float32], field: Field) -> NDArray[np.float32]:
    """Values [row, column] of the frame that a displacement leads to, linearly interpolated."""
    grid = np.indices(values.shape, dtype=np.float32)
    moved: NDArray[np.float32] = ndimage.map_coordinates(values, grid + field, order=1, mode="nearest")
    return moved


def _reduce(frame: NDArray[np.uint8], factor: float, blur: float) -> NDArray[np.float32]:
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(frame.astype(np.float32), blur * factor)
    if factor == 1.0:
        return smooth
    shape = [max(8, round(n / factor)) for n in frame.shape]
    where = np.meshgrid(
        *((np.arange(m, dtype=np.float32) + 0.5) * n / m - 0.5 for m, n in zip(shape, frame.shape, strict=True)),
        indexing="ij",
    )
    reduced: NDArray[np.float32] = ndimage.map_coordinates(smooth, where, order=1, mode="nearest")
    return reduced


def _register(fixed: NDArray[np.float32], moving: NDArray[np.float32], settings: Registration) -> Field:
    if np.array_equal(fixed, moving):
        return np.zeros((2, *fixed.shape), np.float32)
    levels = len(settings.iterations)
    field: sitk.Image | None = None
    for level, iterations in enumerate(settings.iterations):
        shrink = 2 ** (levels - 1 - level)
        images = [_shrunk(image, shrink) for image in (fixed, moving)]
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(settings.smoothness)
        demons.SetNumberOfThreads(1)  # the same result on any machine
        start = None if field is None else sitk.Resample(field, images[0])
        field = demons.Execute(*images) if start is None else demons.Execute(*images, start)
    assert field is not None
    columns_and_rows = sitk.GetArrayFromImage(field)  # [row, column, (x, y)], in pixels because the spacing is 1
    return np.ascontiguousarray(columns_and_rows[..., ::-1].transpose(2, 0, 1)).astype(np.float32)


def _shrunk(image: NDArray[np.float32], factor: int) -> sitk.Image:
    made = sitk.GetImageFromArray(image)
    return made if factor == 1 else sitk.BinShrink(made, [factor, factor])
