"""The LightningDataModule: case lists in, batches of patches out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from rich.progress import track
from torch.utils.data import DataLoader

from uscl.data.augmentations import Augmentation
from uscl.data.cache import CaseCache
from uscl.data.datasets import READERS, Case, DataSet, Split, assign_splits, few_shot
from uscl.data.evaluation_patches import EveryObjectOnce, LabelledObjects, PromptedObjects, Region, single
from uscl.data.patches import Preprocessing
from uscl.data.prompts import read_prompts
from uscl.data.store import read_prepared
from uscl.data.training_patches import PatchNumbers, PatchSampling, TrainingPatches
from uscl.errors import InputError
from uscl.seeds import run_seed

log = logging.getLogger(__name__)

_READERS = {**READERS, "prepared": read_prepared}
Loader = DataLoader[dict[str, Any]]


class VolumeDataModule(LightningDataModule):
    """Volumes of any layout that :mod:`uscl.data.datasets` knows, cut into patches.

    Training draws an endless, numbered stream of patches that depends on ``seed`` alone; validation and testing go
    through every (case, class) of their side once; prediction takes clicks from a table and opens no label.

    Args:
        root: the data folder.
        preprocessing: how every volume is prepared.
        sampling: where training patches are cut.
        train_patch_size: edge of the patches to train on, voxels, where they are to be smaller than those of
            ``preprocessing``, which validation and testing keep to. For stage 2.
        objects: objects per training patch, for stage 2 with ``model.object_clicks``; a patch that shows fewer repeats
            them.
        dataset: its layout: ``folder`` (plain, or an nnU-Net raw data set), ``amos``, ``totalsegmentator``,
            ``brats``, ``ultrasound`` (sweeps of any kind, listed in a manifest), or ``prepared`` for what ``uscl
            prepare`` wrote.
        modality: which image of a case, or which cases: a channel's number or name (``folder``), ``ct`` or ``mr``
            (``amos``, ``totalsegmentator``), ``t1n``, ``t1c``, ``t2w`` or ``t2f`` (``brats``), a site
            (``ultrasound``); null for the default.
        classes: names of classes to use; null for all that the data set names.
        batch_size: training patches per step and process.
        patches_per_epoch: training patches of one epoch over all processes; null for one per (case, class).
        val_fraction: share of the patients for validation, where the data set leaves the split open.
        test_fraction: share of the patients for testing, likewise.
        split_seed: decides which patients these are.
        fold: [i, k] for cross-validation: part i of k, counted from 0, of all patients that are not for testing is the
            validation side.
        train_cases: train on so many labelled cases alone (few-shot); null for all.
        seed: of the stream of training patches; null takes ``seed_everything``.
        augmentation: how training patches are changed.
        num_workers: processes that prepare patches.
        cached_cases: prepared cases kept in memory, by each process that prepares patches.
        region: where the patch of a validation or test lies: around the ``label``, as in the published evaluations, or
            around the ``first_click``, which is all that a user gives.
        prompts: table of clicks to predict from (see :func:`uscl.data.prompts.read_prompts`).

    Attributes:
        leave_out: (case, class) pairs that a test goes past, for they were scored before it was interrupted.
    """

    def __init__(
        self,
        root: str,
        preprocessing: Preprocessing = Preprocessing(),
        sampling: PatchSampling = PatchSampling(),
        train_patch_size: int | None = None,
        objects: int = 1,
        dataset: Literal["folder", "amos", "totalsegmentator", "brats", "ultrasound", "prepared"] = "folder",
        modality: str | None = None,
        classes: list[str] | None = None,
        batch_size: int = 2,
        patches_per_epoch: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        fold: tuple[int, int] | None = None,
        train_cases: int | None = None,
        seed: int | None = None,
        augmentation: Augmentation = Augmentation(),
        num_workers: int = 0,
        cached_cases: int = 64,
        region: Region = "label",
        prompts: str | None = None,
    ) -> None:
        super().__init__()
        if objects < 1:
            raise InputError(f"data.objects must be at least 1, found {objects}")
        if sampling.centre == "volume" and (objects > 1 or train_patch_size is not None):
            raise InputError(
                "data.objects and data.train_patch_size are for training on labels; leave them out where "
                "data.sampling.centre is volume"
            )
        self.root, self.dataset, self.modality = root, dataset, modality
        self.preprocessing = preprocessing
        self.sampling, self.train_patch_size, self.objects = sampling, train_patch_size, objects
        self.classes = classes
        self.batch_size = batch_size
        self.patches_per_epoch = patches_per_epoch
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed, self.fold, self.train_cases = split_seed, fold, train_cases
        self.seed = run_seed(seed)
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.cached_cases = cached_cases
        self.region: Region = region
        self.prompts = prompts
        self.leave_out: frozenset[tuple[str, str]] = frozenset()
        self._data_set: DataSet | None = None
        self._cache: CaseCache | None = None
        self._objects: dict[Split, list[tuple[Case, str]]] = {}

    def read_data_set(self) -> DataSet:
        """Lists the cases of the layout in use, with the classes in use."""
        return _READERS[self.dataset](Path(self.root), self.modality).require_sound().only(self.classes)

    @property
    def data_set(self) -> DataSet:
        """All cases, each with its split."""
        if self._data_set is None:
            found = self.read_data_set()
            split = assign_splits(found, self.val_fraction, self.test_fraction, self.split_seed, self.fold)
            few = self.train_cases
            self._data_set = split if few is None else few_shot(split, few, self.split_seed)
        return self._data_set

    @property
    def cache(self) -> CaseCache:
        """The prepared cases."""
        if self._cache is None:
            folder = Path(self.root).expanduser() if self.dataset == "prepared" else None
            self._cache = CaseCache(self.preprocessing, self.data_set, self.cached_cases, folder)
        return self._cache

    def setup(self, stage: Literal["fit", "validate", "test", "predict"] | str) -> None:
        """Reads what the stage needs and fails early where it is not there.

        Raises:
            InputError: no case on a side that is needed, an unknown class name, no object of a class in use, or a file
                that cannot be used.
        """
        if stage == "predict":
            if self.prompts is None:
                raise InputError("predicting needs clicks: give --data.prompts TABLE.csv (image,i,j,k,label[,object])")
            return
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in needed[stage]:
            cases = self.data_set.in_split(split)
            if not cases and split != "val":
                everything = "--data.val_fraction 0 --data.test_fraction " + ("1" if split == "test" else "0")
                raise InputError(
                    f"{self.root}: no case on the {split} side of {len(self.data_set.cases)}; {everything} puts all "
                    "patients there that no file assigns elsewhere, or say in patients.csv where each belongs"
                )
            if self._looks_at_labels(split):
                self._objects[split] = self._list_objects(split, cases)

    def train_dataloader(self) -> Loader:
        """Batches ``image`` [B, 1, S, S, S] and ``target`` [B, K, S, S, S] with K = ``objects``.

        Without ``target`` where labels are not looked at.
        """
        cases = self.data_set.in_split("train")
        cases_of: dict[str | None, Sequence[Case]] = {None: cases}
        length = len(cases)
        if self._looks_at_labels("train"):
            objects = self._objects["train"]
            cases_of = {name: [case for case, n in objects if n == name] for name in self.data_set.classes}
            length = len(objects)
        length = self.patches_per_epoch or length
        if length < self.batch_size * self._world_size:
            raise InputError(
                f"{length} patches per epoch do not fill one batch of {self.batch_size} on {self._world_size} "
                "process(es); raise data.patches_per_epoch or lower data.batch_size"
            )
        patches = TrainingPatches(
            self.cache, cases_of, self.sampling, self.seed, self.augmentation, self.train_patch_size, self.objects
        )
        sampler = PatchNumbers(length, self._rank, self._world_size)
        return self._loader(patches, sampler, batch_size=self.batch_size, drop_last=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every (case, class) of the validation side; fixed patches where labels are not looked at."""
        cases = self.data_set.in_split("val")
        if not cases:
            return []
        if self._looks_at_labels("val"):
            return self._objects_loader("val")
        still = replace(self.sampling, flip_probability=0.0)
        patches = TrainingPatches(self.cache, {None: cases}, still, self.seed)
        sampler = EveryObjectOnce(max(len(cases), self.batch_size), self._rank, self._world_size)
        return self._loader(patches, sampler, batch_size=self.batch_size)

    def test_dataloader(self) -> Loader:
        """Every (case, class) of the test side, one at a time."""
        return self._objects_loader("test")

    def predict_dataloader(self) -> Loader:
        """Every object of the table of clicks, one at a time."""
        assert self.prompts is not None
        objects = PromptedObjects(read_prompts(self.prompts), self.preprocessing)
        sampler = EveryObjectOnce(len(objects), self._rank, self._world_size)
        return self._loader(objects, sampler, batch_size=1, collate_fn=single)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Moves the tensors; grids, names and references stay where they are."""
        return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    def _objects_loader(self, split: Split) -> Loader:
        left = [
            (case, name)
            for case, name in self._objects[split]
            if split != "test" or (case.name, name) not in self.leave_out
        ]
        objects = LabelledObjects(self.cache, left, split == "test", self.region)
        sampler = EveryObjectOnce(len(objects), self._rank, self._world_size)
        return self._loader(objects, sampler, batch_size=1, collate_fn=single)

    def _loader(self, patches: Any, sampler: Any, **options: Any) -> Loader:
        return DataLoader(
            patches,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )

    def _looks_at_labels(self, split: Split) -> bool:
        return split == "test" or self.sampling.centre != "volume"

    def _list_objects(self, split: Split, cases: Sequence[Case]) -> list[tuple[Case, str]]:
        """Which of the classes in use occur in which case; looks through every label map once."""
        wanted = self.data_set.classes
        objects, vanished = [], []
        for case in track(cases, f"Looking through {len(cases)} {split} cases", disable=len(cases) < 2, transient=True):
            prepared = self.cache.labelled(case)[0]
            present = set(prepared.summary)
            if not present and case.label is not None and not case.label.is_dir():
                raise InputError(
                    f"{case.label}: has no foreground (at a spacing of {self.preprocessing.spacing} mm); "
                    "correct the map, or remove image and map"
                )
            objects += [(case, name) for name, ids in wanted.items() if present.intersection(ids)]
            vanished += [
                f"{name} of {case.name}"
                for name, ids in wanted.items()
                if not present.intersection(ids) and set(prepared.vanished).intersection(ids)
            ]
        if vanished:
            log.warning(
                "%d objects are too small for a spacing of %s mm and left out of the %s side: %s%s",
                len(vanished),
                list(self.preprocessing.spacing),
                split,
                ", ".join(vanished[:5]),
                ", ..." if len(vanished) > 5 else "",
            )
        if cases and not objects:
            raise InputError(f"{self.root}: none of the classes in use occurs in the {len(cases)} {split} cases")
        return objects

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1
