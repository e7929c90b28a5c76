"""Who clicks where in an evaluation, what the model is shown, and which value counts: one object for every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uscl.errors import InputError
from uscl.prompting.clicks import Click, deepest_click, error_click
from uscl.prompting.segmenter import Segmenter
from uscl.prompting.whole_volume import WholeVolume
from uscl.registry import hidden_settings
from uscl.seeds import Draw

if TYPE_CHECKING:
    from uscl.types import PatchBatch


class ClickRule(ABC):
    """Where the next click of an evaluation goes."""

    @abstractmethod
    def click(self, number: int, predicted: Tensor, target: Tensor, draw: Draw) -> Click:
        """Click ``number``, counted from 1, on the errors of a mask.

        Args:
            number: of the click.
            predicted: bool mask [x, y, z]; of the first click an empty one.
            target: bool mask [x, y, z] of the object.
            draw: picks among voxels that are equally good.
        """


@dataclass(frozen=True)
class ClickProtocol(ClickRule):
    """How clicks are set and scored in an evaluation; a subclass may set them by another rule.

    The default is that of SAM-Med3D's published inference: every click on a voxel drawn uniformly from all wrong ones,
    all clicks shown, the mask AT n clicks scored. The figures of the SAM-Med3D, FastSAM3D and USCL-Med3D papers were
    made with an older script, which ``experiments/protocols/sam_med3d_paper.yaml`` repeats: ``deepest_clicks: 2``,
    ``accumulate: false``, ``threshold: 0.5``, ``best_so_far: true``.
    Source: https://github.com/uni-medical/SAM-Med3D, infer_utils and, before it, validation.

    Attributes:
        deepest_clicks: the first so many clicks go to the middle of the largest error (RITM's rule, see
            :func:`~uscl.prompting.clicks.deepest_click`); those after are drawn from all wrong voxels.
        accumulate: show the model all clicks so far; else the newest alone, and the mask of the step before.
        threshold: logit above which a voxel counts as predicted where the next click is sought. What is scored is
            always cut at 0.
        best_so_far: score the best mask of the clicks so far instead of the last. It flatters: nobody knows at the
            bedside which of ten masks was the best.
    """

    deepest_clicks: int = 0
    accumulate: bool = True
    threshold: float = 0.0
    best_so_far: bool = False

    def __post_init__(self) -> None:
        if hidden := hidden_settings(type(self)):
            raise InputError(
                f"click protocol {type(self).__qualname__}: rows would not hold {', '.join(hidden)}, for it is no "
                "dataclass; write @dataclass(frozen=True) above it"
            )
        if self.deepest_clicks < 0:
            raise InputError(f"protocol.deepest_clicks must not be negative, found {self.deepest_clicks}")

    @property
    def in_words(self) -> str:
        """The protocol in result rows and reports."""
        parts = [self.placement]
        if not self.accumulate:
            parts.append("3D methods shown the newest click alone")
        if self.threshold:
            parts.append(f"errors sought above a logit of {self.threshold:g}")
        parts.append("the BEST mask so far scored" if self.best_so_far else "the mask after as many clicks scored")
        return ", ".join(parts)

    @property
    def placement(self) -> str:
        """Where clicks go, in words; a subclass with a rule of its own is named with its settings."""
        if type(self).click is not ClickProtocol.click:
            shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _SHOWN_APART}
            if not self.deepest_clicks:
                del shown["deepest_clicks"]
            rule = ", ".join(f"{name}={value!r}" for name, value in shown.items())
            return f"clicks by {type(self).__module__}.{type(self).__qualname__}({rule})"
        if not self.deepest_clicks:
            return "clicks drawn from all wrong voxels"
        first = f"the first {self.deepest_clicks} clicks in the middle of the largest error"
        return f"{first}, the others drawn from all wrong voxels"

    def click(self, number: int, predicted: Tensor, target: Tensor, draw: Draw) -> Click:
        """See :class:`ClickRule`."""
        rule = deepest_click if number <= self.deepest_clicks else error_click
        return rule(predicted, target, draw)


_SHOWN_APART = ("accumulate", "threshold", "best_so_far")


@dataclass(frozen=True)
class RolloutStep:
    """What came out after one round of an evaluation.

    Attributes:
        number: of the round, counted from 1: the number of clicks on the volume, or on every slice of the object.
        clicks: all clicks so far.
        logits: [S, S, S] on the patch grid; what is scored.
        seconds: time spent on all rounds so far, encoding the image included, scoring by the caller not.
        whole: mask on the image's own grid, bool, of methods that segment whole volumes; None for all others.
    """

    number: int
    clicks: tuple[Click, ...]
    logits: Tensor
    seconds: float
    whole: NDArray[np.bool_] | None = None


def evaluation_rollout(
    segmenter: Segmenter,
    image: PatchBatch,
    target: Tensor,
    count: int,
    draw_for: Callable[[int], Draw],
    protocol: ClickProtocol = ClickProtocol(),
    first: Click | None = None,
    slice_axis: int | None = None,
) -> Iterator[RolloutStep]:
    """Sets ``count`` clicks on one object, each on the errors of the mask before; the first meets an empty mask.

    Args:
        segmenter: the method.
        image: [1, 1, S, S, S].
        target: bool mask [S, S, S] of the object.
        count: number of clicks.
        draw_for: the draw of click number 1, 2, ...; key it by data set, case, class and number, and every method
            meets the same first click.
        protocol: where clicks go, and what is scored.
        first: the first click where it is known already, for it placed the patch.
        slice_axis: for 2D methods: every round sets one click on each slice along this axis that holds the object, as
            the published comparisons do. Its points per volume are thus many times ``count``.

    Yields:
        One step after each round. A voxel counts as predicted where its logit is above 0.
    """
    begin = _clock(image.device)
    segmenter.set_image(image)
    seconds = _clock(image.device) - begin
    clicks: list[Click] = []
    predicted = torch.zeros_like(target)
    best: tuple[Tensor, NDArray[np.bool_] | None] = (torch.zeros_like(target), None)
    best_dice = -1.0
    for number in range(1, count + 1):
        begin = _clock(image.device)
        draw = draw_for(number)
        if slice_axis is not None:
            clicks += _slice_clicks(protocol, number, predicted, target, draw, slice_axis)
        elif number == 1 and first is not None:
            clicks.append(first)
        else:
            clicks.append(_inside(protocol.click(number, predicted, target, draw), target, protocol))
        logits = segmenter.segment(clicks).to(target.device)
        whole = segmenter.mask if isinstance(segmenter, WholeVolume) else None
        predicted = logits > protocol.threshold
        seconds += _clock(image.device) - begin
        if protocol.best_so_far:
            if (dice := _dice(logits > 0, target)) > best_dice:
                best, best_dice = (logits, whole), dice
            logits, whole = best
        yield RolloutStep(number, tuple(clicks), logits, seconds, whole)


def _inside(click: Click, target: Tensor, protocol: ClickProtocol) -> Click:
    """A click that lies within the patch, whoever set it.

    Raises:
        InputError: it lies elsewhere, or is none.
    """
    usable = isinstance(click, Click) and len(click.index) == 3 and all(isinstance(i, Integral) for i in click.index)
    if not usable or not all(0 <= i < n for i, n in zip(click.index, target.shape, strict=True)):
        raise InputError(
            f"click protocol {type(protocol).__qualname__}: set {click!r}; expected a Click of three whole numbers "
            f"within a patch of {tuple(target.shape)} voxels"
        )
    i, j, k = (int(index) for index in click.index)
    return Click((i, j, k), bool(click.foreground))


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given: a GPU is given its work and not waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _slice_clicks(
    protocol: ClickProtocol, number: int, predicted: Tensor, target: Tensor, draw: Draw, axis: int
) -> Iterator[Click]:
    """One click on every slice that holds the object, in their order."""
    predicted, target = predicted.movedim(axis, 0), target.movedim(axis, 0)
    for place in target.flatten(1).any(1).nonzero()[:, 0].tolist():
        slab = slice(place, place + 1)
        click = _inside(protocol.click(number, predicted[slab], target[slab], draw), target[slab], protocol)
        index = np.insert(click.index[1:], axis, place).tolist()
        yield Click((index[0], index[1], index[2]), click.foreground)


def _dice(predicted: Tensor, target: Tensor) -> float:
    return float(2 * (predicted & target).sum() / (predicted.sum() + target.sum()).clamp_min(1))
