"""Prepared cases, kept in memory so that a volume is read and resampled once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uscl.data.datasets import Case, DataSet
from uscl.data.patches import Grid, Preprocessing
from uscl.data.volume import Array, Volume, read_image, read_label
from uscl.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the prepared grid.

    Attributes:
        image: clamped intensities [x, y, z], float32.
        label: label ids [x, y, z], int32, or None.
        grid: the way back to the volume.
    """

    image: Array
    label: Array | None
    grid: Grid


class PreparedStore:
    """Prepares cases on first use and keeps the last ``capacity`` of them.

    Args:
        preprocessing: how.
        data_set: names the labels that may occur.
        capacity: cases kept in memory.
    """

    def __init__(self, preprocessing: Preprocessing, data_set: DataSet, capacity: int) -> None:
        self.preprocessing = preprocessing
        self.data_set = data_set
        self.capacity = capacity
        self._kept: OrderedDict[str, PreparedCase] = OrderedDict()

    def get(self, case: Case) -> PreparedCase:
        """The prepared case.

        Raises:
            InputError: see :func:`read_case`.
        """
        if case.name in self._kept:
            self._kept.move_to_end(case.name)
            return self._kept[case.name]
        volume, label = read_case(case, self.data_set)
        image, grid = self.preprocessing.prepare_image(volume)
        prepared = PreparedCase(image, None if label is None else self.preprocessing.prepare_label(label), grid)
        self._kept[case.name] = prepared
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return prepared

    def labelled(self, case: Case) -> tuple[PreparedCase, Array]:
        """The prepared case and its label map.

        Raises:
            InputError: the case has none.
        """
        prepared = self.get(case)
        if prepared.label is None:
            raise InputError(
                f"{case.image}: has no label map; put one of the same name into the label folder, or leave the case out"
            )
        return prepared, prepared.label


def read_case(case: Case, data_set: DataSet) -> tuple[Volume, Volume | None]:
    """Image and label map of a case, each on its own grid, which is the same.

    Raises:
        InputError: a file cannot be used, the grids differ, or the label map has ids that the data set does not name.
    """
    image = read_image(case.image)
    if case.label is None:
        return image, None
    if case.label.is_dir():
        return image, _merge_masks(case.label, data_set, image)
    label = read_label(case.label)
    difference = label.same_grid(image)
    if difference:
        raise InputError(f"{case.label}: does not lie on the grid of {case.image}: {difference}")
    unknown = sorted(set(np.unique(label.array).tolist()) - {0} - set(data_set.label_names))
    if unknown:
        raise InputError(
            f"{case.label}: has label ids {unknown[:6]} that the data set does not name "
            f"({data_set.label_names}); add them to dataset.json or correct the map"
        )
    return image, label


def _merge_masks(folder: Path, data_set: DataSet, image: Volume) -> Volume:
    """One label map from a folder with a mask per class; opens the masks of the data set's classes alone.

    Where masks overlap the lower id stays, and the number of voxels is told.
    """
    wanted = {label_id for ids in data_set.classes.values() for label_id in ids}
    merged = np.zeros(image.shape, np.int32)
    overlapping = 0
    for label_id in sorted(wanted):
        file = folder / f"{data_set.label_names[label_id]}.nii.gz"
        if not file.is_file():
            continue
        mask = read_label(file)
        difference = mask.same_grid(image)
        if difference:
            raise InputError(f"{file}: does not lie on the grid of {image.name}: {difference}")
        inside = mask.array > 0
        overlapping += int(np.count_nonzero(merged[inside]))
        merged[inside & (merged == 0)] = label_id
    if overlapping:
        log.warning(
            "%s: %d voxels lie in several masks; the one that comes first in the list stays", folder, overlapping
        )
    return replace(image, array=merged)
