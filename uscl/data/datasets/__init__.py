"""Where the files of each data set lie and what their labels mean."""

from uscl.data.datasets.amos import read_amos
from uscl.data.datasets.brats import read_brats
from uscl.data.datasets.cases import Case, DataSet, Split, Splitting, assign_splits, few_shot, write_splits
from uscl.data.datasets.folder import read_folder
from uscl.data.datasets.totalsegmentator import read_totalsegmentator
from uscl.data.datasets.ultrasound import read_ultrasound, write_manifest

__all__ = [
    "Case",
    "DataSet",
    "Split",
    "Splitting",
    "assign_splits",
    "few_shot",
    "read_amos",
    "read_brats",
    "read_folder",
    "read_totalsegmentator",
    "read_ultrasound",
    "write_manifest",
    "write_splits",
]
