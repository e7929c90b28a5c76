"""DICOM: clips of several frames, and series of one slice or frame per file.

Headers are read by pydicom (the extra ``dicom``), pixels by SimpleITK, which turns MONOCHROME1 over. A clip is indexed
[lateral, depth, frame].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from uscl.data.frames import Frames, luma, natural_order, stack
from uscl.data.volume import Array, Volume
from uscl.errors import InputError

ENDINGS = (".dcm", ".dicom", ".ima")
_CENTIMETRES = 3  # code of the unit in the ultrasound region calibration, PS3.3 C.8.5.5
_SCANS = ("CT", "MR", "PT")
_PARALLEL = 1e-3  # of a direction cosine
_ASKEW_MM = 0.5


@dataclass(frozen=True)
class Header:
    """What is needed of a DICOM header.

    Attributes:
        path: the file.
        modality: US, CT, ...
        frames: pictures in the file.
        series: its UID.
        number: of the instance within its series, or None.
        spacing: of the pixels along lateral and depth, mm; None where the file does not say.
        step: from frame to frame, mm; None where the file does not say.
        turn: direction cosines of rows and columns, LPS, or None.
        place: of the first pixel, mm, LPS, or None.
    """

    path: Path
    modality: str
    frames: int
    series: str
    number: int | None
    spacing: tuple[float, float] | None
    step: float | None
    turn: tuple[float, ...] | None
    place: tuple[float, ...] | None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder in natural order, without the directory that media carry.

    Raises:
        InputError: a file is called DICOM and is none; left out, it would lack among the frames without a word.
    """
    found = []
    for path in folder.iterdir():
        if not path.is_file() or path.name.upper() == "DICOMDIR" or path.name.startswith("."):
            continue
        if is_dicom(path):
            found.append(path)
        elif path.suffix.lower() in ENDINGS:
            raise InputError(f"{path}: is no DICOM file; fetch it again, or take it away")
    return natural_order(found)


