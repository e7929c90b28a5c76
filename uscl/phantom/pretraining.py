"""Data to pre-train a backbone on: an endless numbered stream of rendered worlds, and the anatomies it is cut from."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uscl.data.batches import RenderedObject, RenderedPatch, single, to_device
from uscl.data.patches import Preprocessing
from uscl.data.training_patches import PatchNumbers
from uscl.errors import InputError
from uscl.phantom.brain import VOXEL as HEAD_VOXEL
from uscl.phantom.brain import build_brain
from uscl.phantom.canvas import VOXEL as TORSO_VOXEL
from uscl.phantom.contrast import render
from uscl.phantom.layouts.scans import draw_torso
from uscl.phantom.worlds import HEAD_OBJECTS, TORSO_OBJECTS, World, body_world, members, shape_world
from uscl.seeds import derive_seed, run_seed

log = logging.getLogger(__name__)
IGNORED = -100
"""Semantic class of a world that has none (torch's cross-entropy leaves it out)."""


@dataclass(frozen=True)
class Curriculum:
    """What comes first: large objects in scenes of random shapes, say, and then anatomy and small objects.

    Every value goes linearly from the first number to the second over ``patches`` patches; by default it stays.

    Attributes:
        patches: length of the way.
        shapes: share of worlds made of random shapes.
        smallest_ml: objects with less in the patch are left out.
    """

    patches: int = 1
    shapes: tuple[float, float] = (0.05, 0.05)
    smallest_ml: tuple[float, float] = (3.0, 3.0)

    def at(self, number: int) -> tuple[float, float]:
        """Share of shapes and smallest object, ml, at patch ``number``."""
        way = min(1.0, number / self.patches)
        shapes, smallest = ((1 - way) * pair[0] + way * pair[1] for pair in (self.shapes, self.smallest_ml))
        return shapes, smallest


ATTEMPTS = 100
"""Worlds drawn for one patch before it is given up: an object worth clicking on is in nearly every one."""
SHUFFLED = 64
"""Images among which the uses of one image are spread."""


@dataclass(frozen=True)
class _Rendered:
    world: World
    names: list[str]
    image: Tensor


class RenderedPatches(Dataset[RenderedPatch]):
    """Patch n of the stream: the same whoever asks for it and whenever.

    On a CPU an image takes longer to render than a small model to learn from, so each may be used several times, with
    other objects and other flips, spread over the patches of :data:`SHUFFLED` images. Readers keep that many images;
    more than one worker therefore renders some of them more than once.

    Args:
        torsos: files of anatomies.
        heads: files of anatomies.
        preprocessing: normalises, and says how large patches are.
        objects: K, objects per patch; one that has fewer repeats them.
        curriculum: what comes when.
        seed: of the stream.
        uses: of every image.
        device: that renders, and that patches come on; noise differs between kinds of devices.
    """

    def __init__(
        self,
        torsos: tuple[Path, ...],
        heads: tuple[Path, ...],
        preprocessing: Preprocessing,
        objects: int,
        curriculum: Curriculum,
        seed: int,
        uses: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.torsos, self.heads = torsos, heads
        self.preprocessing, self.objects, self.curriculum, self.seed = preprocessing, objects, curriculum, seed
        self.uses, self.device = uses, torch.device(device)
        self._kept: dict[int, _Rendered] = {}

    def __getitem__(self, number: int) -> RenderedPatch:
        """Patch ``number``; the structures of a world without anatomy are :data:`IGNORED`."""
        rendered = self._rendered(self.image_of(number))
        world, names = rendered.world, rendered.names
        random = np.random.default_rng(derive_seed("pretraining patch", self.seed, number))
        chosen = [names[i] for i in random.permutation(len(names))]
        if rendered.world.middle in chosen:  # what patches are cut around at evaluation is asked for more often
            chosen.insert(0, chosen.pop(chosen.index(rendered.world.middle)))
        chosen = chosen[: self.objects]
        chosen += [chosen[int(random.integers(len(chosen)))] for _ in range(self.objects - len(chosen))]
        flips = [axis - 3 for axis in range(3) if random.random() < 0.15]
        semantic = world.structure.flip(flips)[4::8, 4::8, 4::8].long()
        return RenderedPatch(
            image=rendered.image.flip(flips).float()[None],
            target=world.masks(chosen).flip(flips),
            semantic=semantic if world.anatomical else torch.full_like(semantic, IGNORED),
        )

    def image_of(self, number: int) -> int:
        """Number of the image that patch ``number`` shows."""
        block, position = divmod(number, SHUFFLED * self.uses)
        turn, position = divmod(position, SHUFFLED)
        order = np.random.default_rng(derive_seed("pretraining order", self.seed, block, turn)).permutation(SHUFFLED)
        return block * SHUFFLED + int(order[position])

    def _rendered(self, image: int) -> _Rendered:
        if image not in self._kept:
            self._kept[image] = self._render(image)
            if len(self._kept) > SHUFFLED:
                del self._kept[next(iter(self._kept))]
        return self._kept[image]

    def _render(self, image: int) -> _Rendered:
        shapes, smallest = self.curriculum.at(image * self.uses)
        voxel_ml = float(np.prod(self.preprocessing.spacing)) / 1000
        for attempt in range(ATTEMPTS):
            random = np.random.default_rng(derive_seed("pretraining image", self.seed, image, attempt))
            world = self._world(random, shapes)
            names = _worth_clicking(world, smallest / voxel_ml)
            if names:
                shown = _z_score(render(world, random), self.preprocessing.normalisation == "z_score_positive")
                return _Rendered(world, names, shown.half())
        raise InputError(
            f"data: no object of {smallest:.1f} ml or more in {ATTEMPTS} patches of "
            f"{self.preprocessing.patch_size} voxels; lower curriculum.smallest_ml"
        )

    def _world(self, random: np.random.Generator, shapes: float) -> World:
        size, spacing = self.preprocessing.patch_size, self.preprocessing.spacing[0]
        if random.random() < shapes:
            world = shape_world(random, size)
            return replace(world, structure=world.structure.to(self.device))
        torso = random.random() < 0.7
        files = self.torsos if torso else self.heads
        ids = load_structure(files[int(random.integers(len(files)))], self.device)
        voxel, objects = (TORSO_VOXEL, TORSO_OBJECTS) if torso else (HEAD_VOXEL, HEAD_OBJECTS)
        return body_world(ids, voxel, members(objects), random, size, spacing)


class RenderedObjects(Dataset[RenderedObject]):
    """One object of each of some patches, to validate on.

    Args:
        patches: with one object each.
        count: of the patches, from number 1 on.
    """

    def __init__(self, patches: RenderedPatches, count: int) -> None:
        self.patches, self.count = patches, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> RenderedObject:
        """Object ``number``, counted from 0."""
        patch = self.patches[number + 1]
        return RenderedObject(patch.image[None], patch.target[0], ("pretraining validation", number))


def _worth_clicking(world: World, smallest: float) -> list[str]:
    """Objects with enough voxels that do not fill the patch either."""
    counts = torch.bincount(world.structure.flatten().int(), minlength=256).cpu().numpy()
    largest = 0.7 * world.structure.numel()
    sizes = {name: counts[: len(table)][table].sum() for name, table in world.objects.items()}
    return [name for name, size in sizes.items() if smallest <= size <= largest]


def _z_score(image: Tensor, positive: bool) -> Tensor:
    """What :meth:`Preprocessing.normalise` does to a patch without padding, on any device."""
    sample = image[image > 0] if positive else image
    if not sample.numel():
        sample = image
    # Sums of squares of millions of voxels.
    variance, mean = torch.var_mean(sample.double())
    scale = variance.sqrt().float()
    return (image - mean.float()) / torch.where(scale > 0, scale, 1.0)


@lru_cache(maxsize=256)
def load_structure(file: Path, device: torch.device) -> Tensor:
    """Structure ids of an anatomy that :func:`build_anatomies` wrote; about 5 MB each are kept."""
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["structure"]).to(device)


def build_anatomies(folder: Path, torsos: int, heads: int, seed: int, workers: int) -> tuple[list[Path], list[Path]]:
    """Builds the anatomies that are not there yet, with progress; an interrupted call is taken up again.

    Args:
        folder: where to; files are named by kind, seed and number.
        torsos: how many.
        heads: how many.
        seed: of everything; never that of a study, whose patients are drawn under other names.
        workers: processes.

    Returns:
        Files of torsos and of heads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        kind: [folder / f"{kind}_{seed}_{n:05d}.npz" for n in range(count)]
        for kind, count in (("torso", torsos), ("head", heads))
    }
    missing = [(file, kind, seed, n) for kind in files for n, file in enumerate(files[kind]) if not file.is_file()]
    if missing:
        doing = f"Building {len(missing)} anatomies"
        # A process takes seconds to begin, as long as it takes to build a few.
        if min(workers, len(missing)) < 2:
            for job in track(missing, doing):
                _build_one(job)
        else:
            with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
                for _ in track(pool.map(_build_one, missing), doing, total=len(missing)):
                    pass
    return files["torso"], files["head"]


def _build_one(job: tuple[Path, str, int, int]) -> None:
    file, kind, seed, number = job
    own = derive_seed("pretraining anatomy", kind, seed, number)
    anatomy = draw_torso(own) if kind == "torso" else build_brain(own)
    partial = file.with_suffix(f".partial-{os.getpid()}.npz")
    np.savez_compressed(partial, structure=anatomy.structure)
    partial.replace(file)


class PretrainDataModule(LightningDataModule):
    """Rendered worlds for training a backbone from scratch; validation looks at anatomies that training never meets.

    Args:
        root: folder for the anatomies.
        torsos: to train on.
        heads: to train on.
        seed: of anatomies and stream; null takes ``seed_everything``.
        preprocessing: normalises, and says how large patches are.
        curriculum: what comes when.
        objects: clicked objects per patch.
        batch_size: patches per step and process.
        uses: of every rendered image.
        patches_per_epoch: over all processes.
        val_patches: with one object each.
        workers: processes that render. None do on a GPU, which then renders what it trains on.
    """

    def __init__(
        self,
        root: str = "data/phantom/anatomies",
        torsos: int = 160,
        heads: int = 80,
        seed: int | None = None,
        preprocessing: Preprocessing = Preprocessing(),
        curriculum: Curriculum = Curriculum(),
        objects: int = 6,
        batch_size: int = 8,
        uses: int = 3,
        patches_per_epoch: int = 400,
        val_patches: int = 16,
        workers: int = 1,
    ) -> None:
        super().__init__()
        if min(torsos, heads, objects, batch_size, uses, val_patches) < 1 or patches_per_epoch < batch_size:
            raise InputError(
                "data: torsos, heads, objects, batch_size, uses and val_patches must be at least 1, and "
                "patches_per_epoch at least batch_size"
            )
        if len(set(preprocessing.spacing)) != 1:
            raise InputError(
                "data: rendered patches are cubes of cubes; preprocessing.spacing must be the same along "
                f"every axis, found {list(preprocessing.spacing)}"
            )
        self.root, self.torsos, self.heads, self.seed = root, torsos, heads, run_seed(seed)
        self.preprocessing, self.curriculum, self.objects = preprocessing, curriculum, objects
        self.batch_size, self.uses, self.patches_per_epoch = batch_size, uses, patches_per_epoch
        self.val_patches, self.workers = val_patches, workers

    def prepare_data(self) -> None:
        """Builds the anatomies; Lightning calls this on one process per machine."""
        for held_out in (False, True):
            self._anatomies(held_out)

    def train_dataloader(self) -> DataLoader[Any]:
        """Patches of the epoch, shared out by process."""
        trainer = cast(Trainer, self.trainer)
        device, workers = self._renderers()
        patches = RenderedPatches(
            *self._anatomies(False), self.preprocessing, self.objects, self.curriculum, self.seed, self.uses, device
        )
        sampler = PatchNumbers(self.patches_per_epoch, trainer.global_rank, trainer.world_size)
        return DataLoader(
            patches,
            self.batch_size,
            sampler=sampler,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Patches of anatomies that training never meets, at the end of the curriculum, with one object each."""
        late = Curriculum(1, (0.0, 0.0), (5.0, 5.0))
        device, workers = self._renderers()
        patches = RenderedPatches(*self._anatomies(True), self.preprocessing, 1, late, self._held_seed, device=device)
        return DataLoader(RenderedObjects(patches, self.val_patches), 1, num_workers=workers, collate_fn=single)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """See :func:`~uscl.data.batches.to_device`."""
        return to_device(batch, device)

    def _renderers(self) -> tuple[torch.device, int]:
        """Where patches are rendered, and by how many processes beside this one."""
        device = cast(Trainer, self.trainer).strategy.root_device
        return (device, 0) if device.type == "cuda" else (torch.device("cpu"), self.workers)

    def _anatomies(self, held_out: bool) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Files of torsos and heads; those held out are an eighth as many."""
        torsos, heads = (max(1, n // 8) if held_out else n for n in (self.torsos, self.heads))
        seed = self._held_seed if held_out else self.seed
        files = build_anatomies(Path(self.root), torsos, heads, seed, self.workers + 1)
        return tuple(files[0]), tuple(files[1])

    @property
    def _held_seed(self) -> int:
        return derive_seed("held out", self.seed)
