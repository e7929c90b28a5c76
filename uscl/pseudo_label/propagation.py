"""The engine that needs no weights: shapes are interpolated, and content is followed from frame to frame.

Three ways lead from key frames to a frame between them: the interpolated shape (:mod:`~uscl.pseudo_label.shapes`),
which looks at no image; the same among key frames that were first carried to the frame along the motion
(:mod:`~uscl.pseudo_label.registration`), which follows what is seen; and the mean of both. Which is best depends on
sweep and class, so each inner key frame is left out in turn, and a way that predicts them clearly better than the mean
is taken instead of it. With fewer than three key frames nothing can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from uscl.pseudo_label.engine import EngineResult, GreyFrames, KeyMasks, dice
from uscl.pseudo_label.registration import Field, Motion, Registration, warp
from uscl.pseudo_label.shapes import Distances, around, between, key_distances, nearest

BLEND = "blend"
WAYS = ("shape", "motion", BLEND)
_CLEARLY = 0.02
"""Dice by which a way must be better than the mean on key frames that were left out."""


class Propagation:
    """Carries masks by shape and motion; see the module.

    Frames before the first and after the last key frame are not extrapolated: their scores are 0.

    Args:
        registration: how motion is found.
        cache: folder in which motion is kept.
        way: one of :data:`WAYS` for every class; None chooses by leaving key frames out.
    """

    name = "propagation"

    def __init__(
        self, registration: Registration = Registration(), cache: Path | None = None, way: str | None = None
    ) -> None:
        if way not in (None, *WAYS):
            raise ValueError(f"way is {way!r}; choose of {', '.join(WAYS)}")
        self.registration = registration
        self.cache = cache
        self.way = way
        self._motion: tuple[GreyFrames, Motion] | None = None
        self._chains: dict[tuple[int, int], tuple[Iterator[tuple[int, Field]], dict[int, Field]]] = {}

    @property
    def identity(self) -> str:
        """What the scores depend on besides the sweep and its key frames."""
        return f"propagation {self.way or 'chosen'} {self.registration}"

    def scores(self, frames: GreyFrames, key_masks: KeyMasks, wanted: Sequence[int]) -> EngineResult:
        """Scores frames for one class; see :class:`~uscl.pseudo_label.engine.Engine`."""
        numbers = sorted(key_masks)
        scores = np.zeros((len(wanted), *frames.shape[1:]), np.float32)
        agreement = np.full(len(wanted), np.nan, np.float32)
        inside = [i for i, t in enumerate(wanted) if len(numbers) > 1 and numbers[0] < t < numbers[-1]]
        if inside:
            asked = [wanted[i] for i in inside]
            motion = self._motion_of(frames)
            way = self.way or self._choose(motion, key_masks)
            found, agreed = self._distances(motion, key_masks, asked)
            # Half a pixel inside the border is a little above one half.
            scores[inside] = expit(found[way])
            agreement[inside] = agreed
        return EngineResult(scores, agreement)

    def chosen(self, frames: GreyFrames, key_masks: KeyMasks) -> str:
        """The way that is taken for a class."""
        return self.way or self._choose(self._motion_of(frames), key_masks)

    def _choose(self, motion: Motion, key_masks: KeyMasks) -> str:
        met, sizes = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
        for n in sorted(key_masks)[1:-1]:
            others = {m: mask for m, mask in key_masks.items() if m != n}
            for way, distances in self._distances(motion, others, [n])[0].items():
                met[way] += 2 * int(np.count_nonzero((distances[0] > 0) & key_masks[n]))
                sizes[way] += int(np.count_nonzero(distances[0] > 0)) + int(np.count_nonzero(key_masks[n]))
        found = {way: met[way] / sizes[way] if sizes[way] else 0.0 for way in WAYS}
        best = max(found, key=lambda way: found[way])
        return best if found[best] - found[BLEND] > _CLEARLY else BLEND

    def _distances(
        self, motion: Motion, key_masks: KeyMasks, wanted: Sequence[int]
    ) -> tuple[dict[str, Distances], NDArray[np.float32]]:
        """Signed distances by way [wanted, row, column], and how far both sides agree [wanted]."""
        keys = key_distances(key_masks)
        absent = {n for n, mask in key_masks.items() if not mask.any()}
        numbers = sorted(keys)
        shape, moved, agreed = [], [], np.empty(len(wanted), np.float32)
        for i, t in enumerate(wanted):
            carried = {n: warp(keys[n], motion.enlarge(self._chain(motion, n, t))) for n in nearest(numbers, t)}
            shape.append(between(keys, t, absent))
            moved.append(between(carried, t, absent))
            agreed[i] = dice(*(carried[n] > 0 for n in around(numbers, t)))
        found = {"shape": np.stack(shape), "motion": np.stack(moved)}
        return {**found, BLEND: 0.5 * (found["shape"] + found["motion"])}, agreed

    def _motion_of(self, frames: GreyFrames) -> Motion:
        if self._motion is None or self._motion[0] is not frames:
            motion = Motion(frames, self.registration, self.cache)
            motion.find_all()
            self._motion, self._chains = (frames, motion), {}
        return self._motion[1]

    def _chain(self, motion: Motion, start: int, t: int) -> Field:
        """The displacement from frame ``t`` to key frame ``start``; what has been found is kept, for all classes."""
        way = 1 if t > start else -1
        if (start, way) not in self._chains:
            self._chains[start, way] = (motion.carry(start, way), {})
        walk, known = self._chains[start, way]
        while t not in known:
            number, field = next(walk)
            known[number] = field
        return known[t]
