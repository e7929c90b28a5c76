"""The contract that every promptable method satisfies, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone import SamMed3D
from uscl.errors import InputError
from uscl.prompting.clicks import Click, as_points

if TYPE_CHECKING:
    from uscl.types import LowResLogits, PatchBatch


class Segmenter(Protocol):
    """Anything that turns an image and clicks into logits; evaluation and serving know no more than this."""

    def set_image(self, image: PatchBatch) -> None:
        """Takes the patch to segment, [1, 1, S, S, S], normalised; forgets everything about the one before."""

    def segment(self, clicks: Sequence[Click]) -> Tensor:
        """Logits [S, S, S] on the patch grid for all clicks given so far; the same clicks give the same logits."""


class SamMed3DSegmenter:
    """SAM-Med3D as a segmenter: clicks accumulate, and the logits of the step before are the mask prompt.

    Clicks are replayed one after the other, as a user sets them and as SAM-Med3D's inference does; giving the model
    several at once is another, worse thing. A call that continues the one before goes on from its logits.

    Args:
        model: the backbone, with or without LoRA.
        accumulate: show the model all clicks so far at every step; else the newest alone.
    """

    def __init__(self, model: SamMed3D, accumulate: bool = True) -> None:
        self.model = model
        self.accumulate = accumulate
        self._embedding: Tensor | None = None
        self._clicks: list[Click] = []
        self._low: Tensor | None = None

    @torch.no_grad()
    def set_image(self, image: PatchBatch) -> None:
        """Encodes the patch, once for all clicks on it."""
        self._embedding = self.model.encode_image(image)
        self._clicks, self._low = [], None

    @torch.no_grad()
    def segment(self, clicks: Sequence[Click]) -> Tensor:
        """Logits [S, S, S] after the last click.

        Raises:
            InputError: no click is given, or no image was set.
        """
        if self._embedding is None or not clicks:
            raise InputError("segmenting needs an image and at least one click")
        known = len(self._clicks)
        if list(clicks[:known]) != self._clicks or len(clicks) == known:
            known, self._low = 0, None
        for count in range(known + 1, len(clicks) + 1):
            points = as_points(clicks[0 if self.accumulate else count - 1 : count], self._embedding.device)
            if self._low is None:
                self._low = blank_mask_prompt(self.model, 1, self._embedding)
            self._low = self.model.decode(self._embedding, points, self._low)[0]
        self._clicks = list(clicks)
        assert self._low is not None
        return upsample(self._low, self.model.config.image_size)[0, 0]


def blank_mask_prompt(model: SamMed3D, batch: int, like: Tensor) -> LowResLogits:
    """The mask prompt of the first click: zeros [B, 1, m, m, m], as the published weights were trained with."""
    return like.new_zeros(batch, 1, *(model.config.mask_size,) * 3)


def upsample(low: LowResLogits, size: int) -> Tensor:
    """Low-resolution logits [B, M, m, m, m] on the patch grid [B, M, S, S, S], trilinear."""
    return F.interpolate(low, size=(size,) * 3, mode="trilinear", align_corners=False)
