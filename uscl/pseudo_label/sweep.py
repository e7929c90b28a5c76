"""From a sweep and key frames to masks of all frames, with what can be known of how good they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage

from uscl.data.volume import Volume
from uscl.errors import InputError
from uscl.pseudo_label.engine import Engine, GreyFrames, dice
from uscl.pseudo_label.key_frames import Labels
from uscl.pseudo_label.quality import ClassQuality, class_quality, flag_frames, leave_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckSettings:
    """When a frame is trusted.

    Attributes:
        threshold: confidence in [0, 1] below which a frame is flagged.
        clean_up: keep, of every class, what hangs together in 3D with a key frame, and fill its holes; reported.
    """

    threshold: float = 0.6
    clean_up: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"check: threshold is {self.threshold}; it lies in [0, 1]")


@dataclass(frozen=True)
class LabelledSweep:
    """Masks of all frames of a sweep.

    Attributes:
        labels: ids [frame, row, column]; key frames as they were annotated.
        keys: numbers of the key frames.
        quality: by class id.
        flags: frames that should not be trusted, with the reasons.
        cleaned: pixels that the clean-up took away and added, by class id; empty without it.
        compared: Dice of the masks with another engine's over all frames that are no key frames, by class id.
        ways: which of its ways the engine took, by class id; "" if it has one alone.
    """

    labels: NDArray[np.int32]
    keys: tuple[int, ...]
    quality: dict[int, ClassQuality]
    flags: dict[int, list[str]]
    cleaned: dict[int, tuple[int, int]]
    compared: dict[int, float]
    ways: dict[int, str]


def frames_of(volume: Volume) -> GreyFrames:
    """The frames of a sweep as engines take them: grey values [frame, row, column] in 8 bits."""
    array = volume.array.transpose(2, 1, 0)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = np.percentile(array, (0.1, 99.9))
    grey: GreyFrames = np.clip((array - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    return grey


def label_sweep(
    frames: GreyFrames,
    key_frames: Mapping[int, Labels],
    names: Mapping[int, str],
    engine: Engine,
    pixel: tuple[float, float] = (1.0, 1.0),
    check: CheckSettings = CheckSettings(),
    other: Engine | None = None,
) -> LabelledSweep:
    """Labels the frames between key frames and checks the result.

    Every class is scored by itself; a pixel goes to the class with the highest score above 0.5. Key frames stay as they
    were annotated. Frames beyond the outer key frames stay empty and are flagged.

    Args:
        frames: grey values [frame, row, column].
        key_frames: label ids [row, column] by number of the frame, at least two.
        names: of the classes.
        engine: that carries the masks.
        pixel: height and width of a pixel, mm or, where these are not known, 1 and 1.
        check: when a frame is trusted.
        other: another engine to compare with; its masks are not used.

    Raises:
        InputError: see :func:`check_key_frames`.
    """
    classes = check_key_frames(key_frames, frames.shape, names)
    keys = sorted(key_frames)
    annotated = np.stack([key_frames[number] for number in keys])
    wanted = [t for t in range(len(frames)) if t not in key_frames]
    best = np.full((len(wanted), *frames.shape[1:]), 0.5, np.float32)
    labels = np.zeros(frames.shape, np.int32)
    drawn = np.zeros(best.shape, np.int32)
    agreement: dict[int, dict[int, float]] = {}
    left_out, compared, ways = {}, {}, {}
    for number in track(classes, "Labelling classes", transient=True):
        masks = {t: key_frames[t] == number for t in keys}
        result = engine.scores(frames, masks, wanted)
        agreement[number] = dict(zip(wanted, result.agreement.tolist(), strict=True))
        ways[number] = result.way
        higher = result.scores > best
        drawn[higher], best[higher] = number, result.scores[higher]
        left_out[number] = leave_out(engine, frames, masks, pixel)
        if other is not None and wanted:
            theirs = other.scores(frames, masks, wanted).scores > 0.5
            compared[number] = dice(result.scores > 0.5, theirs)
    labels[wanted] = drawn
    labels[keys] = annotated
    cleaned = _clean_up(labels, classes, keys) if check.clean_up else {}
    quality = {
        number: class_quality(names[number], left_out[number], labels == number, agreement[number], keys)
        for number in classes
    }
    flags = flag_frames(list(quality.values()), keys, check.threshold)
    return LabelledSweep(labels, tuple(keys), quality, flags, cleaned, compared, ways)


def check_key_frames(key_frames: Mapping[int, Labels], shape: tuple[int, ...], names: Mapping[int, str]) -> list[int]:
    """The classes that are annotated, in order.

    Raises:
        InputError: fewer than two key frames, nothing annotated on any, or one that is not of the sweep.
    """
    for number, labels in key_frames.items():
        if not 0 <= number < shape[0] or labels.shape != tuple(shape[1:]):
            raise InputError(
                f"key frame {number} of {list(labels.shape)} pixels: the sweep has frames 0 to "
                f"{shape[0] - 1} of {list(shape[1:])}"
            )
    classes = [number for number in sorted(names) if any((labels == number).any() for labels in key_frames.values())]
    if len(key_frames) < 2 or not classes:
        raise InputError(
            f"{len(key_frames)} key frame(s) with {len(classes)} classes: annotate at least the first and "
            "the last frame on which a structure is to be labelled"
        )
    return classes


def trusted_runs(count: int, flags: Mapping[int, list[str]], least: int) -> list[tuple[int, int]]:
    """Stretches of frames without a flag, first and the one after the last, that are at least ``least`` frames long."""
    runs, begin = [], None
    for t in range(count + 1):
        good = t < count and t not in flags
        if good and begin is None:
            begin = t
        elif not good and begin is not None:
            if t - begin >= least:
                runs.append((begin, t))
            begin = None
    return runs


def _clean_up(labels: NDArray[np.int32], classes: list[int], keys: list[int]) -> dict[int, tuple[int, int]]:
    """Cleans in place, key frames excepted; pixels taken away and added by class."""
    changed = {}
    inner = np.ones(len(labels), bool)
    inner[keys] = False
    for number in classes:
        mask = labels == number
        parts, _ = ndimage.label(mask)
        anchored = np.unique(parts[keys])
        kept = np.isin(parts, anchored[anchored > 0])
        filled = ndimage.binary_fill_holes(ndimage.binary_closing(kept, iterations=1) | kept)
        added = (filled & ~mask & (labels == 0)) & inner[:, None, None]
        removed = (mask & ~kept) & inner[:, None, None]
        labels[removed], labels[added] = 0, number
        changed[number] = (int(removed.sum()), int(added.sum()))
    return changed
