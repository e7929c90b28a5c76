"""Simulated scans in the layout of AMOS22 (https://amos22.grand-challenge.org).

::

    OUT/
      dataset.json                 labels 0 to 15 as AMOS names them, training and validation lists
      imagesTr/ labelsTr/          amos_0001.nii.gz: CT up to 0500, MR from 0507, as in AMOS
      imagesVa/ labelsVa/          the test side (AMOS publishes no test labels)
      parameters/, study.json, contact_sheet.png

Bladder and prostate lie below what the phantom covers and do not occur.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uscl.data.datasets.amos import LABEL_NAMES as PUBLISHED_NAMES
from uscl.data.volume import read_image, read_label, write_volume
from uscl.phantom.ct import PHASES, render_ct
from uscl.phantom.layouts.scans import ScanStudy, as_stored, is_mr, labels_of, scanned_torso
from uscl.phantom.mr import render_mr
from uscl.phantom.structures import Structure
from uscl.phantom.study import Layout, Patient, Preview, StudyCase
from uscl.seeds import derive_seed

LABEL_NAMES = PUBLISHED_NAMES | {8: "arota"}
"""As AMOS's own dataset.json spells them."""

_S = Structure
LABEL_OF: dict[Structure, int] = {
    _S.SPLEEN: 1,
    _S.KIDNEY_RIGHT: 2,
    _S.PYRAMID_RIGHT: 2,
    _S.SINUS_RIGHT: 2,
    _S.KIDNEY_LEFT: 3,
    _S.PYRAMID_LEFT: 3,
    _S.SINUS_LEFT: 3,
    _S.GALLBLADDER: 4,
    _S.OESOPHAGUS: 5,
    _S.LIVER: 6,
    _S.LIVER_VESSEL: 6,
    _S.STOMACH: 7,
    _S.STOMACH_GAS: 7,
    _S.AORTA: 8,
    _S.VENA_CAVA: 9,
    _S.PANCREAS: 10,
    _S.ADRENAL_RIGHT: 11,
    _S.ADRENAL_LEFT: 12,
    _S.DUODENUM: 13,
}


def cases(settings: ScanStudy, patient: Patient) -> list[StudyCase]:
    """One scan per patient."""
    return [StudyCase(f"amos_{(507 if is_mr(patient) else 1) + patient.position:04d}", patient, {})]


def simulate(
    folder: Path, settings: ScanStudy, missing: Sequence[StudyCase]
) -> Iterator[tuple[StudyCase, dict[str, Any]]]:
    """Writes one patient's scan."""
    (case,) = missing
    patient = case.patient
    seed = derive_seed("amos", settings.seed, patient.split, patient.number)
    random = np.random.default_rng(seed)
    in_plane = float(random.uniform(1.2, 1.8)) * settings.coarsen
    spacing = (in_plane, in_plane, float(random.uniform(2.0, 5.0)) * settings.coarsen)
    anatomy = scanned_torso(seed, spacing)
    image: Any
    if is_mr(patient):
        image, drawn = render_mr(anatomy, "t1" if random.random() < 0.5 else "t2", random)
    else:
        image, drawn = render_ct(anatomy, PHASES[int(random.integers(3))], random)
    labels = labels_of(anatomy, LABEL_OF)
    side = "Va" if patient.split == "test" else "Tr"
    for kind, values in (("images", image), ("labels", labels)):
        volume = as_stored(values, spacing, anatomy.origin)
        write_volume(folder / f"{kind}{side}" / f"{case.name}.nii.gz", volume, overwrite=True)
    yield case, {"patient": anatomy.parameters, "spacing_mm": spacing, **drawn}


def finish(folder: Path, settings: ScanStudy, cases: Sequence[StudyCase]) -> None:
    """Writes dataset.json."""

    def listed(side: str, wanted: bool) -> list[dict[str, str]]:
        names = [case.name for case in cases if (case.patient.split == "test") == wanted]
        return [{"image": f"./images{side}/{n}.nii.gz", "label": f"./labels{side}/{n}.nii.gz"} for n in names]

    description = {
        "name": "AMOS",
        "description": "simulated in the layout of AMOS22",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(i): name for i, name in LABEL_NAMES.items()},
        "training": listed("Tr", False),
        "validation": listed("Va", True),
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def preview(folder: Path, case: StudyCase) -> Preview:
    """The slice with most labels."""
    side = "Va" if case.patient.split == "test" else "Tr"
    return largest_slice(folder / f"images{side}/{case.name}.nii.gz", folder / f"labels{side}/{case.name}.nii.gz")


def largest_slice(image_file: Path, label_file: Path) -> Preview:
    """The axial slice with most labelled voxels of a scan stored in RAS, the patient's right on the left."""
    image, label = read_image(image_file), read_label(label_file).array
    k = int((label > 0).sum((0, 1)).argmax())
    shown = image.array[::-1, ::-1, k].T
    low, high = (-160, 240) if image.array.min() < -500 else (None, None)
    return Preview(np.clip(shown, low, high), label[::-1, ::-1, k].T, image.spacing[1] / image.spacing[0])


LAYOUT = Layout("amos", cases, simulate, finish, preview, LABEL_NAMES)
