"""From a volume to a patch and back: the one preprocessing that training, testing, prediction and serving share.

A volume goes through three grids, all indexed [x, y, z]:

1. its own, as the file has it;
2. the *prepared* grid: axes flipped and permuted so that they point closest to Right, Anterior, Superior, and resampled
   to a common spacing along those axes. No rotation: an oblique scan keeps its own axes;
3. the *patch*: S voxels along each axis cut out of the prepared grid, filled with zeros where it reaches beyond.

Orientation is exact (a permutation and flips) and resampling looks at spacing and size alone, never at origin or
direction, so that a flipped, permuted or tilted copy of a scan gives the same patch to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal, Protocol

import numpy as np
import SimpleITK as sitk

from uscl.data.volume import Array, Index, Triple, Volume
from uscl.errors import InputError

# Directions in LPS along which the prepared x, y, z grow: Right, Anterior, Superior.
_RAS = np.diag([-1.0, -1.0, 1.0])


class Sliceable(Protocol):
    """An array in memory, or one on disk that is read where it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""

    @property
    def dtype(self) -> Any:
        """Of what slicing gives."""

    def __getitem__(self, slices: Any, /) -> Any: ...


@dataclass(frozen=True)
class Grid:
    """How the prepared grid of one volume relates to the volume's own; made by :meth:`Preprocessing.grid`.

    Attributes:
        source_shape: voxels of the volume along its own axes.
        axes: own axis that becomes prepared x, y, z.
        flips: whether that axis is reversed.
        source_spacing: spacing along prepared x, y, z before resampling, mm.
        spacing: spacing after, mm.
        shape: voxels of the prepared grid.
    """

    source_shape: Index
    axes: Index
    flips: tuple[bool, bool, bool]
    source_spacing: Triple
    spacing: Triple
    shape: Index

    @property
    def oriented_shape(self) -> Index:
        """Voxels along prepared x, y, z before resampling."""
        return _index(self.source_shape[axis] for axis in self.axes)

    def orient(self, array: Array) -> Array:
        """A view of the volume's array with axes in prepared order."""
        return np.flip(array.transpose(self.axes), self._flipped)

    def restore_axes(self, array: Array) -> Array:
        """Inverse of :meth:`orient`."""
        back = _index(self.axes.index(axis) for axis in range(3))
        return np.flip(array, self._flipped).transpose(back)

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if self.flips[axis])

    def resample(self, array: Array, nearest: bool) -> Array:
        """Oriented values on the prepared grid: linear, or nearest neighbour for labels."""
        if self.shape == self.oriented_shape and self.spacing == self.source_spacing:
            return array
        return _resample(
            array,
            self.source_spacing,
            _origin(self.oriented_shape, self.source_spacing),
            self.shape,
            self.spacing,
            _origin(self.shape, self.spacing),
            nearest,
        )

    def to_prepared(self, index: Sequence[float]) -> tuple[float, float, float]:
        """Position in the prepared grid of a voxel of the volume."""
        position = []
        for axis, n, m in zip(range(3), self.oriented_shape, self.shape, strict=True):
            i = index[self.axes[axis]]
            centred = ((n - 1) / 2 - i if self.flips[axis] else i - (n - 1) / 2) * self.source_spacing[axis]
            position.append(centred / self.spacing[axis] + (m - 1) / 2)
        return position[0], position[1], position[2]

    def to_source(self, position: Sequence[float]) -> Index:
        """The voxel of the volume nearest to a position in the prepared grid; inverse of :meth:`to_prepared`."""
        index = [0, 0, 0]
        for axis, n, m in zip(range(3), self.oriented_shape, self.shape, strict=True):
            centred = (position[axis] - (m - 1) / 2) * self.spacing[axis] / self.source_spacing[axis]
            i = (n - 1) / 2 + (-centred if self.flips[axis] else centred)
            index[self.axes[axis]] = min(n - 1, max(0, int(np.floor(i + 0.5))))
        return index[0], index[1], index[2]

    def restore(self, logits: Array, corner: Index) -> Array:
        """A mask of the volume's own shape from patch logits.

        Args:
            logits: [S, S, S], float.
            corner: prepared index of the patch's first voxel.

        Returns:
            uint8 [source_shape]: 1 where the linearly interpolated logit is above 0; 0 outside the patch.
        """
        mask = np.zeros(self.oriented_shape, np.uint8)
        box = []
        for size, n, s, m, t, start in zip(
            logits.shape, self.oriented_shape, self.source_spacing, self.shape, self.spacing, corner, strict=True
        ):
            # Edges of the patch in voxels of the oriented volume, which is centred on the prepared grid.
            low, high = ((start + edge - (m - 1) / 2) * t / s + (n - 1) / 2 for edge in (-0.5, size - 0.5))
            box.append((max(0, int(np.ceil(low))), min(n, int(np.floor(high)) + 1)))
        extent = _index(stop - start for start, stop in box)
        if min(extent) > 0:
            begin = _index(start for start, _ in box)
            values = _resample(
                logits.astype(np.float32),
                self.spacing,
                _origin(self.shape, self.spacing, corner),
                extent,
                self.source_spacing,
                _origin(self.oriented_shape, self.source_spacing, begin),
                nearest=False,
            )
            mask[tuple(slice(start, stop) for start, stop in box)] = values > 0
        return np.ascontiguousarray(self.restore_axes(mask))

    def cut_short(self, mask: Array, corner: Index) -> bool:
        """Whether a mask [S, S, S] reaches a face of its patch that lies inside the volume."""
        for axis in range(3):
            low, high = corner[axis], corner[axis] + mask.shape[axis]
            if (low > 0 and mask.take(0, axis).any()) or (high < self.shape[axis] and mask.take(-1, axis).any()):
                return True
        return False


