"""Playing the user in training, click by click."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uscl.backbone import SamMed3D
from uscl.errors import InputError
from uscl.prompting.clicks import Click, as_points, error_click
from uscl.prompting.segmenter import blank_mask_prompt, upsample
from uscl.prompting.training import ClickTraining
from uscl.seeds import Draw, seeded_draw

if TYPE_CHECKING:
    from uscl.types import LogitBatch, PatchBatch

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingClicks(ClickTraining):
    """Clicks on one object per image; the defaults, and the loss, are those of SAM-Med3D's training script.

    The loss is the sum over the clicks of Dice with squared denominator plus binary cross-entropy.

    Attributes:
        count: clicks per image. The last one of three or more is given as the mask prompt alone, and so is one drawn
            from the third to the third last where there are five or more.
        accumulate: show the model all clicks so far instead of the newest alone.
        threshold: a voxel counts as predicted where its logit exceeds this. The published script compares logits, not
            probabilities, with 0.5.
    """

    count: int = 11
    accumulate: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"clicks.count must be at least 1, found {self.count}")

    def loss(
        self, model: SamMed3D, image: PatchBatch, target: Tensor, key: tuple[str | int, ...]
    ) -> tuple[Tensor, Tensor]:
        """See :class:`ClickTraining`."""
        if target.shape[1] > 1:
            raise InputError(
                f"data.sampling.objects is {target.shape[1]}: set model.clicks to ObjectClicks, which clicks on all of "
                "them, or data.sampling.objects to 1"
            )
        total, _ = training_rollout(model, image, target, dice_ce(), self, seeded_draw(*key))
        return total, total.detach() / self.count

    def without_points(self, draw: Draw) -> set[int]:
        """The iterations, counted from 0, that see the mask prompt alone."""
        last = {self.count - 1} if self.count >= 3 else set()
        return last | {2 + draw(self.count - 4)} if self.count >= 5 else last


def dice_ce() -> Loss:
    """SAM-Med3D's loss of logits and masks [B, 1, S, S, S]: Dice with squared denominator plus binary cross-entropy."""
    from monai.losses.dice import DiceCELoss  # takes seconds to import, and segmenting does not need it

    loss: Loss = DiceCELoss(sigmoid=True, squared_pred=True, reduction="mean")
    return loss


def training_rollout(
    model: SamMed3D, image: PatchBatch, target: LogitBatch, loss: Loss, clicks: TrainingClicks, draw: Draw
) -> tuple[Tensor, LogitBatch]:
    """One training step's clicks: the image is encoded once, gradients flow through all iterations.

    Source: the training loop of https://github.com/uni-medical/SAM-Med3D.

    Args:
        model: the backbone.
        image: [B, 1, S, S, S].
        target: 0/1 masks of the same shape; every one must hold an object.
        loss: takes logits and target, both [B, 1, S, S, S].
        clicks: the protocol.
        draw: picks the mask-only iteration and every click.

    Returns:
        The sum of the losses after each click, and the logits [B, 1, S, S, S] after the last, detached.
    """
    embedding = model.encode_image(image)
    size = model.config.image_size
    low = blank_mask_prompt(model, image.shape[0], embedding)
    logits = torch.zeros_like(target)
    objects = target[:, 0] > 0
    mask_only = clicks.without_points(draw)
    given: list[list[Click]] = [[] for _ in range(image.shape[0])]
    total = torch.zeros((), device=image.device)
    for step in range(clicks.count):
        predicted = logits[:, 0].detach() > clicks.threshold
        for sample, history in enumerate(given):
            history.append(error_click(predicted[sample], objects[sample], draw))
        shown = [history if clicks.accumulate else history[-1:] for history in given]
        points = None
        if step not in mask_only:
            pairs = [as_points(history, image.device) for history in shown]
            points = torch.cat([coords for coords, _ in pairs]), torch.cat([labels for _, labels in pairs])
        low = model.decode(embedding, points, low)[0]
        logits = upsample(low, size)
        total = total + loss(logits, target)
    return total, logits.detach()
