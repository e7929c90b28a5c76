"""Sweeps from whatever a scanner or a download has: volumes, videos, frame folders, DICOM files and series.

What comes out is a :class:`~uscl.data.volume.Volume` indexed [lateral, depth, frame], or as its file is where that is a
volume. Frames rarely know how far apart they are; what nobody knows has to be said, by a number or by the word
``assumed``, and is never made up silently.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from uscl.data.dicom import ENDINGS as DICOM
from uscl.data.dicom import is_dicom, read_dicom, read_header, read_series, series_files, slice_positions
from uscl.data.frames import (
    VIDEOS,
    Frames,
    frame_number,
    pictures_in,
    read_label_pictures,
    read_pictures,
    read_video,
)
from uscl.data.volume import WRITABLE, Array, Distances, Volume, read_image, read_label, vaguest
from uscl.errors import InputError

Rule = Literal["overlay", "doppler"]
RULES: tuple[Rule, ...] = get_args(Rule)
VOLUMES = (*WRITABLE, ".mhd")
ASSUMED_MM = 150.0
"""What the longer edge of a frame, and a whole sweep, are assumed to measure."""
_FRAMES_TO_JUDGE = 8
"""Frames without which nobody can see what changes from what is burnt in."""
_CHANGING = 2.5
"""Standard deviation over the frames, in 1/255 of the range, above which a pixel shows tissue."""
_LEAST_SECTOR = 0.05


@dataclass(frozen=True)
class SweepReading:
    """How the frames of a sweep are read.

    Attributes:
        spacing: of the pixels along lateral and depth, mm. Null takes the file's. ``assumed``: nobody vouches for the
            file's; where it has none the longer edge of a frame is 150 mm.
        step: from frame to frame, mm. Null takes the file's. ``assumed``: nobody vouches for the file's; where it has
            none the sweep is 150 mm long.
        mask: what is blackened. ``overlay``: everything outside the sector, which is the convex hull of the largest
            region that changes over the frames; burnt-in text, scales and logos do not. ``doppler``: coloured pixels.
    """

    spacing: tuple[float, float] | Literal["assumed"] | None = None
    step: float | Literal["assumed"] | None = None
    mask: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        numbers = [
            *(self.spacing if isinstance(self.spacing, tuple) else ()),
            *([self.step] if isinstance(self.step, float | int) else []),
        ]
        if not all(0 < number < math.inf for number in numbers):
            raise InputError(
                f"reading: spacing and step must be finite and above 0 mm, found {self.spacing} and {self.step}"
            )
        if unknown := set(self.mask) - set(RULES):
            raise InputError(f"reading: no rule {', '.join(sorted(unknown))}; choose of {', '.join(RULES)}")


def parse_reading(spacing: str = "", step: str = "", mask: str = "") -> SweepReading:
    """A reading as tables write it.

    Args:
        spacing: mm, one number or lateral and depth; ``assumed``; or empty.
        step: mm; ``assumed``; or empty.
        mask: rules, with blanks between them.

    Raises:
        InputError: anything else.
    """

    def numbers(text: str) -> list[float]:
        try:
            return [float(part) for part in text.split()]
        except ValueError:
            return []

    known: tuple[float, float] | Literal["assumed"] | None = None
    far: float | Literal["assumed"] | None = None
    sizes, steps = numbers(spacing), numbers(step)
    if spacing == "assumed":
        known = "assumed"
    elif len(sizes) in (1, 2):
        known = (sizes[0], sizes[-1])
    if step == "assumed":
        far = "assumed"
    elif len(steps) == 1:
        far = steps[0]
    if (spacing and known is None) or (step and far is None):
        raise InputError(
            f"spacing is {spacing!r} and step {step!r}; expected mm (spacing: one number, or lateral and "
            "depth), `assumed` or nothing"
        )
    return SweepReading(known, far, tuple(cast("list[Rule]", mask.split())))


def read_sweep(path: str | os.PathLike[str], reading: SweepReading = SweepReading()) -> Volume:
    """Reads a sweep of any kind.

    Args:
        path: a volume (NIfTI, NRRD, MHA, MHD), a video, a DICOM file with several frames, or a folder: of frames as
            pictures, or of one DICOM series.
        reading: spacing that the files lack, and what is blackened.

    Raises:
        InputError: the path is missing, of no kind that is known, or damaged; it holds a single frame, or one value
            everywhere; or spacing or step are known to nobody.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if source.is_file() and source.name.lower().endswith(VOLUMES):
        volume = _with_spacing(read_image(source), reading)
    else:
        found = _decode(source, "doppler" in reading.mask)
        volume = _as_volume(source, found, reading) if isinstance(found, Frames) else _with_spacing(found, reading)
    if not np.isfinite(volume.array).all():
        raise InputError(f"{source}: holds NaN or infinite values; export the sweep again")
    if "overlay" in reading.mask:
        volume = replace(volume, array=_without_overlay(volume.array, source))
    if volume.array.min() == volume.array.max():
        raise InputError(f"{source}: every pixel is {volume.array.flat[0]}; export the sweep again")
    return volume