def read_header(path: Path) -> Header:
    """The header of a DICOM file.

    Raises:
        InputError: the extra ``dicom`` is not installed, the file is no DICOM, holds values that are none, or ends
            before its pixels do.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{path}: reading DICOM needs `pip install uscl[dicom]`") from error
    try:
        with path.open("rb") as stream:
            tags = pydicom.dcmread(stream, stop_before_pixels=True)
            left = path.stat().st_size - stream.tell()
        found = _header(path, tags)
        syntax = tags.file_meta.TransferSyntaxUID
        needed = 0 if syntax.is_compressed or syntax.is_deflated else _bytes_of_pixels(tags)
    except Exception as error:  # pydicom raises whatever a damaged file makes it
        raise InputError(f"{path}: not readable as DICOM ({error}); export it again") from error
    if left < needed:  # SimpleITK 2.4 fills up what was cut off
        raise InputError(f"{path}: cut short: {left} of {needed} bytes of pixels; fetch it again")
    return found


def _header(path: Path, tags: Any) -> Header:
    def numbers(name: str, count: int) -> tuple[float, ...] | None:
        values = tags.get(name)
        return tuple(float(value) for value in values) if values is not None and len(values) == count else None

    number, step = tags.get("InstanceNumber"), tags.get("SpacingBetweenSlices")
    return Header(
        path=path,
        modality=str(tags.get("Modality") or ""),
        frames=int(tags.get("NumberOfFrames") or 1),
        series=str(tags.get("SeriesInstanceUID") or ""),
        number=None if number is None else int(number),
        spacing=_calibration(tags),
        step=abs(float(step)) or None if step is not None else None,
        turn=numbers("ImageOrientationPatient", 6),
        place=numbers("ImagePositionPatient", 3),
    )


def _calibration(tags: Any) -> tuple[float, float] | None:
    """Spacing along lateral and depth, mm: of the first region calibrated in centimetres, else PixelSpacing.

    A region that reaches beyond the image belongs to another one, from before somebody scaled it down, and is not
    believed.
    """
    for region in tags.get("SequenceOfUltrasoundRegions") or []:
        inside = 0 <= region.get("RegionLocationMaxX1", 0) <= tags.get("Columns", 0) and 0 <= region.get(
            "RegionLocationMaxY1", 0
        ) <= tags.get("Rows", 0)
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        if inside and units == (_CENTIMETRES, _CENTIMETRES):
            x, y = (10 * abs(float(region.get(f"PhysicalDelta{axis}") or 0)) for axis in "XY")
            if min(x, y) > 0:
                return x, y
    spacing = tags.get("PixelSpacing")
    return None if spacing is None else (float(spacing[1]), float(spacing[0]))


def _bytes_of_pixels(tags: Any) -> int:
    sizes = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated")
    whole = math.prod(int(tags.get(name) or 1) for name in sizes) // 8
    # Two neighbouring pixels share their colours, PS3.3 C.7.6.3.1.2.
    return whole * 2 // 3 if tags.get("PhotometricInterpretation") == "YBR_FULL_422" else whole


def read_dicom(path: Path, without_colour: bool) -> Frames:
    """The frames of one DICOM file.

    Args:
        path: the file.
        without_colour: blacken coloured pixels.

    Raises:
        InputError: the extra ``dicom`` is not installed, the file cannot be read, or it holds frames of a CT, MR or PET
            scan, whose places in the patient would be lost.
    """
    return _frames_of(read_header(path), without_colour)


def _frames_of(header: Header, without_colour: bool) -> Frames:
    if header.modality in _SCANS:
        raise InputError(
            f"{header.path}: frames of a scan ({header.modality}) without a place of their own; convert "
            "the scan to NIfTI, or give the folder of its series"
        )
    try:
        image = sitk.ReadImage(str(header.path))
    except RuntimeError as error:
        raise InputError(f"{header.path}: its pixels cannot be decoded ({_last_line(error)})") from error
    values: Array = sitk.GetArrayFromImage(image)  # [frame, depth, lateral], and 3 where in colour
    pictures = values[None] if image.GetDimension() == 2 else values
    if pictures.ndim == 4:
        pictures = np.stack([luma(picture, without_colour) for picture in pictures])
    return Frames(stack(pictures, header.path), header.spacing, header.step)


def read_series(folder: Path, without_colour: bool) -> Volume | Frames:
    """One series: a volume in space where every file says where it lies, else frames in order of their numbers.

    Args:
        folder: of DICOM files; others are left alone.
        without_colour: blacken coloured pixels of frames.

    Raises:
        InputError: no DICOM in it, several series or orientations, files of several frames, slices or frames missing
            or there twice, slices askew, or a file that cannot be read.
    """
    headers = [read_header(file) for file in series_files(folder)]
    if not headers:
        raise InputError(f"{folder}: is a folder that holds neither pictures nor DICOM files")
    series = {header.series for header in headers}
    if len(series) > 1:
        raise InputError(f"{folder}: holds {len(series)} DICOM series; put each into a folder of its own")
    if len(headers) > 1 and any(header.frames > 1 for header in headers):
        raise InputError(f"{folder}: holds {len(headers)} files, some with several frames; name each file by itself")
    positions = slice_positions(headers)
    if positions is not None and headers[0].frames == 1:
        return _volume(folder, headers, positions)
    if positions is None and all(h.modality in _SCANS and h.turn and h.place for h in headers):
        raise InputError(f"{folder}: holds slices of several orientations; put those of each into a folder of its own")
    numbers = [header.number for header in headers]
    if None not in numbers:
        if len(set(numbers)) < len(numbers):
            raise InputError(f"{folder}: several files have the same instance number; keep one of each")
        headers.sort(key=lambda header: header.number or 0)
        _check_gaps(folder, [header.number or 0 for header in headers])
    found = [_frames_of(header, without_colour) for header in headers]
    pictures = (picture for frames in found for picture in frames.array.transpose(2, 1, 0))
    return Frames(stack(pictures, folder), found[0].spacing, found[0].step)


def _check_gaps(folder: Path, numbers: Sequence[int]) -> None:
    """Refuses numbers in order that do not all lie equally far apart."""
    usual = min(b - a for a, b in pairwise(numbers)) if len(numbers) > 1 else 1
    for before, after in pairwise(numbers):
        if after - before != usual:
            raise InputError(
                f"{folder}: instance {before} is followed by {after}; frames in between are missing, "
                "export the series again"
            )


def slice_positions(headers: Sequence[Header]) -> NDArray[np.float64] | None:
    """Where slices lie along their common normal, mm; None unless all say so and are parallel."""
    turns = [header.turn for header in headers if header.turn is not None]
    places = [header.place for header in headers if header.place is not None]
    if not headers or len(turns) < len(headers) or len(places) < len(headers):
        return None
    if np.abs(np.array(turns) - turns[0]).max() > _PARALLEL:
        return None
    found: NDArray[np.float64] = np.array(places) @ np.cross(turns[0][:3], turns[0][3:])
    return found


def _volume(folder: Path, headers: Sequence[Header], positions: NDArray[np.float64]) -> Volume:
    order = np.argsort(positions).tolist()
    gaps = np.diff(positions[order])
    if len(headers) < 2 or gaps.min() <= 0 or gaps.max() > 1.05 * gaps.min() + 1e-3:
        found = "a single slice" if len(headers) < 2 else f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart"
        raise InputError(f"{folder}: {found}; slices are missing or there twice, export the series again")
    places = np.array([headers[i].place for i in order], float)
    turn = headers[order[0]].turn
    assert turn is not None
    along = np.outer(positions[order] - positions[order[0]], np.cross(turn[:3], turn[3:]))
    if np.abs(places - places[0] - along).max() > _ASKEW_MM:
        raise InputError(f"{folder}: the slices lie askew (a tilted gantry); resample the series to a straight volume")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(headers[i].path) for i in order])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: the slices do not make a volume ({_last_line(error)})") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: is in colour; expected one value per voxel")
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(array, image.GetSpacing(), image.GetOrigin(), direction, folder, "measured")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
