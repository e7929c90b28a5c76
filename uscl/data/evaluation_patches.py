"""Patches to be scored or predicted: one object each, with the way back to the volume it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from uscl.data.cache import CaseCache, read_case
from uscl.data.datasets import Case
from uscl.data.patches import Preprocessing, Sliceable, corner_around, corner_around_box
from uscl.data.prompts import Prompt, mask_names
from uscl.data.sweeps import is_assumed, read_sweep
from uscl.data.volume import Array, Index, Volume
from uscl.errors import InputError
from uscl.seeds import seeded_draw

Region = Literal["label", "first_click"]
"""How a test places the patch: around the box of the label, as the published evaluations do, who thereby tell the model
where to look; or around the first click alone, which is all that a user gives."""


class LabelledObjects(Dataset[dict[str, Any]]):
    """Every (case, class) of a split, in a patch that holds the object or what a first click finds of it.

    Clicks are set by whoever evaluates, but for a first one that places the patch.

    Args:
        cache: of prepared cases.
        objects: the pairs of case and class.
        with_reference: also give the reference mask on the image's own grid, for scoring there.
        region: see :data:`Region`.
    """

    def __init__(
        self,
        cache: CaseCache,
        objects: Sequence[tuple[Case, str]],
        with_reference: bool,
        region: Region = "label",
    ) -> None:
        self.cache = cache
        self.objects = tuple(objects)
        self.with_reference = with_reference
        self.region = region
        self._last: tuple[str, Volume, bool] | None = None

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Object ``number``.

        Returns:
            ``image`` float32 [1, S, S, S]; ``target`` bool [S, S, S]; ``corner`` and ``grid``, which lead back to the
            volume; the names ``data_set``, ``case``, ``patient``, ``class_name``; if asked for, ``reference`` (bool,
            on the image's own grid), ``spacing`` (of that grid, mm; 1 along every axis where distances are not known
            but assumed, so that surfaces are compared in voxels) and ``measured`` (False there); and, where it placed
            the patch, ``first_click``, voxel of the patch.
        """
        case, class_name = self.objects[number]
        preprocessing = self.cache.preprocessing
        prepared, label = self.cache.labelled(case)
        box = prepared.box(self.cache.data_set.classes[class_name])
        assert box is not None, "objects are listed from what occurs"
        corner, first = corner_around_box(box, preprocessing.patch_size), None
        if self.region == "first_click":
            found = np.argwhere(self.cache.data_set.mask(label[:], class_name))
            draw = seeded_draw("click", self.cache.data_set.name, case.name, class_name, 1)
            first = found[draw(len(found))]
            corner = corner_around(first, preprocessing.patch_size)
        target = self.cache.data_set.mask(preprocessing.cut(label, corner), class_name)
        if not target.any():  # the middle of an object in two distant parts may hold none of it
            found = np.argwhere(self.cache.data_set.mask(label[:], class_name))
            middle = np.mean(box, axis=1)
            corner = corner_around(found[np.square(found - middle).sum(1).argmin()], preprocessing.patch_size)
            target = self.cache.data_set.mask(preprocessing.cut(label, corner), class_name)
        item = {
            **_patch(preprocessing, prepared.image, corner),
            "target": torch.from_numpy(target),
            "grid": prepared.grid,
            "data_set": self.cache.data_set.name,
            "case": case.name,
            "patient": case.patient,
            "class_name": class_name,
        }
        if first is not None:
            x, y, z = (first - corner).tolist()
            item["first_click"] = (x, y, z)
        if self.with_reference:
            reference, measured = self._read_label(case)
            mask = self.cache.data_set.mask(reference.array, class_name)
            item |= {"reference": mask, "spacing": reference.spacing, "measured": measured}
        return item

    def _read_label(self, case: Case) -> tuple[Volume, bool]:
        """The label map on its own grid, and whether its distances are known.

        Objects of one case come one after the other, so the last one is kept.
        """
        if self._last is None or self._last[0] != case.name:
            label = read_case(case, self.cache.data_set)[1]
            assert label is not None
            measured = not is_assumed(case.image, case.reading)
            self._last = (case.name, label if measured else replace(label, spacing=(1.0, 1.0, 1.0)), measured)
        return self._last[1:]


