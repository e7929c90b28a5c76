"""Ultrasound sweeps of any kind, listed in a manifest.

::

    ROOT/
      sweeps.csv        patient,sweep,image,label,site,split,spacing,step,mask
      dataset.json      optional: {"name": "...", "labels": {"background": 0, "liver": 1}}

``image`` is a volume, a video, a DICOM file or a folder of frames or of one DICOM series; ``label`` a volume or a
folder of frames with label ids, empty for none. Paths are relative to the manifest. Needed are patient, sweep, image.
``spacing`` (mm, one number or lateral and depth) and ``step`` (mm from frame to frame) stand for what the files do not
know, or are the word ``assumed``; ``mask`` names rules of :class:`~uscl.data.sweeps.SweepReading`. Columns of other
names are left alone. Without dataset.json the labels are :data:`CLASSES`.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from uscl.data.datasets.cases import Case, DataSet, check_unique, parse_split
from uscl.data.datasets.folder import read_description
from uscl.data.dicom import ENDINGS as DICOM
from uscl.data.dicom import is_dicom, read_header, series_files
from uscl.data.frames import PICTURES, VIDEOS, pictures_in
from uscl.data.sweeps import VOLUMES, SweepReading, knows_spacing, parse_reading
from uscl.data.tables import Row, read_table
from uscl.data.volume import stem
from uscl.errors import InputError

log = logging.getLogger(__name__)
MANIFEST = "sweeps.csv"
COLUMNS = ("patient", "sweep", "image", "label", "site", "split", "spacing", "step", "mask")
CLASSES = {1: "pleural effusion", 2: "seroperitoneum", 3: "liver", 4: "spleen", 5: "kidney"}
"""Label ids of the paper's five classes, where no dataset.json says otherwise."""
_LABEL_FOLDERS = ("label", "mask", "seg", "annotation")
_KIND = re.compile(r"^(image|img|frame|video|clip|sweep|label|mask|seg(mentation)?|annotation)s?")
_LABEL_ENDINGS = ("_label", "_labels", "_seg", "_mask", "_gt")


