"""Testing a 2D method on volumes through Lightning, as ours is tested."""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from uscl.comparators.methods import Comparator, load_comparator
from uscl.comparators.sam import PromptedSam
from uscl.comparators.slices import SliceSegmenter
from uscl.errors import InputError, WeightsNotFoundError
from uscl.prompting import Click, ClickProtocol, evaluation_rollout
from uscl.seeds import seeded_draw


class ComparatorModule(LightningModule):
    """Tests a 2D method slice by slice on the objects, patches and first clicks that every other method meets.

    A round is one click on EVERY slice that holds the object, so that its n clicks are many more points in the volume
    than the n of a 3D method; the rows hold both numbers.

    Args:
        comparator: the method: Sam, MobileSam, TinySam or SamMed2D.
        test_clicks: numbers of clicks per slice after which a test scores; the paper's are 1, 3, 5 and 10.
        protocol: where clicks go, and which mask is scored; a 2D method is always shown all clicks on a slice.
        method: name in the result rows; null takes the comparator's.
    """

    def __init__(
        self,
        comparator: Comparator,
        test_clicks: tuple[int, ...] = (1, 3, 5, 10),
        protocol: ClickProtocol = ClickProtocol(),
        method: str | None = None,
    ) -> None:
        super().__init__()
        if min(test_clicks, default=0) < 1:
            raise InputError(f"model.test_clicks takes numbers from 1 on; found {list(test_clicks)}")
        self.comparator = comparator
        self.test_clicks = tuple(sorted(test_clicks))
        self.protocol = protocol
        self.method = method or comparator.title
        self.weights = ""
        self.net: PromptedSam | None = None

    def configure_model(self) -> None:
        """Builds the model and loads its weights."""
        if self.net is None:
            try:
                self.net, report = load_comparator(self.comparator)
            except WeightsNotFoundError as error:
                raise WeightsNotFoundError(error.reference, f"{self.method}: weights not found: {error}") from error
            self.net.requires_grad_(False)
            self.weights = f"{PurePath(report.source).name} sha256:{report.sha256[:12]}"

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Sets clicks on one object; the evaluation callback scores what comes out."""
        slicing = self.comparator.slicing
        steps = evaluation_rollout(
            self._segmenter(),
            batch["image"],
            batch["target"],
            self.test_clicks[-1],
            partial(seeded_draw, "click", batch["data_set"], batch["case"], batch["class_name"]),
            self.protocol,
            slice_axis=slicing.axis,
        )
        chosen = [step for step in steps if step.number in self.test_clicks]
        return {"steps": chosen, "method": self.method, "weights": self.weights}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Logits [S, S, S] for somebody's clicks; slices without a click are background."""
        segmenter = self._segmenter()
        segmenter.set_image(batch["image"])
        return segmenter.segment([Click(index, foreground) for index, foreground in batch["points"]])

    def configure_optimizers(self) -> None:
        """Refuses: comparators are tested as they were published.

        Raises:
            InputError: always.
        """
        raise InputError("comparators are tested, not trained; use `uscl test`")

    def _segmenter(self) -> SliceSegmenter:
        assert self.net is not None
        return SliceSegmenter(self.net, self.comparator.slicing)
