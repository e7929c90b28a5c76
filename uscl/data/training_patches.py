"""Patches to train on, as an endless numbered stream: patch n is the same whoever asks for it and whenever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from uscl.data.augmentations import Augmentation, augment
from uscl.data.batches import ImagePatch, LabelledPatch
from uscl.data.cache import CaseCache
from uscl.data.datasets import Case
from uscl.data.patches import Grid, corner_around, corner_around_box
from uscl.data.volume import Array, Index
from uscl.errors import InputError
from uscl.seeds import derive_seed

_ATTEMPTS = 50


@dataclass(frozen=True)
class PatchSampling:
    """Where training patches are cut.

    Attributes:
        centre: ``label_box``: on the object's bounding box, as SAM-Med3D trains. ``foreground``: on a random voxel of
            the object. ``volume``: anywhere, without looking at labels, as contrastive pre-training does.
        jitter: the centre moves by up to this many voxels along every axis.
        minimum_foreground: an object with fewer voxels in the patch is passed over for another; SAM-Med3D asks for
            more than 1000 at 1.5 mm (3.4 ml).
        flip_probability: chance of mirroring the patch, for each axis on its own.
        size: edge of the patches, voxels, where they are to be smaller than those of the preprocessing; validation
            and testing keep to the latter. For stage 2.
        objects: K, objects per patch, for stage 2 with :class:`~uscl.prompting.ObjectClicks`; a patch that shows fewer
            repeats them.
    """

    centre: Literal["label_box", "foreground", "volume"] = "label_box"
    jitter: int = 0
    minimum_foreground: int = 1000
    flip_probability: float = 0.5
    size: int | None = None
    objects: int = 1

    def __post_init__(self) -> None:
        if self.jitter < 0 or self.minimum_foreground < 1 or not 0 <= self.flip_probability <= 1:
            raise InputError(f"sampling needs jitter >= 0, minimum_foreground >= 1, flip_probability in [0, 1]: {self}")
        if self.objects < 1:
            raise InputError(f"sampling.objects must be at least 1, found {self.objects}")
        if self.centre == "volume" and (self.objects > 1 or self.size is not None):
            raise InputError(
                "sampling.objects and sampling.size are for training on labels; leave them out where "
                "sampling.centre is volume"
            )


class TrainingPatches(Dataset[ImagePatch | LabelledPatch]):
    """Patch n of the stream. Classes are drawn evenly, then one of the cases that have the class.

    Args:
        cache: of prepared cases.
        cases_of: for each class the cases that have it; one key None with all cases where labels are not looked at.
        sampling: where to cut.
        seed: of the stream.
        augmentation: how to change what was cut.
    """

    def __init__(
        self,
        cache: CaseCache,
        cases_of: Mapping[str | None, Sequence[Case]],
        sampling: PatchSampling,
        seed: int,
        augmentation: Augmentation = Augmentation(),
    ) -> None:
        self.cache = cache
        size = cache.preprocessing.patch_size if sampling.size is None else sampling.size
        self.preprocessing = replace(cache.preprocessing, patch_size=size)
        self.cases_of = {key: tuple(cases) for key, cases in cases_of.items() if cases}
        self.sampling = sampling
        self.seed = seed
        self.augmentation = augmentation

    def __getitem__(self, number: int) -> ImagePatch | LabelledPatch:
        """Patch ``number``, with labels where these are looked at.

        Raises:
            InputError: no object large enough was met in many draws.
        """
        for attempt in range(_ATTEMPTS):
            random = np.random.default_rng(derive_seed("patch", self.seed, number, attempt))
            keys = list(self.cases_of)
            class_name = keys[random.integers(len(keys))]
            cases = self.cases_of[class_name]
            patch = self._cut(cases[random.integers(len(cases))], class_name, random)
            if patch is not None:
                return patch
        raise InputError(
            f"in {_ATTEMPTS} draws no object had {self.sampling.minimum_foreground} voxels in its patch; lower "
            "data.sampling.minimum_foreground, or check the spacing and the labels"
        )

    def _cut(
        self, case: Case, class_name: str | None, random: np.random.Generator
    ) -> ImagePatch | LabelledPatch | None:
        preprocessing, sampling, data_set = self.preprocessing, self.sampling, self.cache.data_set
        size = preprocessing.patch_size
        prepared = self.cache.get(case)
        label = None
        if class_name is None:
            corner = _corner_anywhere(prepared.image.shape, size, random)
        else:
            label, ids = self.cache.labelled(case)[1], data_set.classes[class_name]
            box = prepared.box(ids)
            if box is None:
                return None
            if sampling.centre == "label_box":
                corner = corner_around_box(box, size)
            else:
                corner = corner_around(prepared.voxel(ids, random).tolist(), size)
        shift = random.integers(-sampling.jitter, sampling.jitter + 1, 3)
        corner = (corner[0] + int(shift[0]), corner[1] + int(shift[1]), corner[2] + int(shift[2]))
        flips = tuple(axis for axis in range(3) if random.random() < sampling.flip_probability)
        labelled = None if label is None else preprocessing.cut(label, corner)
        image, labelled = _augmented(
            prepared.grid, preprocessing.cut(prepared.image, corner), labelled, self.augmentation, random
        )
        image = preprocessing.normalise(image, corner, prepared.grid.shape)
        patch = _as_tensor(np.flip(image, flips))[None]
        if labelled is None or class_name is None:
            return ImagePatch(patch, case.name)
        target = data_set.mask(labelled, class_name)
        if np.count_nonzero(target) < sampling.minimum_foreground:
            return None
        targets = [target, *self._others(labelled, class_name, random)]
        targets += [targets[int(random.integers(len(targets)))] for _ in range(sampling.objects - len(targets))]
        masks = torch.stack([_as_tensor(np.flip(one, flips)) for one in targets])
        return LabelledPatch(patch, masks, case.name, class_name)

    def _others(self, labelled: Array, class_name: str, random: np.random.Generator) -> list[Array]:
        """Objects to click on besides the one that a patch was cut for: large enough, and not all of it."""
        if self.sampling.objects == 1:
            return []
        data_set = self.cache.data_set
        masks = [data_set.mask(labelled, name) for name in data_set.classes if name != class_name]
        large = [mask for mask in masks if self.sampling.minimum_foreground <= np.count_nonzero(mask) < mask.size]
        return [large[i] for i in random.permutation(len(large))[: self.sampling.objects - 1]]


def _augmented(
    grid: Grid, image: Array, labelled: Array | None, settings: Augmentation, random: np.random.Generator
) -> tuple[Array, Array | None]:
    """Augments a patch along the axes of its file: of a sweep, only these say where the probe is and where depth."""
    own = None if labelled is None else grid.restore_axes(labelled)
    image, own = augment(grid.restore_axes(image), own, settings, random)
    return grid.orient(image), None if own is None else grid.orient(own)


class PatchNumbers(DistributedSampler[Any]):
    """Numbers of the patches of one epoch: epoch e of length L takes e * L to (e + 1) * L - 1, shared out by rank.

    A subclass of DistributedSampler so that Lightning leaves it alone on several processes; the number a patch gets
    does not depend on how many there are.

    Args:
        length: patches per epoch over all processes.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        numbers = cast("Dataset[Any]", range(length))
        super().__init__(numbers, num_replicas=world_size, rank=rank, shuffle=False, drop_last=True)
        self.length = length

    def __iter__(self) -> Iterator[int]:
        begin = self.epoch * self.length
        return iter(range(begin + self.rank, begin + self.num_samples * self.num_replicas, self.num_replicas))

    def __len__(self) -> int:
        return self.num_samples


def _corner_anywhere(shape: tuple[int, ...], size: int, random: np.random.Generator) -> Index:
    """A patch that covers as much of the volume as it can: centred along short axes, anywhere along long ones."""
    corner = [int(random.integers(n - size + 1)) if n > size else (n - size) // 2 for n in shape]
    return corner[0], corner[1], corner[2]


def _as_tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
