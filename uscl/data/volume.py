"""Volumes with their geometry, and the one module that talks to SimpleITK about files and axis order.

SimpleITK's arrays are indexed [z, y, x]; everything else in this package is indexed [x, y, z].
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from uscl.errors import InputError

# NIfTI data type codes of floating-point values.
_NIFTI_FLOATS = {"16": "f4", "64": "f8"}
# Of complex numbers and colours.
_NIFTI_PARTS = ("32", "128", "1792", "2304")
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
# What ITK calls NIfTI's `descrip`, and writes as a field of this name into NRRD and MHA.
_NOTES, _NOTED = "ITK_FileNotes", "uscl: distances "
Array = NDArray[Any]
Index = tuple[int, int, int]
Triple = tuple[float, float, float]
Distances = Literal["measured", "given", "assumed"]
"""Where the millimetres of a volume come from: its file, the user, or an assumption, which makes them worth nothing."""


def vaguest(*origins: Distances) -> Distances:
    """What can be said of distances that rest on several: assumed if any of them is, else given if any is."""
    return max(origins, key=("measured", "given", "assumed").index)


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D array and where its voxels lie.

    Attributes:
        array: values [x, y, z], the file's voxel indices i, j, k.
        spacing: distance of neighbouring voxels along x, y, z, mm.
        origin: position of voxel (0, 0, 0), mm, LPS.
        direction: 3 x 3; column a is the LPS direction in which index a grows.
        path: the file it was read from.
        distances: whether the spacing was measured (its file has it), given by the user, or assumed along any axis.
            Files that :func:`write_volume` wrote keep it.
    """

    array: Array
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: Array = field(default_factory=lambda: np.eye(3))
    path: Path | None = None
    distances: Distances = "given"

    @property
    def shape(self) -> Index:
        """Voxels along x, y, z."""
        nx, ny, nz = self.array.shape
        return nx, ny, nz

    @property
    def name(self) -> str:
        """The file, or a stand-in, for messages."""
        return str(self.path) if self.path else "the volume in memory"

    def with_array(self, array: Array) -> Volume:
        """Other values on the same grid.

        Raises:
            ValueError: the shape differs.
        """
        if array.shape != self.array.shape:
            raise ValueError(f"expected values of shape {self.array.shape}, got {array.shape}")
        return replace(self, array=array, path=None)

    @property
    def voxel_ml(self) -> float | None:
        """Millilitres of one voxel; None where distances are assumed."""
        return None if self.distances == "assumed" else float(np.prod(self.spacing)) / 1000

    def to_index(self, point: Sequence[float]) -> Index:
        """The voxel nearest to a physical point (LPS, mm), inside the volume or not."""
        offset = np.linalg.solve(self.direction, np.asarray(point, float) - self.origin)
        i, j, k = np.rint(offset / self.spacing).astype(int).tolist()
        return i, j, k

    def same_grid(self, other: Volume, tolerance: float = 1e-2) -> str | None:
        """None if both have the same grid, else what differs; positions may differ by ``tolerance`` of a voxel."""
        if self.shape != other.shape:
            return f"size {self.shape} against {other.shape}"
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * (np.array(self.shape) - 1)
        ours, theirs = (v.origin + (corners * v.spacing) @ v.direction.T for v in (self, other))
        if np.abs(ours - theirs).max() > tolerance * min(self.spacing):
            return (
                f"spacing {self.spacing}, origin {self.origin}, direction {self.direction.ravel().tolist()} against "
                f"{other.spacing}, {other.origin}, {other.direction.ravel().tolist()}"
            )
        return None


def read_image(path: str | os.PathLike[str]) -> Volume:
    """Reads an image volume (NIfTI, NRRD, MHA/MHD or anything else SimpleITK reads).

    Raises:
        InputError: no such file, not readable, cut short, not a single-channel 3D volume of at least two slices along
            every axis, without a positive spacing, with values that are not finite, or the same value everywhere.
    """
    volume = _read(Path(path).expanduser())
    array = volume.array
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinite values; repair or re-export the image")
    if array.min() == array.max():
        raise InputError(f"{path}: every voxel is {array.flat[0]}; the image is empty, export it again")
    return volume


def read_label(path: str | os.PathLike[str]) -> Volume:
    """Reads a label map: whole numbers, 0 for background, returned as int32.

    Raises:
        InputError: as :func:`read_image`, or values that are not whole numbers. A map without foreground passes here;
            it depends on the use whether that is an error.
    """
    volume = _read(Path(path).expanduser())
    array = volume.array
    if not (np.isfinite(array).all() and (array == np.rint(array)).all() and array.min() >= 0):
        raise InputError(f"{path}: a label map holds whole numbers from 0 upwards; this one holds others")
    return replace(volume, array=array.astype(np.int32))


