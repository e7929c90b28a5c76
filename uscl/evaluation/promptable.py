"""What every module that segments from clicks does in the same way: validation, tests and predictions."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from uscl.data.batches import CaseObject, ClickTarget, PromptedObject
from uscl.errors import InputError
from uscl.evaluation.metrics import Reference
from uscl.evaluation.rows import OWN_INFERENCE, ResultRow
from uscl.evaluation.tables import EVERY_CLASS, dice_cells
from uscl.prompting import Click, ClickProtocol, Inference, RolloutStep, Segmenter, WholeVolume, evaluation_rollout
from uscl.seeds import seeded_draw

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """How validations and tests click and score.

    Attributes:
        clicks: numbers of clicks after which a test scores; the paper's are 1, 3, 5 and 10.
        val_clicks: numbers of clicks after which a validation looks at Dice.
        protocol: where clicks go, what the model is shown of them, and which mask is scored.
        method: name in the result rows; null takes that of the tuning method or comparator.
    """

    clicks: tuple[int, ...] = (1, 3, 5, 10)
    val_clicks: tuple[int, ...] = (1, 5)
    protocol: ClickProtocol = ClickProtocol()
    method: str | None = None

    def __post_init__(self) -> None:
        for name in ("clicks", "val_clicks"):
            numbers = getattr(self, name)
            if min(numbers, default=0) < 1:
                raise InputError(f"evaluation.{name} takes numbers from 1 on; found {list(numbers)}")
            object.__setattr__(self, name, tuple(sorted(numbers)))


class ScoredObject(NamedTuple):
    """What a test found out about one object.

    Attributes:
        rows: one per number of clicks.
        predictions: mask of the patch after each number of clicks, bool [S, S, S].
        clicks: all clicks, in the patch.
    """

    rows: list[ResultRow]
    predictions: dict[int, NDArray[np.bool_]]
    clicks: tuple[Click, ...]


class PredictedMask(NamedTuple):
    """What a prediction gives.

    Attributes:
        mask: uint8 on the image's own grid, 1 where the object is.
        cut_short: the mask reaches a face of its patch inside the volume, so the object may go on beyond it.
    """

    mask: NDArray[np.uint8]
    cut_short: bool


class PromptableModule(LightningModule):
    """Validates, tests and predicts with a segmenter; a subclass says which.

    A test logs ``test/dice_N``, the mean over classes at every N of ``evaluation.clicks``, and keeps all rows; the
    callback :class:`uscl.callbacks.Scoring` writes them. The validations of a training log ``val/dice_N`` and
    ``val/dice``, the last of them, within the patch and by the published inference. A validation by itself scores and
    keeps rows as a test does, on the validation side.

    Args:
        evaluation: how validations and tests click and score.

    Attributes:
        method: name in the result rows.
        rows: of the test, of all processes once it has ended.
        earlier_rows: of a test that was interrupted and goes on; they count in the results.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.method = evaluation.method or ""
        self.rows: list[ResultRow] = []
        self.earlier_rows: list[ResultRow] = []

    @abstractmethod
    def segmenter(self, stage: str) -> Segmenter:
        """What segments in a ``validate``, ``test`` or ``predict``."""

    @property
    @abstractmethod
    def weights_in_words(self) -> str:
        """What the weights are, for the result rows."""

    def inference_of(self, stage: str) -> Inference | None:
        """How masks are made in a stage; None where that is not ours to choose."""
        return None

    @property
    def slice_axis(self) -> int | None:
        """The axis of the patch along whose slices every round sets a click each; None for methods in 3D."""
        return None

    def segmenter_of(self, batch: CaseObject | PromptedObject, stage: str) -> Segmenter:
        """What segments one object; methods that want the whole volume get it here."""
        return self.segmenter(stage)

    def validation_step(self, batch: ClickTarget, batch_idx: int) -> dict[str, ScoredObject] | None:
        """Dice within the patch of one object, after each number of clicks in ``evaluation.val_clicks``.

        A validation by itself, whose objects have their reference, scores as a test does.
        """
        if isinstance(batch, CaseObject) and batch.truth is not None:
            return self.test_step(batch, batch_idx)
        wanted = self.evaluation.val_clicks
        whole = batch if isinstance(batch, CaseObject) else None
        segmenter = self.segmenter("validate") if whole is None else self.segmenter_of(whole, "validate")
        for step in self._roll(batch, wanted, segmenter):
            predicted = step.logits > 0
            dice = 2 * (predicted & batch.target).sum() / (predicted.sum() + batch.target.sum())
            for name in [f"val/dice_{step.number}"] + ["val/dice"] * (step.number == wanted[-1]):
                self.log(name, dice, prog_bar=name == "val/dice", batch_size=1, sync_dist=True)
        return None

    def on_test_epoch_start(self) -> None:
        """Begins without rows."""
        self.rows = []

    on_validation_epoch_start = on_test_epoch_start

    def test_step(self, batch: CaseObject, batch_idx: int) -> dict[str, ScoredObject]:
        """Sets clicks on one object and scores each mask on the image's own grid.

        What lies outside the patch counts as background; the mask of a method that segments whole volumes is scored as
        it is.

        Returns:
            ``scored``, for callbacks.
        """
        assert batch.truth is not None, "a test needs its reference"
        steps = self._roll(batch, self.evaluation.clicks, self.segmenter_of(batch, "test"))
        inference = self.inference_of("test")
        region = "label" if batch.first_click is None else "first click"
        reference = Reference(batch.truth.mask, batch.truth.spacing)
        rows, predictions = [], {}
        for step in steps:
            logits = step.logits.float().cpu().numpy()
            mask = batch.grid.restore(logits, batch.corner).astype(bool) if step.whole is None else step.whole
            scores = reference.score(mask)
            predictions[step.number] = logits > 0
            row = ResultRow(
                data_set=batch.data_set,
                case=batch.case.name,
                class_name=batch.class_name,
                method=self.method,
                clicks=step.number,
                dice=scores.dice,
                nsd=scores.nsd,
                hd95=scores.hd95,
                seconds=step.seconds,
                patient=batch.case.patient,
                weights=self.weights_in_words,
                points=len(step.clicks),
                volume_error=scores.volume_error,
                inference=OWN_INFERENCE if inference is None else inference.in_words,
                protocol=f"patches around the {region}, {self.evaluation.protocol.in_words}",
                distances=batch.truth.distances,
            )
            rows.append(row)
        self.rows += rows
        return {"scored": ScoredObject(rows, predictions, steps[-1].clicks)}

    def on_test_epoch_end(self) -> None:
        """Gathers the rows of all processes and logs their means."""
        found = [self.rows]
        if self.trainer.world_size > 1:
            found = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(found, self.rows)
        rows = [row for some in (self.earlier_rows, *found) for row in some]
        self.rows = sorted(rows, key=lambda row: row.sort_key)
        for (_, name, clicks), cell in dice_cells(self.rows).items():
            if name == EVERY_CLASS:
                self.log(f"{self._verb}/dice_{clicks}", cell.mean, rank_zero_only=True)

    def on_validation_epoch_end(self) -> None:
        """Gathers and logs what a validation by itself scored."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_epoch_end()

    @property
    def _verb(self) -> str:
        return "val" if self.trainer.state.fn == TrainerFn.VALIDATING else "test"

    def predict_step(self, batch: PromptedObject, batch_idx: int) -> PredictedMask:
        """The mask of one object from somebody's clicks, on the image's own grid."""
        segmenter = self.segmenter_of(batch, "predict")
        segmenter.set_image(batch.image)
        logits = segmenter.segment([Click(index, foreground) for index, foreground in batch.points])
        if isinstance(segmenter, WholeVolume):
            return PredictedMask(segmenter.mask.astype(np.uint8), False)
        values = logits.float().cpu().numpy()
        return PredictedMask(batch.grid.restore(values, batch.corner), batch.grid.cut_short(values > 0, batch.corner))

    def described(self) -> dict[str, Any]:
        """What a report has to know of the method besides its rows: see :class:`uscl.evaluation.runs.Setting`."""
        return {"family": self.method}

    def _roll(self, batch: ClickTarget, wanted: Sequence[int], segmenter: Segmenter) -> list[RolloutStep]:
        first = batch.first_click
        steps = evaluation_rollout(
            segmenter,
            batch.image,
            batch.target,
            max(wanted),
            partial(seeded_draw, *batch.click_key),
            self.evaluation.protocol,
            None if first is None else Click(first),
            self.slice_axis,
        )
        return [step for step in steps if step.number in wanted]