@dataclass(frozen=True)
class Preprocessing:
    """How every volume is prepared; part of an adapter, so that prediction repeats what training did.

    Source of the defaults: SAM-Med3D resamples to 1.5 mm, brings volumes to RAS, cuts 128^3 around the object and
    z-normalises with the statistics of the voxels above 0.

    Attributes:
        spacing: of the prepared grid, mm along x, y, z. 1.5 mm makes 128 voxels 192 mm.
        patch_size: edge S of the patch, voxels; the backbone's ``image_size``.
        clamp: intensities are clamped to this range first; the published rule for CT is [-1000, 1000] HU, null for
            others.
        normalisation: ``z_score_positive``, the published rule: mean and standard deviation over the patch's voxels
            above 0, applied to all (the padding becomes -mean / std). ``z_score``: over all voxels that lie inside the
            volume. On ultrasound the first leaves the black of fluid and of everything outside the sector out of the
            statistics, though not out of the image.
    """

    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    patch_size: int = 128
    clamp: tuple[float, float] | None = None
    normalisation: Literal["z_score_positive", "z_score"] = "z_score_positive"

    def __post_init__(self) -> None:
        x, y, z = (float(s) for s in self.spacing)
        object.__setattr__(self, "spacing", (x, y, z))
        if self.clamp is not None:
            low, high = (float(limit) for limit in self.clamp)
            object.__setattr__(self, "clamp", (low, high))
        if min(self.spacing) <= 0 or self.patch_size < 16:
            raise InputError(f"preprocessing: spacing must be positive and patch_size at least 16, found {self}")

    def grid(self, volume: Volume) -> Grid:
        """The prepared grid of a volume: RAS axes at ``spacing``, centred on the volume."""
        axes, flips = _closest_ras(volume.direction)
        oriented = _index(volume.shape[axis] for axis in axes)
        # Headers keep spacing as float32, or through a rotation; the noise of that must not move the grid.
        x, y, z = (round(volume.spacing[axis], 5) for axis in axes)
        shape = _index(max(1, round(n * s / t)) for n, s, t in zip(oriented, (x, y, z), self.spacing, strict=True))
        return Grid(volume.shape, axes, flips, (x, y, z), self.spacing, shape)

    def prepare_image(self, volume: Volume) -> tuple[Array, Grid]:
        """Clamped intensities on the prepared grid, float32, and the grid."""
        grid = self.grid(volume)
        array = grid.orient(volume.array).astype(np.float32)
        if self.clamp is not None:
            array = array.clip(*self.clamp)
        return np.ascontiguousarray(grid.resample(array, nearest=False)), grid

    def prepare_label(self, volume: Volume) -> Array:
        """Label values on the prepared grid, nearest neighbour, int32."""
        grid = self.grid(volume)
        return np.ascontiguousarray(grid.resample(grid.orient(volume.array).astype(np.int32), nearest=True))

    def cut(self, array: Sliceable, corner: Index) -> Array:
        """The S^3 patch of a prepared array that begins at ``corner``, zeros where it reaches beyond."""
        return cut_box(array, corner, self.patch_size)

    def normalise(self, patch: Array, corner: Index, shape: Sequence[int]) -> Array:
        """Normalised intensities of a patch, float32.

        A patch without contrast (no voxel above 0, or all the same) is centred and left unscaled, never NaN.

        Args:
            patch: [S, S, S], from :meth:`cut`.
            corner: where it began.
            shape: of the prepared grid, to distinguish volume from padding.
        """
        if self.normalisation == "z_score_positive" and (patch > 0).any():
            sample = patch[patch > 0].astype(np.float32, copy=False)
        else:
            inside = tuple(
                slice(max(0, -c), max(0, min(self.patch_size, n - c))) for c, n in zip(corner, shape, strict=True)
            )
            sample = np.array(patch[inside] if patch[inside].size else patch, np.float32)
        # In place and with sums alone in double precision: this is what most of the time of a patch is spent on.
        mean = np.float32(sample.mean(dtype=np.float64))
        sample -= mean
        variance = np.square(sample, out=sample).sum(dtype=np.float64) / max(1, sample.size - 1)
        scaled: Array = patch.astype(np.float32, copy=False) - mean
        scaled /= np.float32(np.sqrt(variance) or 1.0)
        return scaled


