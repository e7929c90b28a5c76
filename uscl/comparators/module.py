"""Testing other methods on volumes through Lightning, as ours is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from uscl.comparators.comparator import Comparator, Loaded
from uscl.data.batches import CaseObject, PromptedObject
from uscl.data.cache import read_case_image
from uscl.data.datasets import Case
from uscl.data.volume import Volume
from uscl.errors import InputError, WeightsNotFoundError
from uscl.evaluation.promptable import Evaluation, PromptableModule
from uscl.prompting import Click, Segmenter, VolumeSegmenter, WholeVolume
from uscl.prompting.answers import as_logits


class ComparatorModule(PromptableModule):
    """Tests another method on the objects, patches and first clicks that ours meets.

    A round of a 2D method is one click on EVERY slice that holds the object, so that its n clicks are many more points
    in the volume than the n of a 3D method; the rows hold both numbers. A method that takes whole volumes is clicked on
    within the patch, and its mask is scored on the image's own grid.

    Args:
        comparator: the method: Sam, MobileSam, TinySam, SamMed2D, or a class of your own.
        evaluation: how tests click and score; a 2D method is always shown all clicks on a slice.
    """

    def __init__(self, comparator: Comparator, evaluation: Evaluation = Evaluation()) -> None:
        super().__init__(evaluation)
        kind = type(comparator).__qualname__
        if not isinstance(getattr(comparator, "title", None), str):
            raise InputError(f"comparator {kind}: has no title; give it the name that tables show")
        if comparator.takes not in ("patch", "volume"):
            raise InputError(f"comparator {kind}: takes {comparator.takes!r}; expected 'patch' or 'volume'")
        self.comparator = comparator
        self.method = self.method or comparator.title
        self.net: nn.Module | None = None
        self._loaded: Loaded | None = None
        self._volume: tuple[Case, Volume] | None = None

    def configure_model(self) -> None:
        """Builds the method and loads its weights."""
        if self._loaded is None:
            try:
                self._loaded = self.comparator.load()
            except WeightsNotFoundError as error:
                raise WeightsNotFoundError(error.reference, f"{self.method}: weights not found: {error}") from error
            if not isinstance(self._loaded, Loaded):
                raise InputError(
                    f"comparator {type(self.comparator).__qualname__}: load() returned {self._loaded!r}; expected a "
                    "uscl.comparators.Loaded"
                )
            self.net = self._loaded.model

    def segmenter(self, stage: str) -> Segmenter:
        """The method, where it takes patches; its answers are checked.

        Raises:
            InputError: it takes whole volumes, of which a patch knows nothing.
        """
        assert self._loaded is not None
        if self.comparator.takes == "volume":
            raise InputError(f"{self.method} takes whole volumes, of which a patch knows nothing; use segmenter_of")
        return _Checked(cast("Segmenter", self._loaded.segmenter))

    def segmenter_of(self, batch: CaseObject | PromptedObject, stage: str) -> Segmenter:
        """The method, shown as a segmenter of the patch where it takes whole volumes."""
        if self.comparator.takes == "patch":
            return self.segmenter(stage)
        assert self._loaded is not None
        volume = batch.volume if isinstance(batch, PromptedObject) else self._volume_of(batch)
        method = cast("VolumeSegmenter", self._loaded.segmenter)
        return WholeVolume(method, volume, batch.grid, batch.corner, batch.image.shape[-1])

    @property
    def weights_in_words(self) -> str:
        """As the comparator reports them."""
        assert self._loaded is not None
        return self._loaded.weights

    @property
    def slice_axis(self) -> int | None:
        """As the comparator has it."""
        return self.comparator.slice_axis

    def configure_optimizers(self) -> None:
        """Refuses: comparators are tested as they were published.

        Raises:
            InputError: always.
        """
        raise InputError("comparators are tested, not trained; use `uscl test`")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Refuses, as :meth:`configure_optimizers` does; Lightning asks whether it is there."""
        self.configure_optimizers()

    def _volume_of(self, batch: CaseObject) -> Volume:
        """The image of a case; objects of one case come one after the other, so the last one is kept."""
        if self._volume is None or self._volume[0] != batch.case:
            self._volume = (batch.case, read_case_image(batch.case))
        return self._volume[1]


class _Checked:
    """A method that takes patches, which can neither change them nor answer something else than logits."""

    def __init__(self, method: Segmenter) -> None:
        self._method = method
        self._shape: tuple[int, ...] = ()

    def set_image(self, image: Tensor) -> None:
        """Gives the method a copy of the patch."""
        self._shape = tuple(image.shape[2:])
        self._method.set_image(image.clone())

    def segment(self, clicks: Sequence[Click]) -> Tensor:
        """See :func:`~uscl.prompting.answers.as_logits`."""
        return as_logits(self._method.segment(clicks), self._shape, self._method)
