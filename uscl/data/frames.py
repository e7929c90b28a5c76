"""Frames of a sweep from pictures, videos and DICOM files, as one grey array, with the spacing that the files know.

Everything here is indexed [lateral, depth, frame], as sweeps are everywhere in this package. Colour becomes luma (ITU-R
BT.601); nothing else is done to the values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from uscl.data.volume import Array
from uscl.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mpeg", ".mpg", ".mov", ".mkv", ".m4v", ".wmv", ".webm")
DICOM = (".dcm", ".dicom", ".ima")
_LARGEST = 2 << 30
"""Bytes of frames that are held in memory at most."""
_COLOURED = 40
"""Difference of the colour channels from which a pixel is said to be coloured; compression alone reaches about 20."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")  # modes of Pillow with one value per pixel
_CENTIMETRES = 3  # code of the unit in DICOM's ultrasound region calibration


@dataclass(frozen=True, eq=False)
class Frames:
    """What the files of a sweep hold.

    Attributes:
        array: grey values [lateral, depth, frame].
        spacing: of the pixels along lateral and depth, mm; None where the files do not say.
        step: from frame to frame, mm; None where the files do not say.
    """

    array: Array
    spacing: tuple[float, float] | None = None
    step: float | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted so that frame 2 comes before frame 10."""
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in _PARTS.split(path.name)])


_PARTS = re.compile(r"(\d+)")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order; hidden files do not count."""
    return natural_order(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))


def read_pictures(folder: Path, without_colour: bool) -> Frames:
    """A folder of frames, in natural order of their names.

    Args:
        folder: of PNG, JPEG, BMP or TIFF files, all of one size.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: a picture cannot be read or has another size than the first.
    """
    from PIL import Image

    def decoded() -> Iterator[Array]:
        for file in pictures_in(folder):
            try:
                with Image.open(file) as picture:
                    _check_single(picture, file)
                    grey = picture.mode in _GREY
                    values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
                    yield values if grey else _grey(np.asarray(picture.convert("RGB")), without_colour)
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{file}: not readable as a picture ({error}); export the frame again") from error

    return Frames(_stack(decoded(), folder))


def _check_single(picture: Any, file: Path) -> None:
    count = getattr(picture, "n_frames", 1)
    if count > 1:
        raise InputError(f"{file}: holds {count} pictures; export each frame as a file of its own")


def read_label_pictures(folder: Path) -> Array:
    """Label ids of a folder of frames [lateral, depth, frame], int32: grey values, or indices of a palette.

    Raises:
        InputError: a picture is in colour or cannot be read.
    """
    from PIL import Image

    def decoded() -> Iterator[Array]:
        for file in pictures_in(folder):
            try:
                with Image.open(file) as picture:
                    _check_single(picture, file)
                    mode, values = picture.mode, np.asarray(picture)
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{file}: not readable as a picture ({error}); export the mask again") from error
            if mode not in (*_GREY, "P"):
                raise InputError(f"{file}: is in colour ({mode}); a mask holds label ids, as grey values or a palette")
            yield values.astype(np.int32)

    return _stack(decoded(), folder)


