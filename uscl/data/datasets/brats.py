"""BraTS, four MR contrasts of gliomas (https://www.synapse.org/brats): the name schemes of its years.

::

    ROOT/**/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz          2023: 1 necrosis, 2 oedema, 3 enhancing tumour
    ROOT/**/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz             2021: 1, 2 and 4 enhancing tumour
    ROOT/**/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii           2020: the same
    ROOT/**/brats_2013_pat0001_1_{T1c,Flair..,OTMultiClass}.nii.gz    2013: 1, 2, 3 non-enhancing, 4 enhancing

The classes are the three overlapping regions that BraTS scores. It publishes no split and no labels but for training.
"""

from __future__ import annotations

import re
from pathlib import Path

from uscl.data.datasets.cases import Case, DataSet, check_unique
from uscl.errors import InputError

CONTRASTS = {
    "t1": "t1n",
    "t1n": "t1n",
    "t1ce": "t1c",
    "t1c": "t1c",
    "t2": "t2w",
    "t2w": "t2w",
    "flair": "t2f",
    "t2f": "t2f",
}
"""What the years call each contrast, and what 2023 calls it."""
_SEGMENTATIONS = ("seg", "otmulticlass")
_NAME = re.compile(
    rf"(?P<case>.+?)[-_](?P<kind>{'|'.join([*CONTRASTS, *_SEGMENTATIONS])})(_[a-z]+)?\.nii(\.gz)?", re.IGNORECASE
)
_REGIONS_2023 = {"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)}
_REGIONS_BEFORE = {"whole tumour": (1, 2, 3, 4), "tumour core": (1, 3, 4), "enhancing tumour": (4,)}


def read_brats(root: Path, modality: str | None = None) -> DataSet:
    """Lists the cases of a BraTS data set of any year, wherever below the folder they lie.

    Args:
        root: the unpacked download.
        modality: ``t1n``, ``t1c``, ``t2w`` or ``t2f``, or what other years call them; None for ``t2f`` (FLAIR).

    Raises:
        InputError: no such folder or case, a case without the contrast, two files for the same thing, or
            years that number their labels differently.
    """
    root = Path(root).expanduser()
    contrast = CONTRASTS.get((modality or "t2f").lower())
    if contrast is None:
        raise InputError(f"data.modality is {modality!r}; BraTS has {', '.join(CONTRASTS)}")
    found: dict[str, dict[str, Path]] = {}
    problems = {}
    for path in sorted(root.rglob("*.nii*")):
        parts = _NAME.fullmatch(path.name)
        if parts is not None:
            kind = CONTRASTS.get(parts["kind"].lower(), "seg")
            files = found.setdefault(parts["case"], {})
            if kind in files:
                problems[parts["case"]] = (
                    f"{path}: {parts['case']} has a {kind} already, {files[kind]}; keep copies "
                    "and predictions outside the data folder"
                )
            files[kind] = path
    if not found:
        raise InputError(f"{root}: no BraTS files; expected e.g. BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz")
    for case in found:
        if contrast not in found[case]:
            folder = next(iter(found[case].values())).parent
            problems[case] = f"{folder}: no {contrast} of {case}; complete the case, or choose another data.modality"
    usable = sorted(found.keys() - problems.keys())
    if not usable:
        raise InputError(next(iter(problems.values())))
    years = {case.lower().startswith("brats-") for case in found}
    if len(years) > 1:
        raise InputError(
            f"{root}: mixes BraTS 2023, where 3 is enhancing tumour, with older years, where 4 is; separate them"
        )
    cases = tuple(Case(case, found[case][contrast], found[case].get("seg"), _patient(case)) for case in usable)
    regions = _REGIONS_2023 if years.pop() else _REGIONS_BEFORE
    names = {i: f"label {i}" for i in regions["whole tumour"]}
    return check_unique(DataSet("BraTS", cases, names, dict(regions), problems))


def _patient(case: str) -> str:
    """BraTS-GLI-00000-001 is the second time point of BraTS-GLI-00000."""
    return re.sub(r"^(BraTS-[A-Z]+-\d+)-\d+$", r"\1", case)
