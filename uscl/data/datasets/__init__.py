"""Where the files of each data set lie and what their labels mean."""

from uscl.data.datasets.cases import Case, DataSet, Split, assign_splits
from uscl.data.datasets.folder import read_folder

__all__ = ["Case", "DataSet", "Split", "assign_splits", "read_folder"]
