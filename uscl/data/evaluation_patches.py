"""Patches to be scored or predicted: one object each, with the way back to the volume it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from uscl.data.batches import CaseObject, PromptedObject, Truth
from uscl.data.cache import CaseCache, read_case
from uscl.data.datasets import Case
from uscl.data.patches import Preprocessing, Sliceable, corner_around, corner_around_box
from uscl.data.prompts import Prompt, mask_names
from uscl.data.sweeps import read_sweep
from uscl.data.volume import Array, Index, Volume
from uscl.errors import InputError
from uscl.seeds import seeded_draw

Region = Literal["label", "first_click"]
"""How a test places the patch: around the box of the label, as the published evaluations do, who thereby show the model
where to look; or around the first click alone, which is all that a user gives."""


class LabelledObjects(Dataset[CaseObject]):
    """Every (case, class) of a split, in a patch that holds the object or what a first click finds of it.

    Clicks are set by whoever evaluates, but for a first one that places the patch.

    Args:
        cache: of prepared cases.
        objects: the pairs of case and class.
        with_truth: also give the reference mask on the image's own grid, for scoring there.
        region: see :data:`Region`.
    """

    def __init__(
        self, cache: CaseCache, objects: Sequence[tuple[Case, str]], with_truth: bool, region: Region = "label"
    ) -> None:
        self.cache = cache
        self.objects = tuple(objects)
        self.with_truth = with_truth
        self.region = region
        self._last: tuple[str, Volume] | None = None

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, number: int) -> CaseObject:
        """Object ``number``."""
        case, class_name = self.objects[number]
        preprocessing, data_set = self.cache.preprocessing, self.cache.data_set
        key = ("click", data_set.name, case.name, class_name)
        prepared, label = self.cache.labelled(case)
        box = prepared.box(data_set.classes[class_name])
        assert box is not None, "objects are listed from what occurs"
        corner, first = corner_around_box(box, preprocessing.patch_size), None
        if self.region == "first_click":
            found = np.argwhere(data_set.mask(label[:], class_name))
            first = found[seeded_draw(*key, 1)(len(found))]
            corner = corner_around(first, preprocessing.patch_size)
        target = data_set.mask(preprocessing.cut(label, corner), class_name)
        if not target.any():  # the middle of an object in two distant parts may hold none of it
            found = np.argwhere(data_set.mask(label[:], class_name))
            middle = np.mean(box, axis=1)
            corner = corner_around(found[np.square(found - middle).sum(1).argmin()], preprocessing.patch_size)
            target = data_set.mask(preprocessing.cut(label, corner), class_name)
        return CaseObject(
            image=_patch(preprocessing, prepared.image, corner),
            target=torch.from_numpy(target),
            click_key=key,
            first_click=None if first is None else _index(first - corner),
            data_set=data_set.name,
            case=case,
            class_name=class_name,
            grid=prepared.grid,
            corner=corner,
            truth=self._truth(case, class_name) if self.with_truth else None,
        )

    def _truth(self, case: Case, class_name: str) -> Truth:
        label = self._label(case)
        spacing = (1.0, 1.0, 1.0) if label.distances == "assumed" else label.spacing
        return Truth(self.cache.data_set.mask(label.array, class_name), spacing, label.distances)

    def _label(self, case: Case) -> Volume:
        """The label map on its own grid; objects of one case come one after the other, so the last one is kept."""
        if self._last is None or self._last[0] != case.name:
            label = read_case(case, self.cache.data_set)[1]
            assert label is not None
            self._last = (case.name, label)
        return self._last[1]


class PromptedObjects(Dataset[PromptedObject]):
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

    def __getitem__(self, number: int) -> PromptedObject:
        """Object ``number``.

        Raises:
            InputError: the image cannot be used, or a click lies outside it (see :func:`place_patch`).
        """
        prompt = self.prompts[number]
        patch = place_patch(read_sweep(prompt.image, prompt.reading), prompt.points, self.preprocessing)
        return patch._replace(mask_name=self.names[number])


def place_patch(volume: Volume, points: Sequence[tuple[Index, bool]], preprocessing: Preprocessing) -> PromptedObject:
    """The patch around somebody's clicks: centred on the box that holds the foreground clicks.

    Background clicks beyond the patch are left out: nothing is segmented there anyway.

    Args:
        volume: the image.
        points: voxel index in the volume and whether it is foreground.
        preprocessing: how the volume is prepared.

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
            extent = " x ".join(f"{size * s:.0f}" for s in preprocessing.spacing)
            unit = "assumed millimetres" if volume.distances == "assumed" else "mm"
            raise InputError(
                f"{volume.name}: point {index} lies outside the patch of {extent} {unit} around the other foreground "
                "points; segment the object in parts"
            )
    return PromptedObject(_patch(preprocessing, image, corner), tuple(inside), grid, corner, volume)


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


def _patch(preprocessing: Preprocessing, image: Sliceable, corner: Index) -> Tensor:
    patch = preprocessing.normalise(preprocessing.cut(image, corner), corner, image.shape)
    return torch.from_numpy(patch)[None, None]


def _index(values: Array) -> Index:
    x, y, z = values.tolist()
    return x, y, z


def _nearest(position: Sequence[float]) -> Array:
    return np.floor(np.asarray(position) + 0.5).astype(int)