def read_ultrasound(root: Path, modality: str | None = None) -> DataSet:
    """Lists the sweeps of a manifest.

    Args:
        root: the folder of ``sweeps.csv``, or a manifest of another name.
        modality: a site of the manifest (column ``site``), e.g. pleural or abdominal; None for all.

    Raises:
        InputError: there is no manifest, it lacks a column, holds no sweep or none of the site, a line is not as
            expected, or names are not unique.
    """
    root = Path(root).expanduser()
    manifest = root / MANIFEST if root.is_dir() else root
    if not manifest.is_file():
        raise InputError(
            f"{manifest}: no such manifest of sweeps; write one with `uscl prepare ultrasound "
            f"--root FOLDER --new-manifest {MANIFEST}`"
        )
    cases, problems, sites = [], {}, set()
    for number, row in enumerate(read_rows(manifest)[1], start=2):
        where = f"{manifest}, line {number}"
        if not row["patient"] or not row["sweep"] or not row["image"]:
            raise InputError(f"{where}: patient, sweep and image must be given")
        if row["sweep"].startswith(".") or set(row["sweep"]) & set("/\\"):
            raise InputError(f"{where}: sweep is {row['sweep']!r}; it names files, so without / and no dot in front")
        sites.add(row["site"])
        if modality is not None and row["site"].lower() != modality.lower():
            continue
        image, label = (manifest.parent / row[key] if row[key] else None for key in ("image", "label"))
        assert image is not None
        missing = [path for path in (image, label) if path is not None and not path.exists()]
        if missing:
            problems[row["sweep"]] = f"{where}: {missing[0]} is not there; correct the path or take the line away"
            continue
        cases.append(
            Case(row["sweep"], image, label, row["patient"], parse_split(row["split"], where), _reading(row, where))
        )
    if not cases and not problems:
        found = (
            f"no sweep of site {modality!r}; it has {', '.join(sorted(sites))}" if modality and sites else "no sweep"
        )
        raise InputError(f"{manifest}: holds {found}")
    description = read_description(manifest.parent / "dataset.json")
    names = description.label_names or CLASSES
    data_set = DataSet(
        description.name or manifest.resolve().parent.name, tuple(cases), names, description.regions, problems
    )
    return check_unique(data_set)


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and lines of a manifest, with every column of :data:`COLUMNS` and whatever others there are.

    Returns:
        All columns in the order of the file, those that it lacks last; the lines, stripped, empty where nothing stands.

    Raises:
        InputError: the columns patient, sweep or image are not there, or it cannot be read.
    """
    columns, rows = read_table(path)
    lacking = [column for column in COLUMNS[:3] if column not in columns]
    if lacking:
        raise InputError(f"{path}: lacks the columns {', '.join(lacking)}; expected {','.join(COLUMNS)}")
    columns += [column for column in COLUMNS if column not in columns]
    return columns, [{column: row.get(column, "").strip() for column in columns} for row in rows]


def _reading(row: dict[str, str], where: str) -> SweepReading:
    try:
        return parse_reading(row["spacing"], row["step"], row["mask"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def write_manifest(root: Path, target: Path) -> int:
    """Writes a manifest of what lies in a folder, for its owner to correct.

    The patient is guessed from the first folder below ``root``, else from the file name; labels are found in folders
    next to the images that are called labels or masks, and by endings such as ``_label``. Distances that the files do
    not know are ``assumed``. Single pictures next to other sweeps, and labels without a sweep, are left out and listed.

    Args:
        root: where to look, with all folders below.
        target: file to write; never one that exists.

    Returns:
        The number of sweeps.

    Raises:
        InputError: the file exists or cannot be written, there is no such folder, or no sweep in it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if target.exists():
        raise InputError(f"{target}: exists already; it may have been edited. Give another name")
    found = list(_sweeps(root))
    labels: dict[tuple[str, ...], list[Path]] = {}
    for path in found:
        if _is_label(path, root):
            labels.setdefault(_key(path, root), []).append(path)
    sweeps = [path for path in found if not _is_label(path, root)]
    if not sweeps:
        raise InputError(f"{root}: no sweep found (volumes, videos, DICOM, or folders of nothing but frames)")
    base = target.parent.resolve()
    rows: list[tuple[str, ...]] = []
    for path in sweeps:
        below = path.relative_to(root)
        name = "_".join((*below.parts[:-1], stem(path)))
        while any(row[1] == name for row in rows):  # a.mp4 beside a.avi
            name += "_2"
        candidates = labels.pop(_key(path, root), [])
        label = candidates[0] if len(candidates) == 1 else None
        if len(candidates) > 1:
            log.warning("%s: %s could be its labels; none is entered", path, " or ".join(map(str, candidates)))
        try:
            distance = "" if knows_spacing(path) else "assumed"
        except InputError as error:  # uscl prepare will report it
            log.warning("%s", error)
            distance = ""
        rows.append(
            (
                below.parts[0] if len(below.parts) > 1 else name,
                name,
                _relative(path, base),
                _relative(label, base) if label else "",
                "",
                "",
                distance,
                distance,
                "",
            )
        )
    for path in (path for paths in labels.values() for path in paths):
        log.warning("%s: looks like labels, but no sweep goes with it; left out", path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([COLUMNS, *rows])
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error})") from error
    return len(rows)


def _sweeps(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder that are a sweep each, in order."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file()]
    pictures = pictures_in(folder)
    if len(pictures) > 1 and len(pictures) == len(inside):
        yield folder
        return
    if pictures:
        log.info(
            "%s: %d pictures next to other files are left out; put frames into a folder of their own",
            folder,
            len(pictures),
        )
    # Files named by their UID seem to have an ending.
    known = (*VOLUMES, *VIDEOS, *PICTURES)
    series = [
        path
        for path in files
        if path.name.upper() != "DICOMDIR"
        and not path.name.lower().endswith(known)
        and (path.suffix.lower() in DICOM or is_dicom(path))
    ]
    if len(series) > 1 and len(series) == len(inside) and _single_frames(folder):
        yield folder
        return
    for path in inside:
        if path.is_dir():
            yield from _sweeps(path)
        elif path.name.lower().endswith((*VOLUMES, *VIDEOS)) or path in series:
            yield path


def _single_frames(folder: Path) -> bool:
    try:
        return all(read_header(path).frames == 1 for path in series_files(folder))
    except InputError:  # reported when the folder is read
        return True


def _is_label(path: Path, root: Path) -> bool:
    below = path.relative_to(root)
    if not path.is_dir() and not path.name.lower().endswith(VOLUMES):
        return False
    in_folder = any(part.lower().startswith(_LABEL_FOLDERS) for part in below.parts[:-1])
    return in_folder or stem(path).lower().endswith(_LABEL_ENDINGS)


def _key(path: Path, root: Path) -> tuple[str, ...]:
    """By what image and label find each other: where they lie and their name, but for words such as masks."""
    name = stem(path)
    for ending in (*_LABEL_ENDINGS, "_0000"):
        name = name.removesuffix(ending)
    folders = (_KIND.sub("", part.lower()) for part in path.relative_to(root).parts[:-1])
    return (*filter(None, folders), name)


def _relative(path: Path, base: Path) -> str:
    whole = path.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else os.fspath(whole)
