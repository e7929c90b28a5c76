"""Checking and preparing the cases of a download, one by one: what is wrong with each, and what it holds."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from uscl.data.cache import read_case
from uscl.data.datasets.cases import Case, DataSet
from uscl.data.patches import Preprocessing
from uscl.data.plausible import size_note
from uscl.data.store import is_written, stored_bytes, vanished_ids, write_case
from uscl.data.volume import note_beside
from uscl.errors import InputError

USABLE, UNUSABLE = "usable", "unusable"


@dataclass(frozen=True)
class CaseReport:
    """A line of ``prepare_report.csv``.

    Attributes:
        case: its name.
        status: usable or unusable.
        problem: why it is unusable; one line that names the file.
        patient: whom it was taken from.
        shape: voxels of the prepared grid.
        spacing: of the scan, mm, as far as ``distances`` makes it so.
        distances: where that comes from: measured (the file has it), given, or assumed.
        note: what is odd about a usable case.
        lowest: intensity of the scan.
        highest: intensity of the scan.
        classes: what occurs, with millilitres; with voxels where distances are assumed.
        bytes_raw: image and label files.
        bytes_stored: in the store.
    """

    case: str
    status: str
    problem: str = ""
    patient: str = ""
    shape: str = ""
    spacing: str = ""
    distances: str = ""
    note: str = ""
    lowest: float = np.nan
    highest: float = np.nan
    classes: str = ""
    bytes_raw: int = 0
    bytes_stored: int = 0


def check_and_prepare(case: Case, data_set: DataSet, preprocessing: Preprocessing, folder: Path) -> CaseReport:
    """Reads a case, checks it, and writes it into the store unless it lies there already.

    Readable, three-dimensional, finite, not constant, image and label on one grid, ids known, some foreground of the
    classes in use: a case that fails any of it is reported and not written.

    Raises:
        InputError: the store cannot be written to.
    """
    sources = _sources(case)
    try:
        volume, label = read_case(case, data_set)
        if float(volume.array.min()) == float(volume.array.max()):
            raise InputError(f"{case.image}: every voxel is {volume.array.flat[0]}; export the scan again")
        ids = {i for values in data_set.classes.values() for i in values}
        if label is not None and not np.isin(label.array, list(ids)).any():
            raise InputError(
                f"{case.label}: has no foreground of {', '.join(data_set.classes)}; correct the map, or "
                "take the case away"
            )
    except InputError as error:
        return CaseReport(case.name, UNUSABLE, str(error), case.patient)
    found = {} if label is None else {name: int(data_set.mask(label.array, name).sum()) for name in data_set.classes}
    image, grid = preprocessing.prepare_image(volume)
    if not is_written(folder, preprocessing, case.name, sources):
        prepared = None if label is None else preprocessing.prepare_label(label)
        whole = bool(np.issubdtype(volume.array.dtype, np.integer) or (volume.array == np.rint(volume.array)).all())
        try:
            vanished = () if label is None or prepared is None else vanished_ids(label.array, prepared)
            write_case(
                folder, preprocessing, case.name, image, prepared, grid, whole, sources, vanished, volume.distances
            )
        except (OSError, RuntimeError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            remedy = "make room" if full else "make it writable"
            raise InputError(
                f"{folder}: case {case.name} could not be written ({error}); {remedy} and run again: what "
                "is complete stays"
            ) from error
    return CaseReport(
        case.name,
        USABLE,
        "",
        case.patient,
        " x ".join(map(str, grid.shape)),
        " x ".join(f"{s:.4g}" for s in volume.spacing),
        volume.distances,
        "" if volume.distances == "assumed" else size_note(volume.shape, volume.spacing),
        float(volume.array.min()),
        float(volume.array.max()),
        "; ".join(f"{name} {_size(voxels, volume.voxel_ml)}" for name, voxels in found.items() if voxels),
        sum(raw for raw, _ in sources.values()),
        stored_bytes(folder, preprocessing, case.name),
    )


def _size(voxels: int, voxel_ml: float | None) -> str:
    """In millilitres; in voxels where distances are not known but assumed."""
    return f"{voxels} voxels" if voxel_ml is None else f"{voxels * voxel_ml:.1f} ml"


def _sources(case: Case) -> dict[str, tuple[int, int]]:
    """Size and time of change of the files that a case is made of."""
    files: list[Path] = []
    for path in (case.image, case.label):
        if path is not None:
            files += sorted(path.glob("*")) if path.is_dir() else [path, note_beside(path)]
    stats = {str(file): file.stat() for file in files if file.is_file()}
    found = {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}
    # A sweep that is to be read in another way counts as changed, too.
    return found if case.reading is None else {**found, str(case.reading): (0, 0)}


def write_report(path: Path, reports: Iterable[CaseReport]) -> None:
    """Writes the lines as CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(entry.name for entry in fields(CaseReport))
        writer.writerows(astuple(report) for report in reports)