def read_video(path: Path, without_colour: bool) -> Frames:
    """All frames of a video; the time between them says nothing about millimetres.

    Args:
        path: anything that FFmpeg decodes.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: the extra ``video`` is not installed, the file cannot be decoded, or ends before the number of
            frames that it announces.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: reading videos needs `pip install uscl[video]`") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video")
            announced = container.streams.video[0].frames
            pictures = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
            array = _stack((_grey(np.asarray(picture, np.uint8), without_colour) for picture in pictures), path)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); export the clip again") from error
    if array.shape[2] < announced:
        raise InputError(f"{path}: cut short: {array.shape[2]} of {announced} frames; fetch it again")
    return Frames(array)


def read_dicom(path: Path, without_colour: bool) -> Frames:
    """The frames of one DICOM file, with the spacing of its ultrasound region calibration.

    Args:
        path: the file.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: the extra ``dicom`` is not installed, or the file cannot be read.
    """
    tags = read_tags(path)
    values = _dicom_pixels(path)
    if values.ndim == 4:
        values = np.stack([_grey(frame, without_colour) for frame in values])
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":  # 0 is white
        values = values.max() - values
    step = tags.get("SpacingBetweenSlices")
    return Frames(values.transpose(2, 1, 0), calibration(tags), abs(float(step)) if step else None)


def read_tags(path: Path) -> Any:
    """The header of a DICOM file.

    Raises:
        InputError: the extra ``dicom`` is not installed, or it is no DICOM file.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{path}: reading DICOM needs `pip install uscl[dicom]`") from error
    try:
        with path.open("rb") as stream:
            tags = pydicom.dcmread(stream, stop_before_pixels=True)
            left = path.stat().st_size - stream.tell()
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not readable as DICOM ({error})") from error
    syntax = getattr(tags.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and not syntax.is_compressed:  # SimpleITK 2.4 fills up what was cut off
        values = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated")
        bits = math.prod(int(tags.get(name) or 1) for name in values)
        if left < bits // 8:
            raise InputError(f"{path}: cut short: {left} of {bits // 8} bytes of pixels; fetch it again")
    return tags


def calibration(tags: Any) -> tuple[float, float] | None:
    """Spacing of the pixels along lateral and depth, mm, if a DICOM header knows it.

    Taken from the first region that is calibrated in centimetres (PS3.3 C.8.5.5), else from PixelSpacing. A region that
    reaches beyond the image belongs to another one, from before somebody scaled it down, and is not believed.
    """
    for region in tags.get("SequenceOfUltrasoundRegions", []):
        inside = (0 <= region.get("RegionLocationMaxX1", 0) <= tags.get("Columns", 0)
                  and 0 <= region.get("RegionLocationMaxY1", 0) <= tags.get("Rows", 0))  # fmt: skip
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        if not inside or units != (_CENTIMETRES, _CENTIMETRES):
            continue
        x, y = (10 * abs(float(region.get(f"PhysicalDelta{axis}", 0))) for axis in "XY")
        if min(x, y) > 0:
            return x, y
    spacing = tags.get("PixelSpacing")
    return (float(spacing[1]), float(spacing[0])) if spacing else None


def _dicom_pixels(path: Path) -> Array:
    """Pixels [frame, depth, lateral] or [frame, depth, lateral, 3]."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise InputError(f"{path}: its pixels cannot be decoded ({lines[-1] if lines else error})") from error
    values: Array = sitk.GetArrayFromImage(image)
    flat = image.GetDimension() == 2
    return values[None] if flat else values


def _grey(picture: Array, without_colour: bool) -> Array:
    """Luma of whole numbers [depth, lateral, 3]; pixels that are not grey become 0 if that is wanted."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        grey: Array = red.copy()
        return grey
    luma: Array = (picture @ _LUMA).round().astype(picture.dtype)
    if without_colour:
        spread = picture.max(-1).astype(np.int64) - picture.min(-1)
        luma[spread > _COLOURED * np.iinfo(picture.dtype).max / 255] = 0
    return luma


def _stack(frames: Iterable[Array], source: Path) -> Array:
    """Frames [depth, lateral] as [lateral, depth, frame]."""
    kept: list[Array] = []
    size = 0
    for frame in frames:
        if kept and frame.shape != kept[0].shape:
            raise InputError(
                f"{source}: frame {len(kept)} has size {frame.shape[::-1]}, the first {kept[0].shape[::-1]}"
            )
        kept.append(frame)
        size += frame.nbytes
        if size > _LARGEST:
            raise InputError(f"{source}: holds more than {_LARGEST >> 30} GiB of frames; cut the clip into sweeps")
    if not kept:
        raise InputError(f"{source}: holds no frame")
    return np.ascontiguousarray(np.stack(kept).transpose(2, 1, 0))
