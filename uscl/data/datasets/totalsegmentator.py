"""The training data of TotalSegmentator, CT (https://doi.org/10.5281/zenodo.10047292) and MR (.../zenodo.14710732).

::

    ROOT/
      meta.csv                                image_id;...;split (train, val, test), as published
      s0000/ct.nii.gz or mri.nii.gz           1.5 mm
      s0000/segmentations/liver.nii.gz ...    one mask per class: 104 (v1), 117 (v2), 50 (MR)
"""

from __future__ import annotations

import logging
from pathlib import Path

from uscl.data.datasets.cases import SPLITS, Case, DataSet, Split, check_unique
from uscl.data.datasets.folder import volumes
from uscl.data.tables import read_table
from uscl.errors import InputError

log = logging.getLogger(__name__)
FILES = {"ct": "ct.nii.gz", "mr": "mri.nii.gz"}


def read_totalsegmentator(root: Path, modality: str | None = None) -> DataSet:
    """Lists the cases of a TotalSegmentator data set.

    Label ids are places in the sorted list of all classes for which some case has a mask. Name the classes you want in
    ``data.classes``: only their masks are opened.

    Args:
        root: the unpacked download.
        modality: ``ct``, ``mr``, or None for whichever a case has.

    Raises:
        InputError: no such folder or case, or a split in meta.csv that is none.
    """
    root = Path(root).expanduser()
    if modality not in (None, *FILES):
        raise InputError(f"data.modality is {modality!r}; TotalSegmentator has ct and mr")
    wanted = FILES.values() if modality is None else (FILES[modality],)
    images = sorted(image for file in wanted for image in root.glob(f"*/{file}"))
    if not images:
        raise InputError(f"{root}: no */{' or */'.join(wanted)}; give the folder that holds s0000, s0001 ...")
    complete = {image.parent for file in FILES.values() for image in root.glob(f"*/{file}")}
    without = sorted({folder.parent for folder in root.glob("*/segmentations")} - complete)
    problems = {
        folder.name: f"{folder}: has segmentations but neither {' nor '.join(FILES.values())}; unpack the "
        "case again, or remove it"
        for folder in without
    }
    splits = _read_splits(root / "meta.csv")
    masks_of: dict[str, set[str]] = {}
    cases = []
    for image in images:
        folder, name = image.parent / "segmentations", image.parent.name
        masks = volumes(folder)
        if not masks:
            problems[name] = f"{folder}: no masks; unpack the case again, or remove {image.parent}"
            continue
        masks_of[name] = set(masks)
        cases.append(Case(name, image, folder, name, splits.get(name)))
    names = set[str]().union(*masks_of.values())
    partial = [name for name, masks in masks_of.items() if masks != names]
    if partial:
        log.warning(
            "%s: %d of %d cases lack the masks of some classes, first %s, which lacks %s; those classes count "
            "as absent there",
            root,
            len(partial),
            len(cases),
            partial[0],
            ", ".join(sorted(names - masks_of[partial[0]])[:4]),
        )
    label_names = dict(enumerate(sorted(names), start=1))
    return check_unique(DataSet("TotalSegmentator", tuple(cases), label_names, problems=problems))


def _read_splits(path: Path) -> dict[str, Split]:
    if not path.is_file():
        return {}
    rows = read_table(path, delimiter=";")[1]
    found: dict[str, Split] = {}
    for number, row in enumerate(rows, start=2):
        case, side = row.get("image_id"), row.get("split")
        split = next((s for s in SPLITS if s == side), None)
        if not case or split is None:
            raise InputError(f"{path}, line {number}: expected image_id and split (train, val or test), found {row}")
        found[case] = split
    return found
