"""Simulated gliomas in the layout of BraTS 2023 (https://www.synapse.org/brats2023).

::

    OUT/
      BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz
      parameters/, study.json, contact_sheet.png

240 x 240 x 155 voxels of 1 mm, skull-stripped, z-scored by nobody; labels 1 necrotic core, 2 oedema, 3 enhancing
tumour. BraTS leaves the split to its users, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uscl.data.volume import Array, Volume, read_image, read_label, write_volume
from uscl.phantom.brain import build_brain
from uscl.phantom.layouts.scans import ScanStudy, labels_of
from uscl.phantom.mr import Contrast, render_mr
from uscl.phantom.structures import Structure
from uscl.phantom.study import Layout, Patient, Preview, StudyCase
from uscl.seeds import derive_seed

LABEL_NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}
LABEL_OF = {Structure.TUMOUR_CORE: 1, Structure.OEDEMA: 2, Structure.TUMOUR_RIM: 3}
SUFFIXES: dict[str, Contrast] = {"t1n": "t1", "t1c": "t1c", "t2w": "t2", "t2f": "flair"}
SHAPE = (240, 240, 155)


def cases(settings: ScanStudy, patient: Patient) -> list[StudyCase]:
    """One time point per patient."""
    return [StudyCase(f"BraTS-GLI-{patient.position:05d}-000", patient, {})]


def simulate(
    folder: Path, settings: ScanStudy, missing: Sequence[StudyCase]
) -> Iterator[tuple[StudyCase, dict[str, Any]]]:
    """Writes one patient's four contrasts and the tumour."""
    (case,) = missing
    name, patient = case.name, case.patient
    seed = derive_seed("brats", settings.seed, patient.split, patient.number)
    random = np.random.default_rng(seed)
    whole = build_brain(seed)
    every = slice(None, None, settings.coarsen)
    structure = whole.structure[every, every, every]
    stripped = np.where(np.isin(structure, (Structure.SCALP, Structure.SKULL)), 0, structure)
    anatomy = replace(whole, structure=stripped.astype(np.uint8), voxel=whole.voxel * settings.coarsen)
    drawn: dict[str, Any] = {"patient": whole.parameters}
    for suffix, contrast in SUFFIXES.items():
        image, drawn[suffix] = render_mr(anatomy, contrast, random)
        image = np.where(stripped > 0, image, 0).astype(np.int16)
        _write(folder / name / f"{name}-{suffix}.nii.gz", image, settings.coarsen)
    _write(folder / name / f"{name}-seg.nii.gz", labels_of(anatomy, LABEL_OF), settings.coarsen)
    yield case, drawn


def _write(path: Path, values: Array, coarsen: int) -> None:
    """Centres an array [x, y, z] in LPS on the BraTS grid, whose direction is that of LPS."""
    out = np.zeros([-(-n // coarsen) for n in SHAPE], values.dtype)
    spans = []
    for n, m in zip(values.shape, out.shape, strict=True):
        cut, pad = max(0, (n - m) // 2), max(0, (m - n) // 2)
        spans.append((slice(pad, pad + min(n, m)), slice(cut, cut + min(n, m))))
    out[tuple(to for to, _ in spans)] = values[tuple(source for _, source in spans)]
    spacing = (float(coarsen),) * 3
    write_volume(path, Volume(out, spacing, (0.0, -239.0, 0.0), distances="measured"), overwrite=True)


def finish(folder: Path, settings: ScanStudy, cases: Sequence[StudyCase]) -> None:
    """BraTS has no file that lists its cases."""


def preview(folder: Path, case: StudyCase) -> Preview:
    """FLAIR on the slice with most tumour."""
    image = read_image(folder / case.name / f"{case.name}-t2f.nii.gz")
    label = read_label(folder / case.name / f"{case.name}-seg.nii.gz").array
    k = int((label > 0).sum((0, 1)).argmax())
    return Preview(image.array[:, :, k].T, label[:, :, k].T, 1.0)


LAYOUT = Layout("brats", cases, simulate, finish, preview, LABEL_NAMES)
