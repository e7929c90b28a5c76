"""A 2D promptable model on a volume, slice by slice.

Source of the procedure: the evaluation script of SAM-Med3D (https://github.com/uni-medical/SAM-Med3D, validation of its
2D comparators), which FastSAM3D took over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.errors import InputError
from uscl.prompting import Click
from uscl.types import PatchBatch

_OUTSIDE = -20.0
"""Logit of slices without a click."""
_SAM_MEAN, _SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class PromptedModel(Protocol):
    """A 2D model in two calls, as :class:`uscl.comparators.sam.PromptedSam` is one."""

    image_size: int

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings [B, ...] of images [B, 3, S, S]."""

    def decode(
        self, embeddings: Tensor, points: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, M, m, m] and predicted IoU [B, M] for points [B, N, 2] (x, y), labels [B, N] and a mask prompt."""


@dataclass(frozen=True)
class Slicing:
    """How a volume is given to a 2D model.

    Attributes:
        axis: of the patch (x, y, z) along which slices are taken.
        normalisation: ``paper`` standardises each slice by itself, as the published comparison does; ``official``
            takes the mean and deviation that SAM was trained with.
        crop_like_published: repeat a slip of the published script for SAM-Med2D: a slice that was enlarged to the
            model's input is cut from the middle of the mask instead of being shrunk again. It spoils every mask (a
            perfect decoder scores 0.25 to 0.40) and serves to meet published figures alone.
        batch_size: slices encoded or decoded together.
    """

    axis: Literal[0, 1, 2] = 2
    normalisation: Literal["paper", "official"] = "paper"
    crop_like_published: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"slicing.batch_size must be at least 1, found {self.batch_size}")


@dataclass
class _Slice:
    """What is known of one slice: its embedding, the clicks that were decoded and what came out."""

    embedding: Tensor
    clicks: list[Click] = field(default_factory=list)
    low: Tensor | None = None
    logits: Tensor | None = None


class SliceSegmenter:
    """Segments the slices that hold clicks; all others are background.

    On each slice clicks accumulate, the best mask of the step before is the mask prompt, and of the masks that the
    model offers the one counts whose IoU it guesses highest. A slice is encoded at its first click.

    Args:
        model: the 2D model, in evaluation mode.
        slicing: how slices are taken and prepared.
    """

    def __init__(self, model: PromptedModel, slicing: Slicing = Slicing()) -> None:
        self.model = model
        self.slicing = slicing
        self._volume: Tensor | None = None
        self._slices: dict[int, _Slice] = {}

    def set_image(self, image: PatchBatch) -> None:
        """Takes the patch, [1, 1, S, S, S]; forgets everything about the one before."""
        self._volume = image[0, 0].movedim(self.slicing.axis, 0).float()
        self._slices = {}

    @torch.no_grad()
    def segment(self, clicks: Sequence[Click]) -> Tensor:
        """Logits [S, S, S] on the patch grid for all clicks given so far, each on its own slice.

        Raises:
            InputError: no click is given, or no image was set.
        """
        if self._volume is None or not clicks:
            raise InputError("segmenting needs an image and at least one click")
        wanted: dict[int, list[Click]] = {}
        for click in clicks:
            wanted.setdefault(click.index[self.slicing.axis], []).append(click)
        for number in [
            number
            for number, known in self._slices.items()
            if wanted.get(number, [])[: len(known.clicks)] != known.clicks
        ]:
            self._slices[number] = _Slice(self._slices[number].embedding)
        self._encode([number for number in sorted(wanted) if number not in self._slices])
        while pending := [n for n in sorted(wanted) if len(self._slices[n].clicks) < len(wanted[n])]:
            # Slices with equally many clicks are decoded together; what is batched never changes a result's meaning.
            count = min(len(self._slices[n].clicks) for n in pending)
            group = [n for n in pending if len(self._slices[n].clicks) == count]
            for begin in range(0, len(group), self.slicing.batch_size):
                some = group[begin : begin + self.slicing.batch_size]
                self._decode({n: wanted[n][: count + 1] for n in some})
        out = torch.full_like(self._volume, _OUTSIDE)
        for number in wanted:
            logits = self._slices[number].logits
            assert logits is not None
            out[number] = logits
        return out.movedim(0, self.slicing.axis)

    def _encode(self, numbers: Sequence[int]) -> None:
        assert self._volume is not None
        for begin in range(0, len(numbers), self.slicing.batch_size):
            some = list(numbers[begin : begin + self.slicing.batch_size])
            images = prepare_slices(self._volume[some], self.model.image_size, self.slicing.normalisation)
            for number, embedding in zip(some, self.model.encode(images), strict=True):
                self._slices[number] = _Slice(embedding)

    def _decode(self, clicks: dict[int, list[Click]]) -> None:
        """One step on slices that all have equally many clicks."""
        assert self._volume is not None
        slices = [self._slices[number] for number in clicks]
        points, labels = self._points(list(clicks.values()))
        lows = [known.low for known in slices]
        masks = None if lows[0] is None else torch.stack([low for low in lows if low is not None])
        low, iou = self.model.decode(torch.stack([known.embedding for known in slices]), points, labels, masks)
        best = low[torch.arange(len(low)), iou.argmax(1)][:, None]
        height, width = self._volume.shape[1:]
        logits = restore_slices(best, self.model.image_size, (height, width), self.slicing.crop_like_published)
        for known, given, own, grown in zip(slices, clicks.values(), best, logits, strict=True):
            known.clicks, known.low, known.logits = list(given), own, grown

    def _points(self, clicks: Sequence[Sequence[Click]]) -> tuple[Tensor, Tensor]:
        """Clicks as x (column) and y (row) in pixels of the model's input, and their labels."""
        assert self._volume is not None
        rows, columns = (axis for axis in range(3) if axis != self.slicing.axis)
        height, width = self._volume.shape[1:]
        size = self.model.image_size
        # Centres of voxels go to where resizing takes them; the models add the half pixel themselves.
        points = [
            [
                ((click.index[columns] + 0.5) * size / width - 0.5, (click.index[rows] + 0.5) * size / height - 0.5)
                for click in given
            ]
            for given in clicks
        ]
        labels = [[int(click.foreground) for click in given] for given in clicks]
        device = self._volume.device
        return torch.tensor(points, device=device), torch.tensor(labels, device=device)


