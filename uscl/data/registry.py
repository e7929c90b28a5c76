"""The data sets that ``data.dataset`` and ``uscl prepare`` know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from uscl.data.datasets import (
    Case,
    DataSet,
    read_amos,
    read_brats,
    read_folder,
    read_totalsegmentator,
    read_ultrasound,
)
from uscl.data.datasets.cases import SPLITS, check_unique
from uscl.data.store import read_prepared
from uscl.errors import InputError
from uscl.registry import Registry

Reader = Callable[[Path, str | None], DataSet]
"""Lists the cases below a folder; the second argument is ``data.modality``, None for the default."""

DATA_SETS: Registry[Reader] = Registry(
    "data set",
    {
        "folder": read_folder,
        "amos": read_amos,
        "totalsegmentator": read_totalsegmentator,
        "brats": read_brats,
        "ultrasound": read_ultrasound,
        "prepared": read_prepared,
    },
    callable,
    "a function of a folder and a modality that returns a uscl.data.datasets.DataSet",
)


def read_data_set(name: str, root: Path, modality: str | None = None) -> DataSet:
    """The cases below a folder.

    Args:
        name: of the layout, or the dotted path of a reader.
        root: the folder.
        modality: see ``data.modality``; None for the default.

    Raises:
        InputError: there is no such reader, it returns something else than a data set, two cases share a name, or one
            has a name or a side that cannot be used.
    """
    found = DATA_SETS.find(name)(root, modality)
    if not isinstance(found, DataSet):
        raise InputError(f"data set {name!r}: its reader returned {found!r}; expected a uscl.data.datasets.DataSet")
    for case in found.cases:
        if not (isinstance(case, Case) and isinstance(case.name, str)):
            raise InputError(f"data set {name!r}: its reader listed {case!r}; expected a uscl.data.datasets.Case")
        if not isinstance(case.image, Path) or not isinstance(case.label, Path | None):
            raise InputError(f"data set {name!r}: case {case.name}: image and label must be paths, found {case}")
        if case.split not in (None, *SPLITS):
            raise InputError(
                f"data set {name!r}: case {case.name}: split is {case.split!r}; expected {', '.join(SPLITS)} or None"
            )
        if not case.name or {"/", "\\"} & {*case.name} or case.name.startswith("."):
            raise InputError(f"data set {name!r}: {case.name!r} is no name for a case: files are called after it")
    return check_unique(found)
