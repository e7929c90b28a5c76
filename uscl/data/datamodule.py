"""The LightningDataModule: case lists in, batches of patches out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import track
from torch.utils.data import DataLoader

from uscl.data.augmentations import Augmentation
from uscl.data.batches import single, to_device
from uscl.data.cache import CaseCache
from uscl.data.datasets import Case, DataSet, Split, Splitting
from uscl.data.evaluation_patches import EveryObjectOnce, LabelledObjects, PromptedObjects, Region
from uscl.data.patches import Preprocessing
from uscl.data.plausible import size_note
from uscl.data.prompts import read_prompts
from uscl.data.registry import read_data_set
from uscl.data.training_patches import PatchNumbers, PatchSampling, TrainingPatches
from uscl.errors import InputError
from uscl.seeds import run_seed

log = logging.getLogger(__name__)

Loader = DataLoader[Any]


class VolumeDataModule(LightningDataModule):
    """Volumes of any layout that :data:`uscl.data.registry.DATA_SETS` knows, cut into patches.

    Training draws an endless, numbered stream of patches that depends on ``seed`` alone; validation and testing go
    through every (case, class) of their side once; prediction takes clicks from a table and opens no label.

    Args:
        root: the data folder.
        preprocessing: how every volume is prepared.
        sampling: where training patches are cut.
        dataset: the layout of the folder: ``folder`` (plain, or an nnU-Net raw data set), ``amos``,
            ``totalsegmentator``, ``brats``, ``ultrasound`` (sweeps of any kind, listed in a manifest), ``prepared`` for
            what ``uscl prepare`` wrote; or the dotted path of a reader of your own.
        modality: which image of a case, or which cases: a channel's number or name (``folder``), ``ct`` or ``mr``
            (``amos``, ``totalsegmentator``), ``t1n``, ``t1c``, ``t2w`` or ``t2f`` (``brats``), a site
            (``ultrasound``); null for the default.
        classes: names of classes to use; null for all that the data set names.
        augmentation: how training patches are changed.
        split: which patients train, validate and test.
        batch_size: training patches per step and process.
        patches_per_epoch: training patches of one epoch over all processes; null for one per (case, class).
        num_workers: processes that prepare patches.
        cached_cases: prepared cases kept in memory, by each process that prepares patches.
        region: where the patch of a validation or test lies: around the ``label``, as in the published evaluations, or
            around the ``first_click``, which is all that a user gives.
        prompts: table of clicks to predict from (see :func:`uscl.data.prompts.read_prompts`).
        seed: of the stream of training patches; null takes ``seed_everything``.
    """

    def __init__(
        self,
        root: str,
        preprocessing: Preprocessing = Preprocessing(),
        sampling: PatchSampling = PatchSampling(),
        dataset: str = "folder",
        modality: str | None = None,
        classes: list[str] | None = None,
        augmentation: Augmentation = Augmentation(),
        split: Splitting = Splitting(),
        batch_size: int = 2,
        patches_per_epoch: int | None = None,
        num_workers: int = 0,
        cached_cases: int = 64,
        region: Region = "label",
        prompts: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.root, self.dataset, self.modality, self.classes = root, dataset, modality, classes
        self.preprocessing, self.sampling, self.augmentation, self.split = preprocessing, sampling, augmentation, split
        self.batch_size, self.patches_per_epoch = batch_size, patches_per_epoch
        self.num_workers, self.cached_cases = num_workers, cached_cases
        self.region: Region = region
        self.prompts = prompts
        self.seed = run_seed(seed)
        self._left_out: frozenset[tuple[str, str]] = frozenset()
        self._data_set: DataSet | None = None
        self._cache: CaseCache | None = None
        self._objects: dict[Split, list[tuple[Case, str]]] = {}

    def read_data_set(self) -> DataSet:
        """Lists the cases of the layout in use, with the classes in use."""
        return read_data_set(self.dataset, Path(self.root), self.modality).require_sound().only(self.classes)

    @property
    def data_set(self) -> DataSet:
        """All cases, each with its split."""
        if self._data_set is None:
            self._data_set = self.split.of(self.read_data_set())
        return self._data_set

    @property
    def cache(self) -> CaseCache:
        """The prepared cases."""
        if self._cache is None:
            self._cache = CaseCache(self.preprocessing, self.data_set, self.cached_cases)
        return self._cache

    def leave_out(self, objects: Iterable[tuple[str, str]]) -> None:
        """Makes the test go past (case, class) pairs, for they were scored before it was interrupted."""
        self._left_out = frozenset(objects)

    def setup(self, stage: str) -> None:
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
                tested = int(split == "test")
                everything = f"--data.split.val_fraction 0 --data.split.test_fraction {tested}"
                raise InputError(
                    f"{self.root}: no case on the {split} side of {len(self.data_set.cases)}; {everything} puts all "
                    "patients there that no file assigns elsewhere, or say in patients.csv where each belongs"
                )
            if self._looks_at_labels(split):
                self._objects[split] = self._list_objects(split, cases)

    def train_dataloader(self) -> Loader:
        """Batches of :class:`~uscl.data.batches.LabelledPatch`, or of ``ImagePatch`` where labels are not looked at."""
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
        patches = TrainingPatches(self.cache, cases_of, self.sampling, self.seed, self.augmentation)
        sampler = PatchNumbers(length, self._rank, self._world_size)
        return self._loader(patches, sampler, batch_size=self.batch_size, drop_last=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every (case, class) of the validation side; fixed patches where labels are not looked at."""
        cases = self.data_set.in_split("val")
        if not cases:
            return []
        if self._looks_at_labels("val"):
            alone = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
            return self._objects_loader("val", with_truth=alone)
        still = replace(self.sampling, flip_probability=0.0)
        patches = TrainingPatches(self.cache, {None: cases}, still, self.seed)
        sampler = EveryObjectOnce(max(len(cases), self.batch_size), self._rank, self._world_size)
        return self._loader(patches, sampler, batch_size=self.batch_size)

    def test_dataloader(self) -> Loader:
        """Every (case, class) of the test side, one at a time."""
        return self._objects_loader("test", with_truth=True)

    def predict_dataloader(self) -> Loader:
        """Every object of the table of clicks, one at a time."""
        assert self.prompts is not None
        objects = PromptedObjects(read_prompts(self.prompts), self.preprocessing)
        sampler = EveryObjectOnce(len(objects), self._rank, self._world_size)
        return self._loader(objects, sampler, batch_size=1, collate_fn=single)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """See :func:`~uscl.data.batches.to_device`."""
        return to_device(batch, device)

    def _objects_loader(self, split: Split, with_truth: bool) -> Loader:
        left = [
            (case, name)
            for case, name in self._objects[split]
            if split != "test" or (case.name, name) not in self._left_out
        ]
        objects = LabelledObjects(self.cache, left, with_truth, self.region)
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
        objects, vanished, odd = [], [], {}
        for case in track(cases, f"Looking through {len(cases)} {split} cases", disable=len(cases) < 2, transient=True):
            prepared = self.cache.labelled(case)[0]
            note = size_note(prepared.grid.oriented_shape, prepared.grid.source_spacing)
            if note and prepared.distances != "assumed":
                odd[case.name] = note
            present = set(prepared.summary)
            if not present and case.label is not None and not case.label.is_dir():
                raise InputError(
                    f"{case.label}: has no foreground (at data.preprocessing.spacing {self.preprocessing.spacing}); "
                    "correct the map, or remove image and map"
                )
            objects += [(case, name) for name, ids in wanted.items() if present.intersection(ids)]
            vanished += [
                f"{name} of {case.name}"
                for name, ids in wanted.items()
                if not present.intersection(ids) and set(prepared.vanished).intersection(ids)
            ]
        if odd:
            first, note = next(iter(odd.items()))
            log.warning("%d of %d %s cases have a size that cannot be: %s %s", len(odd), len(cases), split, first, note)
        if vanished:
            log.warning(
                "%d objects are too small for a spacing of %s and left out of the %s side: %s%s",
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