def read_sweep_label(path: str | os.PathLike[str], sweep: Volume) -> Volume:
    """Reads the label map of a sweep: a volume, or a folder with a picture of label ids for every frame.

    Where both are volumes, or the sweep a DICOM series whose slices say where they lie, their grids must agree; with
    videos and pictures, whose geometry no label file can know, the numbers of voxels must.

    Raises:
        InputError: it cannot be read or does not fit.
    """
    source = Path(path).expanduser()
    label = Volume(read_label_pictures(source)) if source.is_dir() else read_label(source)
    if label.shape != sweep.shape:
        raise InputError(
            f"{source}: has {label.shape} voxels, {sweep.name} has {sweep.shape}; a label map has the "
            "sweep's own frames, all of them"
        )
    if _is_volume(source) and (difference := grid_difference(label, sweep)):
        raise InputError(f"{source}: does not lie on the grid of {sweep.name}: {difference}")
    distances = sweep.distances
    if _is_volume(source) and distances != "given":  # what the user gives holds for both
        distances = vaguest(distances, label.distances)
    return replace(sweep, array=label.array, path=source, distances=distances)


def grid_difference(label: Volume, sweep: Volume) -> str | None:
    """None if a label volume lies where a sweep lies, or the sweep is no file that knows where; else the reason."""
    if sweep.path is None or not (_is_volume(sweep.path) or _is_placed_series(sweep.path)):
        return None
    difference = label.same_grid(sweep)
    if difference:  # the sweep may have been given another spacing than its file has
        difference = label.same_grid(replace(sweep, spacing=read_sweep(sweep.path).spacing))
    return difference


def frame_numbers(sweep: Volume | None, count: int) -> list[int]:
    """What the frames of a sweep are called: the numbers in the names of its pictures, else counted from 0.

    Pictures that are numbered from 1, or with gaps, would otherwise get masks that were drawn on their neighbours.

    Args:
        sweep: None for one that is not known.
        count: of its frames.
    """
    counted = list(range(count))
    if sweep is None or sweep.path is None or not sweep.path.is_dir():
        return counted
    try:
        named = [frame_number(picture) for picture in pictures_in(sweep.path)]
    except InputError:
        return counted
    return named if len(named) == count and len(set(named)) == count else counted


def knows_spacing(path: Path) -> bool:
    """Whether the files of a sweep know the distances along all three axes; looks at headers alone.

    Raises:
        InputError: a header cannot be read.
    """
    if _is_volume(path):
        return True
    if path.is_file():
        if not is_dicom(path):
            return False
        header = read_header(path)
        return header.spacing is not None and header.step is not None
    return _is_placed_series(path)


def _is_placed_series(path: Path) -> bool:
    """Whether a folder holds a DICOM series that :func:`~uscl.data.dicom.read_series` makes a volume in space of."""
    if not path.is_dir() or pictures_in(path):
        return False
    headers = [read_header(file) for file in series_files(path)]
    return slice_positions(headers) is not None and headers[0].frames == 1


