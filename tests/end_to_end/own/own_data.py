"""A data set of one's own: ROOT/PATIENT/VISIT.nii.gz with VISIT_mask.nii.gz beside it."""

from pathlib import Path

from uscl.data.datasets import Case, DataSet
from uscl.errors import InputError


def read_clinic(root: Path, modality: str | None = None) -> DataSet:
    images = sorted(path for path in Path(root).glob("*/*.nii.gz") if not path.name.endswith("_mask.nii.gz"))
    if not images:
        raise InputError(f"{root}: holds no PATIENT/VISIT.nii.gz")
    cases = []
    for image in images:
        patient, visit = image.parent.name, image.name.removesuffix(".nii.gz")
        mask = image.with_name(f"{visit}_mask.nii.gz")
        cases.append(Case(f"{patient}-{visit}", image, mask if mask.is_file() else None, patient))
    return DataSet("clinic", tuple(cases), {3: "liver", 5: "kidney"})
