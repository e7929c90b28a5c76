"""SegGPT as an engine: key frames are shown to a trained network as examples of what to paint.

Source of what the network is given and how its answer is read: the inference scripts of
https://github.com/baaivision/Painter (SegGPT_inference).
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from uscl.errors import InputError
from uscl.pseudo_label.engine import EngineResult, GreyFrames, KeyMasks, Mask, dice
from uscl.pseudo_label.score_cache import Score, ScoreCache
from uscl.pseudo_label.seggpt_network import PromptType, SegGptSize, load_seggpt

log = logging.getLogger(__name__)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, in units of white; prompts, queries, masks and answers are all normalised with them."""
_REPORTED_EVERY = 30.0
"""Seconds between two lines in the log."""
_AREA_RATIO, _CENTROID_JUMP, _LARGEST_SHARE = 2.0, 0.1, 0.8


@dataclass(frozen=True)
class SegGptSettings:
    """How SegGPT carries masks to other frames.

    Memory: the published size holds 1.5 GB of weights, twice that while they are loaded, and about 1.2 GB for every
    canvas in float32, a canvas being one prompt of one frame (measured on a CPU: 5.1 GB in all with three canvases, 4.6
    with bfloat16; on a GPU nobody has measured). ``batch_size`` bounds the canvases, but those of one frame,
    ``keys_per_side + memory`` of them, always go together.

    Attributes:
        weights: file or ``hf://owner/repo/file``; None looks for the published file on this machine.
        device: cpu, cuda, cuda:1, ... A CPU takes half a minute for every canvas.
        keys_per_side: how many key frames are shown, the nearest ones, of those before a frame in the forward pass and
            of those after it in the backward pass.
        memory: how many of the last predictions of a pass are shown, too; 0 makes frames independent of each other, so
            that they are painted together. A prediction is remembered if it is :func:`plausible`.
        extrapolate: paint frames before the first and after the last key frame, too, where nothing checks them;
            otherwise their scores are 0.
        batch_size: canvases that are computed together.
        precision: auto takes bfloat16 on a GPU that has it and float32 elsewhere.
        prompt_type: the trained token that goes with the prompts; ``instance`` is the original's default.
        size: of the network.
    """

    weights: str | None = None
    device: str = "cpu"
    keys_per_side: int = 1
    memory: int = 2
    extrapolate: bool = False
    batch_size: int = 4
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    prompt_type: PromptType = "instance"
    size: SegGptSize = SegGptSize()

    def __post_init__(self) -> None:
        for name, least in (("keys_per_side", 1), ("memory", 0), ("batch_size", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"seggpt.{name} must be at least {least}, found {value}")


class SegGptEngine:
    """Paints a class on frames of a sweep after the example of its key frames.

    A frame between two key frames is painted twice: forwards, with the nearest key frames before it and what was
    painted since as prompts, and backwards, with those after it. The two passes share no prompt, so that their
    agreement says something; the scores are averaged, each weighted by the inverse of its distance to the key frame.
    Where neither paints anything of a class that is on both key frames they do not agree, they fail: that counts as 0.
    Beyond the outermost key frames there is one pass at most and no agreement.

    What a frame gets does not depend on which other frames are asked for: with a memory the frames on the way from the
    key frame are painted, too. Where the class is on none of a pass's key frames the score is 0, without the network.

    Args:
        settings: where the weights are, and how masks are carried.
        kept: folder for the scores of every pass, so that an interrupted run goes on where it stopped and another key
            frame costs no more than the passes that it is shown in; None keeps nothing.

    Attributes:
        name: stands in the reports.
        reach: key frames on either side that have a say in a frame.
        report: of the weights: source, hash, tensors.

    Raises:
        WeightsNotFoundError: the weights are not there.
        InputError: the weights or the device cannot be used, or the extra ``pseudo-label`` is not installed.
    """

    name = "seggpt"

    def __init__(self, settings: SegGptSettings = SegGptSettings(), kept: Path | None = None) -> None:
        self.settings = settings
        self.reach = settings.keys_per_side
        self._device = _device(settings.device)
        self._half = settings.precision == "bfloat16" or (
            settings.precision == "auto"
            and self._device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        network, self.report = load_seggpt(settings.weights, settings.size)
        self._network = network.to(self._device)
        self._kept = ScoreCache(kept)

    @property
    def identity(self) -> str:
        """A text that differs whenever the scores would, but for rounding."""
        how = self.settings
        return (
            f"seggpt {self.report.sha256} keys {how.keys_per_side} memory {how.memory} {how.prompt_type} "
            f"{'bfloat16' if self._half else 'float32'}{' extrapolates' if how.extrapolate else ''}"
        )

    def scores(self, frames: GreyFrames, key_masks: KeyMasks, wanted: Sequence[int]) -> EngineResult:
        """Scores of one class.

        Args:
            frames: the whole sweep, uint8 [frame, row, column].
            key_masks: masks of the class [row, column] by frame counted from 0; bool, or numbers of which one other
                than 0 is drawn: 0/1 and 0/255 mean the same.
            wanted: frames to answer for, never key frames.

        Raises:
            InputError: no key frame is given; a frame number, the size of a mask or its values cannot be meant; or the
                network gives values that are not finite.
        """
        keys = _checked(frames, key_masks, wanted)
        rows = {frame: row for row, frame in enumerate(wanted)}
        scores = np.zeros((len(wanted), *frames.shape[1:]), np.float32)
        agreement = np.full(len(wanted), np.nan, np.float32)
        once: dict[int, tuple[Mask, int]] = {}  # what one pass has painted on a frame, and its nearest key frame
        passes = list(self._passes(keys, wanted, len(frames)))
        for frame, nearest, score in self._painted(passes, frames, keys):
            if frame not in rows:
                continue
            row = rows[frame]
            scores[row] += _weight(frame, nearest, keys) * score
            mask = score > 0.5
            if frame in once:
                other, across = once.pop(frame)
                lost = keys[nearest].any() and keys[across].any() and not mask.any() and not other.any()
                agreement[row] = 0 if lost else dice(other, mask)
            else:
                once[frame] = mask, nearest
        return EngineResult(scores, agreement)

    def _passes(self, keys: dict[int, Mask], wanted: Sequence[int], count: int) -> Iterator[_Pass]:
        """Ways through the gaps between key frames; without a memory every frame is a way of its own."""
        for step, beyond in ((1, count), (-1, -1)):
            order = sorted(keys, reverse=step < 0)
            for number, key in enumerate(order):
                if number + 1 == len(order) and not self.settings.extrapolate:
                    break
                end = order[number + 1] if number + 1 < len(order) else beyond
                gap = range(key + step, end, step)
                asked = sorted(set(gap) & set(wanted), reverse=step < 0)
                shown = tuple(order[max(0, number + 1 - self.settings.keys_per_side) : number + 1][::-1])
                if self.settings.memory and asked:
                    yield _Pass(shown, deque(range(key + step, asked[-1] + step, step)), keys[key])
                elif asked:
                    yield from (_Pass(shown, deque([frame]), keys[key]) for frame in asked)

    def _painted(
        self, passes: Sequence[_Pass], frames: GreyFrames, keys: dict[int, Mask]
    ) -> Iterator[tuple[int, int, Score]]:
        """Every frame of every pass, with the pass's nearest key frame and its score; passes go on side by side."""
        size, shape = self.settings.size.image_size, (frames.shape[1], frames.shape[2])
        image: Callable[[int], Tensor] = cache(lambda frame: resized_image(frames[frame], size))
        shown = {key: resized_mask(mask, size) for key, mask in keys.items()}
        for way in passes:
            way.content.update(repr((self.identity, shape, len(way.keys))).encode())
            for key in way.keys:
                way.content.update(frames[key].tobytes() + np.packbits(keys[key]).tobytes())
        progress = _Progress(sum(len(way.todo) for way in passes))
        while pending := [way for way in passes if way.todo]:
            groups: dict[int, list[_Pass]] = {}
            for way in pending:
                way.content.update(frames[way.todo[0]].tobytes())
                kept = self._kept.load(way.content.hexdigest())
                known = None if kept is None else kept[0]
                if not any(keys[key].any() for key in way.keys):
                    known = np.zeros(shape, np.float32)
                if known is None:
                    groups.setdefault(len(way.keys) + len(way.memory), []).append(way)
                else:
                    yield self._settled(way, known, image)
            for prompts, group in groups.items():
                together = max(1, self.settings.batch_size // prompts)
                for begin in range(0, len(group), together):
                    some = group[begin : begin + together]
                    pairs = [[(image(key), shown[key]) for key in way.keys] + list(way.memory) for way in some]
                    found = self._paint([image(way.todo[0]) for way in some], pairs, shape)
                    for way, score in zip(some, found, strict=True):
                        yield self._settled(way, self._kept.keep(way.content.hexdigest(), score), image)
                    progress.report(sum(len(way.todo) for way in passes))

    def _settled(self, way: _Pass, score: Score, image: Callable[[int], Tensor]) -> tuple[int, int, Score]:
        """Takes a pass one frame on."""
        frame, mask = way.todo.popleft(), score > 0.5
        if self.settings.memory and plausible(mask, way.accepted):
            way.accepted = mask
            way.memory.append((image(frame), resized_mask(mask, self.settings.size.image_size)))
            if len(way.memory) > self.settings.memory:
                way.memory.popleft()
        return frame, way.keys[0], score

    @torch.inference_mode()
    def _paint(
        self, queries: Sequence[Tensor], prompts: Sequence[Sequence[tuple[Tensor, Tensor]]], shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Scores [B, row, column] of queries, each with equally many prompts of image and mask, all uint8 [S, S]."""
        images, masks = (
            torch.stack([torch.stack([pair[part] for pair in given]) for given in prompts]) for part in range(2)
        )
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            painted = self._network(
                normalised(images.to(self._device)),
                normalised(masks.to(self._device)),
                normalised(torch.stack(list(queries)).to(self._device)),
                self.settings.prompt_type,
            )
        if not painted.isfinite().all():  # before clipping, which would make whites of infinities
            raise InputError("SegGPT gives values that are not finite; try precision float32, or other weights")
        found: NDArray[np.float32] = restored_scores(painted.float(), shape).cpu().numpy()
        return found


@dataclass(eq=False)
class _Pass:
    """A way from a key frame through the gap beside it.

    Attributes:
        keys: key frames that are shown, the nearest one first.
        todo: frames that are still to be painted, in the order of the way.
        accepted: the last mask that was plausible, the nearest key frame's at first.
        memory: the last plausible predictions, image and mask.
        content: all that the score of the frame at hand follows from.
    """

    keys: tuple[int, ...]
    todo: deque[int]
    accepted: Mask
    memory: deque[tuple[Tensor, Tensor]] = field(default_factory=deque)
    content: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))


class _Progress:
    """Lines in the log, since a display of its own would get into that of the caller."""

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, perf_counter()
        self.reported = self.begun

    def report(self, left: int) -> None:
        now, done = perf_counter(), self.total - left
        if now - self.reported > _REPORTED_EVERY and done:
            self.reported = now
            log.info("SegGPT: %d of %d paintings, %.1f s each", done, self.total, (now - self.begun) / done)


def plausible(mask: Mask, before: Mask) -> bool:
    """Whether a prediction may serve as a prompt for others.

    It may if neither is empty, its area is between half and twice that of the mask before, its centroid is less than
    10 % of the frame's diagonal away from that one's, and its largest connected part holds at least 80 % of it. A
    structure that is in several parts is therefore never remembered, and the key frames alone are shown.

    Args:
        mask: the prediction [row, column].
        before: the last mask that was accepted, a key frame's at first.
    """
    area, earlier = np.count_nonzero(mask), np.count_nonzero(before)
    if not area or not earlier or not 1 / _AREA_RATIO <= area / earlier <= _AREA_RATIO:
        return False
    jump = np.subtract(*(np.argwhere(drawn).mean(0) for drawn in (mask, before)))
    if np.hypot(*jump) >= _CENTROID_JUMP * np.hypot(*mask.shape):
        return False
    parts, _ = ndimage.label(mask)
    return bool(np.bincount(parts[mask]).max() >= _LARGEST_SHARE * area)


def resized_image(frame: NDArray[np.uint8], size: int) -> Tensor:
    """A grey frame [row, column] as uint8 [S, S], stretched and resampled as the original does: bicubic, by Pillow."""
    return _resized(frame, size, "BICUBIC")


def resized_mask(mask: NDArray[np.bool_], size: int) -> Tensor:
    """A mask [row, column] as the picture that SegGPT was trained with: 255 on 0, uint8 [S, S], nearest neighbour.

    The library's processor takes 0/1 as almost black on black, which is another prompt; here there is one way.
    """
    return _resized(np.where(mask, np.uint8(255), np.uint8(0)), size, "NEAREST")


def _resized(values: NDArray[np.uint8], size: int, by: Literal["BICUBIC", "NEAREST"]) -> Tensor:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(values)).resize((size, size), Image.Resampling[by])
    return torch.from_numpy(np.array(picture))


def normalised(grey: Tensor) -> Tensor:
    """Grey pictures, uint8 [..., S, S], as the network takes them: float32 [..., 3, S, S]."""
    mean, std = (torch.tensor(values, device=grey.device)[:, None, None] for values in (_MEAN, _STD))
    return (grey.float()[..., None, :, :] / 255 - mean) / std


def restored_scores(painted: Tensor, shape: tuple[int, int]) -> Tensor:
    """The network's answers [B, 3, S, S] as scores in [0, 1] on the grid of the frames, [B, row, column].

    They are resized by the nearest neighbour, as the original does: SegGPT/SegGPT_inference/seggpt_engine.py of
    https://github.com/baaivision/Painter.
    """
    mean, std = (torch.tensor(values, device=painted.device)[:, None, None] for values in (_MEAN, _STD))
    scores = (painted * std + mean).clamp(0, 1).mean(1, keepdim=True)
    return F.interpolate(scores, shape, mode="nearest")[:, 0]


def _weight(frame: int, nearest: int, keys: KeyMasks) -> float:
    """Share that a pass from the nearest key frame has in a frame's score: by the inverse of the distances."""
    here = abs(frame - nearest)
    across = [abs(frame - key) for key in keys if (key < frame) != (nearest < frame)]
    return min(across) / (here + min(across)) if across else 1.0


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"seggpt.device: {name!r} is no device; expected cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"seggpt.device: {name!r} is not here, torch finds {torch.cuda.device_count()} GPUs")
    return device


def _checked(frames: GreyFrames, key_masks: KeyMasks, wanted: Sequence[int]) -> dict[int, Mask]:
    """The key masks as bool, in order."""
    if not key_masks:
        raise InputError("no key frame is given: SegGPT needs at least one to be shown")
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise InputError(f"frames: expected uint8 [frame, row, column], found {frames.dtype} {list(frames.shape)}")
    outside = [frame for frame in (*key_masks, *wanted) if not 0 <= frame < len(frames)]
    if outside:
        raise InputError(f"frame {outside[0]}: the sweep has frames 0 to {len(frames) - 1}")
    if both := set(key_masks) & set(wanted):
        raise InputError(f"frame {min(both)}: is a key frame, its mask stays as it was drawn")
    if len(set(wanted)) < len(wanted):
        raise InputError("wanted: a frame is named twice")
    keys = {}
    for frame in sorted(key_masks):
        mask = np.asarray(key_masks[frame])
        if mask.shape != frames.shape[1:]:
            raise InputError(
                f"key frame {frame}: its mask is {list(mask.shape)}, the frames are {list(frames.shape[1:])}"
            )
        if mask.dtype != np.bool_ and len(drawn := np.unique(mask[mask != 0])) > 1:
            raise InputError(
                f"key frame {frame}: the mask of a class has one value beside 0, found "
                f"{drawn[:4].tolist()}; give each class on its own"
            )
        keys[frame] = mask != 0
    return keys