def _is_volume(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(VOLUMES)


def _decode(source: Path, without_colour: bool) -> Volume | Frames:
    if source.is_dir():
        reader = read_pictures if pictures_in(source) else read_series
        return reader(source, without_colour)
    if source.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty (0 bytes); fetch or export it again")
    if source.suffix.lower() in VIDEOS:
        return read_video(source, without_colour)
    if source.suffix.lower() in DICOM or is_dicom(source):
        return read_dicom(source, without_colour)
    known = ", ".join((*VOLUMES, *VIDEOS, *DICOM))
    raise InputError(f"{source}: no sweep that can be read; expected {known}, or a folder of frames or of DICOM files")


def _as_volume(source: Path, frames: Frames, reading: SweepReading) -> Volume:
    width, height, count = frames.array.shape
    if min(width, height, count) < 2:
        raise InputError(f"{source}: has {count} frame(s) of {width} x {height}; a sweep has at least two of 2 x 2")
    spacing = reading.spacing if isinstance(reading.spacing, tuple) else frames.spacing
    step = reading.step if isinstance(reading.step, float | int) else frames.step
    distances: Distances = "measured" if (spacing, step) == (frames.spacing, frames.step) else "given"
    if spacing is None and reading.spacing == "assumed":
        spacing = (ASSUMED_MM / max(width, height),) * 2
    if step is None and reading.step == "assumed":
        step = ASSUMED_MM / count
    if "assumed" in (reading.spacing, reading.step):
        distances = "assumed"
    if spacing is None or step is None:
        lacking = [name for name, value in (("spacing", spacing), ("step", step)) if value is None]
        between = " and ".join(_MEANT[name] for name in lacking)
        raise InputError(
            f"{source}: the millimetres between {between} are not known; give {' and '.join(lacking)}, "
            "in mm or `assumed` (columns of the table, or --reading.spacing, --reading.step)"
        )
    return Volume(frames.array, (spacing[0], spacing[1], float(step)), path=source, distances=distances)


_MEANT = {"spacing": "pixels", "step": "frames"}


def _with_spacing(volume: Volume, reading: SweepReading) -> Volume:
    x, y, z = volume.spacing
    if isinstance(reading.spacing, tuple):
        x, y = reading.spacing
    if isinstance(reading.step, float | int):
        z = float(reading.step)
    given: list[Distances] = [
        volume.distances if said is None else "assumed" if said == "assumed" else "given"
        for said in (reading.spacing, reading.step)
    ]
    if (x, y, z) == volume.spacing and "assumed" not in (*given, volume.distances):
        return volume
    return replace(volume, spacing=(x, y, z), distances=vaguest(*given))


def _without_overlay(array: Array, source: Path) -> Array:
    """Blackens what lies outside the sector (see :class:`SweepReading`)."""
    if array.shape[2] < _FRAMES_TO_JUDGE:
        raise InputError(
            f"{source}: {array.shape[2]} frames are too few to distinguish tissue from burnt-in text (at least "
            f"{_FRAMES_TO_JUDGE}); leave the rule `overlay` out"
        )
    reach = float(array.max() - array.min()) or 1.0
    changing = array.std(axis=2, dtype=np.float32) > _CHANGING / 255 * reach
    edge = max(2, round(0.01 * min(changing.shape)))
    # Opened first: counters and cursors are thin. Closed then: speckle has holes where fluid is.
    joined = ndimage.binary_opening(changing, iterations=2)
    joined = ndimage.binary_closing(np.pad(joined, 2 * edge), iterations=2 * edge)
    joined = joined[2 * edge : -2 * edge, 2 * edge : -2 * edge]
    parts, count = ndimage.label(joined)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    if not count or sizes.max() < _LEAST_SECTOR * changing.size:
        raise InputError(
            f"{source}: too little changes over the frames to find the sector; leave out the rule `overlay`"
        )
    sector = _convex_hull(parts == 1 + int(sizes.argmax()))
    return np.where(sector[:, :, None], array, array.dtype.type(0))


def _convex_hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The smallest convex region [x, y] that holds a region."""
    border = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    x, y = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])
    inside = np.ones(mask.shape, bool)
    for a, b, c in np.unique(ConvexHull(border).equations.round(9), axis=0):
        inside &= a * x + b * y + c <= 1e-6
    return inside