def prepare_slices(slices: Tensor, size: int, normalisation: Literal["paper", "official"]) -> Tensor:
    """Slices [B, H, W] of any range as images [B, 3, size, size] for a 2D model.

    Each slice is stretched to 0 to 255 and resized without keeping its aspect.
    """
    low = slices.amin((1, 2), keepdim=True)
    scaled = (slices - low) / (slices.amax((1, 2), keepdim=True) - low + 1e-10) * 255
    images = F.interpolate(scaled[:, None], (size, size), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    if normalisation == "paper":
        deviation, mean = torch.std_mean(images[:, :1], dim=(1, 2, 3), keepdim=True)
        return (images - mean) / deviation.clamp_min(1e-6)
    mean, deviation = (images.new_tensor(values)[:, None, None] for values in (_SAM_MEAN, _SAM_STD))
    return (images - mean) / deviation


def restore_slices(low: Tensor, size: int, shape: tuple[int, int], crop_like_published: bool = False) -> Tensor:
    """Low-resolution logits [B, 1, m, m] on the slices' own grid [B, H, W], by way of the model's input size."""
    full = F.interpolate(low, (size, size), mode="bilinear", align_corners=False)
    if crop_like_published and size > max(shape):
        top, left = ((size - edge) // 2 for edge in shape)
        return full[:, 0, top : top + shape[0], left : left + shape[1]]
    return F.interpolate(full, shape, mode="bilinear", align_corners=False)[:, 0]