class PromptedObjects(Dataset[dict[str, Any]]):
    """Objects that somebody has clicked on; labels are never opened.

    Args:
        prompts: image, object name and clicks of each.
        preprocessing: how volumes are prepared.
    """

    def __init__(self, prompts: Sequence[Prompt], preprocessing: Preprocessing) -> None:
        self.prompts = tuple(prompts)
        self.names = mask_names(self.prompts)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Object ``number``: the patch, its clicks, the volume with its geometry, and a name for the mask.

        Raises:
            InputError: the image cannot be used, or a click lies outside it (see :func:`place_patch`).
        """
        prompt = self.prompts[number]
        patch = place_patch(read_sweep(prompt.image, prompt.reading), prompt.points, self.preprocessing)
        return {**patch, "mask_name": self.names[number]}


def place_patch(volume: Volume, points: Sequence[tuple[Index, bool]], preprocessing: Preprocessing) -> dict[str, Any]:
    """The patch around somebody's clicks: centred on the box that holds the foreground clicks.

    Background clicks beyond the patch are left out: nothing is segmented there anyway.

    Args:
        volume: the image.
        points: voxel index in the volume and whether it is foreground.
        preprocessing: how the volume is prepared.

    Returns:
        ``image`` [1, S, S, S]; ``points``: the clicks as voxels of the patch; ``corner``, ``grid`` and ``volume``.

    Raises:
        InputError: no foreground click, a click outside the volume, or foreground clicks further apart than the patch.
    """
    for index, _ in points:
        if any(not 0 <= i < n for i, n in zip(index, volume.shape, strict=True)):
            raise InputError(
                f"{volume.name}: point {index} lies outside the volume of {volume.shape} voxels; "
                "points are voxel indices i,j,k counted from 0 (or give --space physical for millimetres)"
            )
    if not any(foreground for _, foreground in points):
        raise InputError(f"{volume.name}: no foreground point (label 1); at least one must lie on the object")
    image, grid = preprocessing.prepare_image(volume)
    placed = [(np.clip(_nearest(grid.to_prepared(index)), 0, np.array(grid.shape) - 1), fg) for index, fg in points]
    hits = np.array([position for position, foreground in placed if foreground])
    size = preprocessing.patch_size
    corner = corner_around((hits.min(0) + hits.max(0)) / 2, size)
    inside: list[tuple[Index, bool]] = []
    for (position, foreground), (index, _) in zip(placed, points, strict=True):
        x, y, z = (position - corner).tolist()
        if min(x, y, z) >= 0 and max(x, y, z) < size:
            inside.append(((x, y, z), foreground))
        elif foreground:
            extent = tuple(round(size * s) for s in preprocessing.spacing)
            raise InputError(
                f"{volume.name}: point {index} lies outside the patch of {extent} mm around the other foreground "
                "points; segment the object in parts"
            )
    return {**_patch(preprocessing, image, corner), "points": inside, "grid": grid, "volume": volume}


class EveryObjectOnce(DistributedSampler[Any]):
    """Shares objects out by rank without repeating any to even out the numbers, as the base class would.

    Args:
        length: number of objects.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        super().__init__(cast("Dataset[Any]", range(length)), num_replicas=world_size, rank=rank, shuffle=False)
        self.numbers = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def single(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates a batch of one object: the image gets its batch axis, everything else stays as it is."""
    (item,) = items
    return {**item, "image": item["image"][None]}


def _patch(preprocessing: Preprocessing, image: Sliceable, corner: Index) -> dict[str, Any]:
    patch = preprocessing.normalise(preprocessing.cut(image, corner), corner, image.shape)
    return {"image": torch.from_numpy(patch)[None], "corner": corner}


def _nearest(position: Sequence[float]) -> Array:
    return np.floor(np.asarray(position) + 0.5).astype(int)
