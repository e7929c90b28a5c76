"""The data sets that ``data.dataset`` and ``uscl prepare`` know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from uscl.data.datasets import (
    DataSet,
    read_amos,
    read_brats,
    read_folder,
    read_totalsegmentator,
    read_ultrasound,
)
from uscl.data.store import read_prepared
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
)
