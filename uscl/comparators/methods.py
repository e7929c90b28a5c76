"""The 2D methods of the paper's tables: what a comparison needs to know of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from torch import Tensor

from uscl.backbone.checkpoints import LoadReport, fetch, load_checkpoint, read_tensors
from uscl.comparators.comparator import Comparator, Loaded
from uscl.comparators.pickles import read_pickled_tensors
from uscl.comparators.published import PUBLISHED, Published
from uscl.comparators.sam import SIZES, PromptedSam, SamSize
from uscl.comparators.sam_med2d import SIZE as SAM_MED2D_SIZE
from uscl.comparators.sam_med2d import SamMed2D as SamMed2DModel
from uscl.comparators.slices import SliceSegmenter, Slicing
from uscl.comparators.tiny_vit import TinyViT


@dataclass(frozen=True)
class SliceComparator(Comparator):
    """A 2D method: its weights, and how slices are given to it.

    Attributes:
        weights: file or ``hf://`` reference; None looks for the published file on this machine.
        slicing: how a volume is given to the model.
    """

    weights: str | None = None
    slicing: Slicing = Slicing()

    @property
    @abstractmethod
    def published(self) -> Published:
        """The published weights."""

    @abstractmethod
    def build(self) -> PromptedSam:
        """The model with random weights."""

    @property
    def slice_axis(self) -> int:
        """The axis that volumes are sliced along."""
        return self.slicing.axis

    def load(self) -> Loaded:
        """Builds the model and fills in its weights, all of them."""
        model, report = load_model(self)
        segmenter = SliceSegmenter(model.requires_grad_(False), self.slicing)
        return Loaded(segmenter, f"{PurePath(report.source).name} sha256:{report.sha256[:12]}", model)


@dataclass(frozen=True)
class Sam(SliceComparator):
    """SAM (Kirillov et al. 2023), slice by slice.

    Attributes:
        size: of the image encoder; the paper does not say which it took.
        weights: Meta's file or the format of transformers; null looks for Meta's on this machine.
        slicing: how a volume is given to the model.
    """

    title: ClassVar[str] = "SAM"
    size: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"

    @property
    def published(self) -> Published:
        """Meta's weights of this size."""
        return PUBLISHED[f"sam_{self.size}"]

    def build(self) -> PromptedSam:
        """The model with random weights."""
        return PromptedSam(SIZES[self.size])


@dataclass(frozen=True)
class MobileSam(SliceComparator):
    """MobileSAM (Zhang et al. 2023), slice by slice.

    Attributes:
        weights: the published file; null looks for it on this machine.
        slicing: how a volume is given to the model.
    """

    title: ClassVar[str] = "MobileSAM"

    @property
    def published(self) -> Published:
        """The authors' weights."""
        return PUBLISHED["mobile_sam"]

    def build(self) -> PromptedSam:
        """The model with random weights."""
        return PromptedSam(SamSize(), TinyViT())


@dataclass(frozen=True)
class TinySam(MobileSam):
    """TinySAM (Shu et al. 2023), slice by slice; the architecture is MobileSAM's.

    Attributes:
        weights: the published file; null looks for it on this machine.
        slicing: how a volume is given to the model.
    """

    title: ClassVar[str] = "TinySAM"

    @property
    def published(self) -> Published:
        """The authors' weights."""
        return PUBLISHED["tinysam"]


@dataclass(frozen=True)
class SamMed2D(SliceComparator):
    """SAM-Med2D (Cheng et al. 2023), slice by slice.

    Attributes:
        weights: the published pickle, or what ``uscl comparators convert`` made of it; null looks for the published
            file on this machine.
        slicing: how a volume is given to the model.
    """

    title: ClassVar[str] = "SAM-Med2D"

    @property
    def published(self) -> Published:
        """The authors' weights, in a third party's copy."""
        return PUBLISHED["sam_med2d"]

    def build(self) -> PromptedSam:
        """The model with random weights."""
        return SamMed2DModel(SAM_MED2D_SIZE)


def load_model(comparator: SliceComparator) -> tuple[PromptedSam, LoadReport]:
    """Builds a model and fills in its weights, all of them.

    Raises:
        WeightsNotFoundError: they are not there.
        InputError: they cannot be used, or part of the model would stay random.
    """
    reference = comparator.weights or comparator.published.reference
    file = fetch(reference, download=comparator.weights is not None)  # before a model of gigabytes is built
    model = comparator.build()
    read: Callable[[Path], dict[str, Tensor]] = read_tensors
    if isinstance(comparator, SamMed2D) and file.suffix != ".safetensors":
        read = read_pickled_tensors
    report = load_checkpoint(model, file, model.translate, read).require_complete()
    return model.eval(), report