def write_volume(path: str | os.PathLike[str], volume: Volume, overwrite: bool = False) -> Path:
    """Writes a volume in one step: a reader never meets half of it, and nothing is overwritten unasked.

    Where its millimetres come from is noted in the header (NIfTI ``descrip``, else a field of its own). Assumed ones
    are also noted in a file beside it, for programs that write headers anew: :func:`note_beside`.

    Args:
        path: ends in ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``; missing folders are made.
        volume: what to write.
        overwrite: replace a file that exists.

    Raises:
        InputError: another ending, the file exists, or the folder cannot be written to.
    """
    target = check_writable(path, overwrite)
    note = note_beside(target)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in volume.spacing])
    image.SetOrigin([float(o) for o in volume.origin])
    image.SetDirection([float(d) for d in volume.direction.ravel()])
    if volume.distances != "measured":
        image.SetMetaData(_NOTES, f"{_NOTED}{volume.distances}")
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(partial), useCompression=True)
        if volume.distances == "assumed":  # first: the file must not be met without it
            _write_note(note)
        partial.replace(target)
        if volume.distances != "assumed":
            note.unlink(missing_ok=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{target}: cannot be written ({_last_line(error)})") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def note_beside(path: Path) -> Path:
    """The file that says that the millimetres of ``mask.nii.gz`` are assumed: ``mask.nii.gz.distances.json``."""
    return path.with_name(f"{path.name}.distances.json")


def _write_note(note: Path) -> None:
    content = {
        "distances": "assumed",
        "meaning": "the millimetres in the header were assumed by uscl: lengths and volumes cannot be taken from it",
    }
    partial = note.with_name(f".{os.getpid()}-{note.name}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(note)


def _noted_distances(path: Path, reader: sitk.ImageFileReader) -> Distances:
    """Where the millimetres of a file come from: what :func:`write_volume` noted, else its header has measured them.

    Raises:
        InputError: the note beside it cannot be read.
    """
    notes = reader.GetMetaData(_NOTES) if reader.HasMetaDataKey(_NOTES) else ""
    noted = notes.removeprefix(_NOTED) if notes.startswith(_NOTED) else "measured"
    if (note := note_beside(path)).is_file():
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))["distances"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{note}: not readable; expected what uscl wrote beside {path.name}") from error
    if noted not in get_args(Distances):
        raise InputError(f"{path}: its distances are noted as {noted!r}; expected {', '.join(get_args(Distances))}")
    return cast("Distances", noted)


def check_writable(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Raises what :func:`write_volume` would raise for this path, before any work is done for it."""
    target = Path(path).expanduser()
    if not target.name.endswith(WRITABLE):
        raise InputError(f"{target}: expected a name ending in one of {', '.join(WRITABLE)}")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; give another name, or --overwrite to replace it")
    return target


def stem(path: str | os.PathLike[str]) -> str:
    """File name without its ending; ``.nii.gz`` counts as one ending, and folders have none."""
    name = Path(path).name
    if Path(path).is_dir():
        return name
    return name.removesuffix(".gz").rsplit(".", 1)[0] if "." in name else name


def _read(path: Path) -> Volume:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected one volume file (NIfTI, NRRD, MHA)")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); fetch or export it again")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_nifti_content(path, reader)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{path}: not readable as a volume; it is damaged or of another kind ({_last_line(error)})"
        ) from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise InputError(
            f"{path}: has {image.GetDimension()} dimensions of size {image.GetSize()}, expected 3; "
            + ("stack the frames to a volume" if image.GetDimension() == 2 else "extract one volume of the series")
        )
    channels = image.GetNumberOfComponentsPerPixel()
    if channels != 1:
        raise InputError(f"{path}: has {channels} values per voxel, expected 1; convert colour to one channel")
    if min(image.GetSize()) < 2:
        raise InputError(f"{path}: has size {image.GetSize()}, a single slice; expected at least 2 along every axis")
    sx, sy, sz = image.GetSpacing()
    if not min(sx, sy, sz) > 0:
        raise InputError(f"{path}: has a voxel spacing of {image.GetSpacing()} mm; correct the header")
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if np.iscomplexobj(array):
        raise InputError(f"{path}: holds complex numbers; export their magnitude")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(array, (sx, sy, sz), image.GetOrigin(), direction, path, _noted_distances(path, reader))


def _check_nifti_content(path: Path, reader: sitk.ImageFileReader) -> None:
    """Looks at the bytes of a NIfTI file for what ITK hides when it reads it.

    ITK fills up a file that was cut short with zeros, and turns NaN and infinite values into zeros, without a word.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    # The bits of colours and of complex numbers are given for all their parts together.
    parts = 1 if reader.GetMetaData("datatype") in _NIFTI_PARTS else reader.GetNumberOfComponents()
    voxels = int(np.prod([int(size) for size in reader.GetSize()])) * parts
    offset = int(float(reader.GetMetaData("vox_offset")))
    expected = offset + voxels * int(reader.GetMetaData("bitpix")) // 8
    floating = _NIFTI_FLOATS.get(reader.GetMetaData("datatype"))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(offset)
            order = "<" if header[:4] in (b"\x5c\x01\x00\x00", b"\x1c\x02\x00\x00") else ">"  # 348 or 540: its size
            found = len(header)
            while chunk := stream.read(1 << 24):
                found += len(chunk)
                if floating and not np.isfinite(np.frombuffer(chunk[: len(chunk) // 8 * 8], order + floating)).all():
                    raise InputError(f"{path}: holds NaN or infinite values; repair or re-export the image")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut short ({error}); fetch it again") from error
    if found < expected:
        raise InputError(f"{path}: cut short: {found} of {expected} bytes; fetch it again")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