def corner_around_label(mask: Array, size: int) -> Index:
    """First voxel of the patch that SAM-Med3D cuts around an object.

    The patch is centred on the bounding box; a centre between two voxels goes to the lower one. Without any object it
    is centred on the volume. Source: torchio's CropOrPad as used by SAM-Med3D, rule verified on its output.

    Args:
        mask: bool [x, y, z] on the prepared grid.
        size: S.
    """
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append((int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, mask.shape[axis]))
    return corner_around_box(box, size)


def corner_around_box(box: Sequence[tuple[int, int]], size: int) -> Index:
    """The same from the object's bounding box: first voxel and the one after the last, along each axis."""
    return _index((low + high) // 2 - size // 2 for low, high in box)


def corner_around(centre: Sequence[float], size: int) -> Index:
    """First voxel of the patch centred on a position in the prepared grid."""
    return _index(int(np.floor(c + 0.5)) - size // 2 for c in centre)


def cut_box(array: Sliceable, corner: Index, size: int) -> Array:
    """A cube of ``size`` voxels that begins at ``corner``, which may lie outside; zeros beyond the array."""
    out = np.zeros((size,) * 3, array.dtype)
    spans = [(max(0, c), min(n, c + size), c) for c, n in zip(corner, array.shape, strict=True)]
    if all(stop > start for start, stop, _ in spans):
        inside = tuple(slice(start - c, stop - c) for start, stop, c in spans)
        out[inside] = array[tuple(slice(start, stop) for start, stop, _ in spans)]
    return out


def _closest_ras(direction: Array) -> tuple[Index, tuple[bool, bool, bool]]:
    """The own axis closest to each of Right, Anterior, Superior, and whether it points the other way."""
    cosines = _RAS.T @ direction  # [prepared axis, own axis]
    axes = max(permutations(range(3)), key=lambda p: sum(abs(cosines[a, p[a]]) for a in range(3)))
    return _index(axes), (bool(cosines[0, axes[0]] < 0), bool(cosines[1, axes[1]] < 0), bool(cosines[2, axes[2]] < 0))


def _origin(shape: Index, spacing: Triple, corner: Index = (0, 0, 0)) -> list[float]:
    """Position of voxel ``corner``, mm, when the middle of the grid lies at 0."""
    return [(c - (n - 1) / 2) * s for n, s, c in zip(shape, spacing, corner, strict=True)]


def _resample(
    array: Array,
    spacing: Triple,
    origin: list[float],
    shape: Index,
    new_spacing: Triple,
    new_origin: list[float],
    nearest: bool,
) -> Array:
    """Values of one axis-aligned grid on another; beyond the edge the nearest voxel counts."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(shape)
    resampler.SetOutputSpacing(new_spacing)
    resampler.SetOutputOrigin(new_origin)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return sitk.GetArrayFromImage(resampler.Execute(image)).transpose(2, 1, 0)


def _index(values: Any) -> Index:
    x, y, z = (int(v) for v in values)
    return x, y, z
