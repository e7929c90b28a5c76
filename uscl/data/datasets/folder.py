"""The plain layout: images and label maps in folders, as nnU-Net lays them out.

::

    ROOT/
      dataset.json      {"name": "my sweeps", "labels": {"background": 0, "liver": 1, "kidney": 2}}
      imagesTr/         CASE.nii.gz or CASE_0000.nii.gz (also .nii, .nrrd, .mha)
      labelsTr/         CASE.nii.gz, on the image's grid; may lack for unlabelled images
      imagesTs/         optional: the test side
      labelsTs/
      patients.csv      optional: columns case, patient and, if you like, split (train, val or test)

Without patients.csv every case counts as a patient of its own.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from uscl.data.datasets.cases import SPLITS, Case, DataSet, Split, check_unique
from uscl.data.volume import WRITABLE, stem
from uscl.errors import InputError


def read_folder(root: str | Path) -> DataSet:
    """Lists the cases of a folder in the plain layout.

    Raises:
        InputError: the folder or its imagesTr is missing or empty, dataset.json is missing (where there are labels) or
            not as expected, names clash, or patients.csv names a case that is not there.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such data folder; data/README.md shows the layout")
    train = _images(root / "imagesTr")
    if not train:
        raise InputError(f"{root / 'imagesTr'}: no volumes ({', '.join(WRITABLE)}); data/README.md shows the layout")
    sides: list[tuple[dict[str, Path], Path, Split | None]] = [
        (train, root / "labelsTr", None),
        (_images(root / "imagesTs"), root / "labelsTs", "test"),
    ]
    patients = _read_patients(root / "patients.csv")
    cases = []
    for images, label_folder, side in sides:
        labels = _images(label_folder)
        for name, image in images.items():
            patient, split = patients.pop(name, (name, side))
            cases.append(Case(name, image, labels.get(name), patient, split))
    if patients:
        raise InputError(f"{root / 'patients.csv'}: no image for case {', '.join(sorted(patients)[:4])}")
    labelled = any(case.label for case in cases)
    name, label_names = _read_description(root / "dataset.json", required=labelled)
    return check_unique(DataSet(name or root.name, tuple(cases), label_names))


def _images(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.glob("*") if path.name.endswith(WRITABLE) and not path.name.startswith("."))
    return {stem(path).removesuffix("_0000"): path for path in files}


def _read_description(path: Path, required: bool) -> tuple[str, dict[int, str]]:
    if not path.is_file():
        if required:
            raise InputError(
                f'{path}: missing; it names the labels: {{"name": "...", "labels": {{"background": 0, "liver": 1}}}}'
            )
        return "", {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = {int(value): str(name) for name, value in content.get("labels", {}).items()}
        name = str(content.get("name", ""))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path}: expected {{"name": "...", "labels": {{"background": 0, "liver": 1}}}} ({error})'
        ) from error
    labels.pop(0, None)
    if required and not labels:
        raise InputError(f'{path}: names no label; expected e.g. "labels": {{"background": 0, "liver": 1}}')
    return name, labels


def _read_patients(path: Path) -> dict[str, tuple[str, Split | None]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found: dict[str, tuple[str, Split | None]] = {}
    for number, row in enumerate(rows, start=2):
        case, patient, side = row.get("case"), row.get("patient"), row.get("split") or None
        if not case or not patient:
            raise InputError(f"{path}, line {number}: expected the columns case, patient and optionally split")
        if side is not None and side not in SPLITS:
            raise InputError(f"{path}, line {number}: split is {side!r}, expected {', '.join(SPLITS)} or nothing")
        if case in found:
            raise InputError(f"{path}, line {number}: case {case} stands there twice")
        found[case] = (patient, next((split for split in SPLITS if split == side), None))
    return found
