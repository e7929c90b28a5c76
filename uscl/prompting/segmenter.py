"""The contract that every promptable method satisfies, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone import SamMed3D
from uscl.errors import InputError
from uscl.prompting.clicks import Click, as_points
from uscl.prompting.guided_filter import GuidedFilter
from uscl.prompting.inference import PUBLISHED, Inference, Shifts

if TYPE_CHECKING:
    from uscl.types import LowResLogits, PatchBatch


Offset = tuple[int, int, int]


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

    With several shifts the patch is segmented that many times, each time moved a little against the grid of tokens, and
    the logits, moved back, are averaged. The guided filter acts on what comes out; the mask prompt of the next step
    stays the decoder's own.

    Args:
        model: the backbone, with or without LoRA.
        inference: what is done beside decoding each click once.
        accumulate: show the model all clicks so far at every step; else the newest alone.
    """

    def __init__(self, model: SamMed3D, inference: Inference = PUBLISHED, accumulate: bool = True) -> None:
        self.model = model
        self.inference = inference
        self.accumulate = accumulate
        self.offsets = grid_offsets(inference.shifts, model.config.patch_size)
        self._embedding: Tensor | None = None
        self._filter: GuidedFilter | None = None
        self._clicks: list[Click] = []
        self._low: Tensor | None = None

    @torch.no_grad()
    def set_image(self, image: PatchBatch) -> None:
        """Encodes the patch, once for all clicks on it."""
        # One after the other: the encoder's activations are what takes memory.
        self._embedding = torch.cat([self.model.encode_image(moved(image, offset)) for offset in self.offsets])
        self._filter = GuidedFilter(image[0, 0]) if self.inference.guided_filter else None
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
            points = self._points(clicks[0 if self.accumulate else count - 1 : count])
            if self._low is None:
                self._low = blank_mask_prompt(self.model, len(self.offsets), self._embedding)
            for _ in range(2 if count == 1 and self.inference.first_twice else 1):
                self._low = self.model.decode(self._embedding, points, self._low)[0]
        self._clicks = list(clicks)
        assert self._low is not None
        logits = self._averaged(self._low, self.model.config.image_size)
        return logits if self._filter is None else self._filter(logits, clicks)

    def _averaged(self, low: Tensor, size: int) -> Tensor:
        """Logits [S, S, S] of low-resolution ones [K, 1, m, m, m] at the K positions of the grid."""
        if len(self.offsets) == 1:
            return upsample(low, size)[0, 0]
        total = torch.zeros((size,) * 3, device=low.device)
        for one, offset in zip(low, self.offsets, strict=True):
            total += moved(upsample(one[None], size)[0, 0], (-offset[0], -offset[1], -offset[2]))
        return total / len(self.offsets)

    def _points(self, clicks: Sequence[Click]) -> tuple[Tensor, Tensor]:
        """The clicks on every moved patch: coordinates [K, N, 3] and labels [K, N]."""
        assert self._embedding is not None
        coords, labels = as_points(clicks, self._embedding.device)
        if len(self.offsets) == 1:
            return coords, labels
        offsets = torch.tensor(self.offsets, device=coords.device)
        # A click that leaves the moved patch shows on its border, as what lies there does.
        inside = (coords + offsets[:, None]).clamp(0, self.model.config.image_size - 1)
        return inside, labels.expand(len(self.offsets), -1)


def grid_offsets(shifts: Shifts, token: int) -> list[Offset]:
    """How far a patch is moved, in voxels, for each of the positions of the token grid that are averaged over.

    They lie around the patch itself, half a token from each other along every axis in which they differ; two lie on a
    diagonal, four on every other corner of a cube.

    Args:
        shifts: how many.
        token: edge of a token, voxels; 4 or more.
    """
    if shifts == 1:
        return [(0, 0, 0)]
    quarter = token // 4
    halves = (-quarter, quarter)
    corners = list(product(halves, halves, halves))
    return {2: corners[::7], 4: [corner for corner in corners if prod(corner) > 0], 8: corners}[shifts]


def moved(values: Tensor, offset: Offset) -> Tensor:
    """Moves [..., S, S, S] by whole voxels; the border repeats itself into what comes free."""
    for axis, by in enumerate(offset):
        if by:
            size = values.shape[axis - 3]
            values = values.index_select(axis - 3, (torch.arange(size, device=values.device) - by).clamp(0, size - 1))
    return values


def blank_mask_prompt(model: SamMed3D, batch: int, like: Tensor) -> LowResLogits:
    """The mask prompt of the first click: zeros [B, 1, m, m, m], as the published weights were trained with."""
    return like.new_zeros(batch, 1, *(model.config.mask_size,) * 3)


def upsample(low: LowResLogits, size: int) -> Tensor:
    """Low-resolution logits [B, M, m, m, m] on the patch grid [B, M, S, S, S], trilinear."""
    return F.interpolate(low, size=(size,) * 3, mode="trilinear", align_corners=False)
