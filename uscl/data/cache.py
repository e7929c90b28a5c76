"""Prepared cases: kept in memory, and read from a folder where ``uscl prepare`` has written them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uscl.data.datasets import Case, DataSet
from uscl.data.patches import Grid, Preprocessing, Sliceable
from uscl.data.store import LabelSummary, open_case, summarise, vanished_ids
from uscl.data.sweeps import read_sweep, read_sweep_label
from uscl.data.volume import Distances, Volume, read_image, read_label, vaguest
from uscl.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the prepared grid. Arrays that lie on disk are read where they are sliced.

    Attributes:
        image: clamped intensities [x, y, z], float32.
        label: label ids [x, y, z], or None.
        grid: the way back to the volume.
        stored_summary: what is known of every label id, where that was stored.
        vanished: label ids of which resampling left no voxel.
        distances: where the millimetres come from; ``measured`` in stores of versions that did not keep it.
    """

    image: Sliceable
    label: Sliceable | None
    grid: Grid
    stored_summary: dict[int, LabelSummary] | None = None
    vanished: tuple[int, ...] = ()
    distances: Distances = "measured"

    @cached_property
    def summary(self) -> dict[int, LabelSummary]:
        """How many voxels every label id has, where they lie, and some of them."""
        if self.stored_summary is not None:
            return self.stored_summary
        return {} if self.label is None else summarise(self.label[:])

    def box(self, ids: Sequence[int]) -> list[tuple[int, int]] | None:
        """Bounding box of a class, along each axis the first voxel and the one after the last; None if it is absent."""
        found = [self.summary[i] for i in ids if i in self.summary]
        if not found:
            return None
        return [(min(s.low[axis] for s in found), max(s.high[axis] for s in found)) for axis in range(3)]

    def voxel(self, ids: Sequence[int], random: np.random.Generator) -> NDArray[np.int32]:
        """One voxel [3] of a class that is there, at random."""
        found = [self.summary[i] for i in ids if i in self.summary]
        counts = np.array([s.count for s in found], float)
        voxels = found[int(random.choice(len(found), p=counts / counts.sum()))].voxels
        drawn: NDArray[np.int32] = voxels[int(random.integers(len(voxels)))]
        return drawn


class CaseCache:
    """Prepares cases on first use, or opens what was prepared, and keeps the last ``capacity`` of them.

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

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned opens its own files and prepares its own cases.
        return {**self.__dict__, "_kept": OrderedDict()}

    def get(self, case: Case) -> PreparedCase:
        """The prepared case.

        Raises:
            InputError: see :func:`read_case` and :func:`uscl.data.store.open_case`.
        """
        if case.name in self._kept:
            self._kept.move_to_end(case.name)
            return self._kept[case.name]
        if self.data_set.store is not None:
            prepared = PreparedCase(*open_case(self.data_set.store, self.preprocessing, case.name))
        else:
            volume, label = read_case(case, self.data_set)
            image, grid = self.preprocessing.prepare_image(volume)
            ids = None if label is None else self.preprocessing.prepare_label(label)
            gone = () if label is None or ids is None else vanished_ids(label.array, ids)
            prepared = PreparedCase(image, ids, grid, vanished=gone, distances=volume.distances)
        self._kept[case.name] = prepared
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return prepared

    def labelled(self, case: Case) -> tuple[PreparedCase, Sliceable]:
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


def read_case_image(case: Case) -> Volume:
    """The image of a case on its own grid.

    Raises:
        InputError: the file cannot be used.
    """
    return read_image(case.image) if case.reading is None else read_sweep(case.image, case.reading)


def read_case(case: Case, data_set: DataSet) -> tuple[Volume, Volume | None]:
    """Image and label map of a case, each on its own grid, which is the same.

    Raises:
        InputError: a file cannot be used, the grids differ, or the label map has ids that the data set does not name.
    """
    image = read_case_image(case)
    if case.label is None:
        return image, None
    if case.reading is not None:
        label = read_sweep_label(case.label, image)
    elif case.label.is_dir():
        return image, _merge_masks(case.label, data_set, image)
    else:
        label = read_label(case.label)
        difference = label.same_grid(image)
        if difference:
            raise InputError(f"{case.label}: does not lie on the grid of {case.image}: {difference}")
        label = replace(label, distances=vaguest(image.distances, label.distances))
    unknown = sorted(set(np.unique(label.array).tolist()) - {0} - set(data_set.label_names))
    if unknown:
        raise InputError(
            f"{case.label}: has label ids {unknown[:6]} that the data set does not name "
            f"({data_set.label_names}); add them to dataset.json or correct the map"
        )
    return image, label


def _merge_masks(folder: Path, data_set: DataSet, image: Volume) -> Volume:
    """One label map from a folder with a mask per class; opens the masks of the data set's classes alone.

    Where masks overlap the lower id stays, and the number of voxels is reported.
    """
    wanted = {label_id for ids in data_set.classes.values() for label_id in ids}
    merged = np.zeros(image.shape, np.int32)
    overlapping, distances = 0, image.distances
    for label_id in sorted(wanted):
        file = folder / f"{data_set.label_names[label_id]}.nii.gz"
        if not file.is_file():
            continue
        mask = read_label(file)
        difference = mask.same_grid(image)
        if difference:
            raise InputError(f"{file}: does not lie on the grid of {image.name}: {difference}")
        distances = vaguest(distances, mask.distances)
        inside = mask.array > 0
        overlapping += int(np.count_nonzero(merged[inside]))
        merged[inside & (merged == 0)] = label_id
    if overlapping:
        log.warning(
            "%s: %d voxels lie in several masks; the one that comes first in the list stays", folder, overlapping
        )
    return replace(image, array=merged, distances=distances)
