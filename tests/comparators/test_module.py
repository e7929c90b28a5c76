"""Comparators of one's own: what a method does to what it is shown stays with it, and half a contract is refused."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from uscl.comparators import Comparator, Loaded
from uscl.comparators.module import ComparatorModule
from uscl.data import Preprocessing, Volume, VolumeDataModule
from uscl.errors import InputError
from uscl.evaluation.promptable import Evaluation


class Spoiling:
    """Overwrites what it is shown."""

    def set_image(self, image):
        array = image.array if isinstance(image, Volume) else image
        array[...] = 77
        self.shape = array.shape if isinstance(image, Volume) else tuple(array.shape[2:])

    def segment(self, clicks):
        mask = np.zeros(self.shape, bool)
        for click in clicks:
            mask[click.index] = click.foreground
        return mask


@dataclass(frozen=True)
class Spoils(Comparator):
    title: ClassVar[str] = "Spoils"

    def load(self):
        return Loaded(Spoiling(), "none")


@dataclass(frozen=True)
class SpoilsVolumes(Spoils):
    takes: ClassVar[str] = "volume"


@pytest.mark.parametrize("comparator", [Spoils(), SpoilsVolumes()], ids=["patch", "volume"])
def test_a_method_that_overwrites_its_image_spoils_it_for_nobody(comparator, study):
    data = VolumeDataModule(str(study), Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64))
    data.setup("test")
    module = ComparatorModule(comparator, Evaluation(clicks=(1,)))
    module.configure_model()
    batch = next(iter(data.test_dataloader()))
    before = batch.image.clone()
    segmenter = module.segmenter_of(batch, "test")
    for _ in range(2):
        segmenter.set_image(batch.image)
        assert torch.equal(batch.image, before)
        if comparator.takes == "volume":
            assert (module._volume_of(batch).array != 77).any()


@dataclass(frozen=True)
class Untitled(Spoils):
    title: ClassVar[None] = None


@dataclass(frozen=True)
class TakesSlices(Spoils):
    takes: ClassVar[str] = "slices"


@dataclass(frozen=True)
class LoadsNothing(Spoils):
    def load(self):
        return Spoiling()


@pytest.mark.parametrize(
    ("comparator", "message"),
    [
        (Untitled(), "comparator Untitled: has no title"),
        (TakesSlices(), "comparator TakesSlices: takes 'slices'; expected 'patch' or 'volume'"),
        (LoadsNothing(), r"comparator LoadsNothing: load\(\) returned .* expected a uscl.comparators.Loaded"),
    ],
    ids=["title", "takes", "load"],
)
def test_half_a_contract_is_refused(comparator, message):
    with pytest.raises(InputError, match=message):
        ComparatorModule(comparator).configure_model()


def test_comparators_are_not_trained():
    with pytest.raises(InputError, match="tested, not trained"):
        ComparatorModule(Spoils()).training_step(None, 0)
