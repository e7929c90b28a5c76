"""Simulated scans in the layout of the TotalSegmentator training data (https://doi.org/10.5281/zenodo.10047292).

::

    OUT/
      meta.csv                                image_id;age;gender;institute;study_type;split
      s0000/ct.nii.gz or mri.nii.gz           1.5 mm
      s0000/segmentations/liver.nii.gz ...    one binary mask per class
      parameters/, study.json, contact_sheet.png

The phantom has 22 of the 117 classes; masks of the others are not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uscl.data.datasets.totalsegmentator import FILES
from uscl.data.volume import read_image, read_label, write_volume
from uscl.phantom.ct import PHASES, render_ct
from uscl.phantom.layouts.scans import ScanStudy, as_stored, is_mr, scanned_torso
from uscl.phantom.mr import CONTRASTS, render_mr
from uscl.phantom.structures import Structure
from uscl.phantom.study import Layout, Patient, Preview, StudyCase
from uscl.seeds import derive_seed

_S = Structure
CLASSES: dict[str, tuple[Structure, ...]] = {
    "spleen": (_S.SPLEEN,),
    "kidney_right": (_S.KIDNEY_RIGHT, _S.PYRAMID_RIGHT),
    "kidney_left": (_S.KIDNEY_LEFT, _S.PYRAMID_LEFT),
    "gallbladder": (_S.GALLBLADDER,),
    "liver": (_S.LIVER, _S.LIVER_VESSEL),
    "stomach": (_S.STOMACH, _S.STOMACH_GAS),
    "pancreas": (_S.PANCREAS,),
    "adrenal_gland_right": (_S.ADRENAL_RIGHT,),
    "adrenal_gland_left": (_S.ADRENAL_LEFT,),
    "lung_lower_lobe_left": (_S.LUNG_LEFT,),
    "lung_lower_lobe_right": (_S.LUNG_RIGHT,),
    "esophagus": (_S.OESOPHAGUS,),
    "small_bowel": (_S.BOWEL, _S.BOWEL_GAS),
    "duodenum": (_S.DUODENUM,),
    "heart": (_S.HEART,),
    "aorta": (_S.AORTA,),
    "inferior_vena_cava": (_S.VENA_CAVA,),
    "portal_vein_and_splenic_vein": (_S.PORTAL_VEIN,),
    "vertebrae_L1": (_S.VERTEBRA,),
    "rib_left_10": (_S.RIB,),
    "autochthon_left": (),
    "spinal_cord": (),
}
# Empty tuples stand for classes that real cases have as empty masks too.
SPACING = 1.5


def cases(settings: ScanStudy, patient: Patient) -> list[StudyCase]:
    """One scan per patient."""
    return [StudyCase(f"s{patient.position:04d}", patient, {"file": FILES["mr" if is_mr(patient) else "ct"]})]


def simulate(
    folder: Path, settings: ScanStudy, missing: Sequence[StudyCase]
) -> Iterator[tuple[StudyCase, dict[str, Any]]]:
    """Writes one patient's scan."""
    (case,) = missing
    patient = case.patient
    seed = derive_seed("totalsegmentator", settings.seed, patient.split, patient.number)
    random = np.random.default_rng(seed)
    spacing = (SPACING * settings.coarsen,) * 3
    anatomy = scanned_torso(seed, spacing)
    image: Any
    if is_mr(patient):
        image, drawn = render_mr(anatomy, CONTRASTS[int(random.integers(3))], random)
    else:
        image, drawn = render_ct(anatomy, PHASES[int(random.integers(3))], random)
    root = folder / case.name
    write_volume(root / case.facts["file"], as_stored(image, spacing, anatomy.origin), overwrite=True)
    for class_name, structures in CLASSES.items():
        mask = np.isin(anatomy.structure, structures).astype(np.uint8)
        volume = as_stored(mask, spacing, anatomy.origin)
        write_volume(root / "segmentations" / f"{class_name}.nii.gz", volume, overwrite=True)
    yield case, {"patient": anatomy.parameters, **drawn}


def finish(folder: Path, settings: ScanStudy, cases: Sequence[StudyCase]) -> None:
    """Writes meta.csv."""
    lines = ["image_id;age;gender;institute;study_type;split"]
    lines += [f"{case.name};;;phantom;{case.facts['file'][:2]} abdomen;{case.patient.split}" for case in cases]
    (folder / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def preview(folder: Path, case: StudyCase) -> Preview:
    """The slice with most liver."""
    image = read_image(folder / case.name / case.facts["file"])
    label = np.zeros(image.shape, np.uint8)
    for label_id, class_name in PREVIEWED.items():
        mask = read_label(folder / case.name / "segmentations" / f"{class_name}.nii.gz").array
        label[mask > 0] = label_id
    k = int((label == 1).sum((0, 1)).argmax())
    shown = image.array[::-1, ::-1, k].T
    low, high = (-160, 240) if image.array.min() < -500 else (None, None)
    return Preview(np.clip(shown, low, high), label[::-1, ::-1, k].T, 1.0)


PREVIEWED = {1: "liver", 2: "spleen", 3: "kidney_right", 4: "kidney_left", 5: "stomach", 6: "pancreas", 7: "aorta"}
LAYOUT = Layout("totalsegmentator", cases, simulate, finish, preview, PREVIEWED)
