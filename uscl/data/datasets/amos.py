"""AMOS22: CT and MR of the abdomen with 15 organs (https://doi.org/10.5281/zenodo.7155725).

::

    ROOT/
      dataset.json      as published, {"labels": {"0": "background", "1": "spleen", ...}}
      imagesTr/         amos_0001.nii.gz; CT up to 0500, MR above
      labelsTr/
      imagesVa/ labelsVa/     the published validation side; our test side, as no test labels are published
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from uscl.data.datasets.cases import Case, DataSet, Split, check_unique
from uscl.data.datasets.folder import volumes
from uscl.errors import InputError

log = logging.getLogger(__name__)
LABEL_NAMES = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gall bladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "postcava",
    10: "pancreas",
    11: "right adrenal gland",
    12: "left adrenal gland",
    13: "duodenum",
    14: "bladder",
    15: "prostate/uterus",
}
"""Names and order of dataset.json, whose "arota" is put right."""
_FIRST_MR = 501


def read_amos(root: Path, modality: str | None = None) -> DataSet:
    """Lists the labelled cases of AMOS22.

    Args:
        root: the unpacked download, ``amos22``.
        modality: ``ct``, ``mr``, or None for both.

    Raises:
        InputError: no such folder, no usable labelled case of the modality, or a file with another name than AMOS
            gives.
    """
    root = Path(root).expanduser()
    if modality not in (None, "ct", "mr"):
        raise InputError(f"data.modality is {modality!r}; AMOS has ct and mr")
    sides: tuple[tuple[str, Split | None], ...] = (("Tr", None), ("Va", "test"))
    cases, problems = [], {}
    for side, split in sides:
        labels = volumes(root / f"labels{side}")
        if not labels:
            log.info("%s: no labels under labels%s; its images are left out", root, side)
            continue
        for name, image in volumes(root / f"images{side}").items():
            number = re.fullmatch(r"amos_(\d{4})", name)
            if number is None:
                raise InputError(f"{image}: expected a name like amos_0001.nii.gz; is {root} an AMOS22 download?")
            kind = "ct" if int(number[1]) < _FIRST_MR else "mr"
            if modality not in (None, kind):
                continue
            if name not in labels:
                problems[name] = (
                    f"{image}: no label of that name under labels{side}; unpack the download again, or "
                    "take the image away"
                )
                continue
            cases.append(Case(name, image, labels[name], name, split))
    if problems and not cases:
        raise InputError(next(iter(problems.values())))
    if not cases:
        raise InputError(
            f"{root}: no labelled {modality or ''} case under imagesTr/labelsTr or imagesVa/labelsVa; give the folder "
            "that holds them (amos22)"
        )
    return check_unique(DataSet("AMOS22", tuple(cases), LABEL_NAMES, problems=problems))
