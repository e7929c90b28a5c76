"""The engine that needs no weights: shapes are interpolated, and content is followed from frame to frame.

Three ways lead from key frames to a frame between them: the interpolated shape (:mod:`~uscl.pseudo_label.shapes`),
which looks at no image; the same among key frames that were first carried to the frame along the motion
(:mod:`~uscl.pseudo_label.registration`), which follows what is seen; and the mean of both. Which is best depends on
sweep and class, so each inner key frame is left out in turn, and a way that predicts them clearly better than the mean
is taken instead of it. With fewer than three key frames nothing can be left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from uscl.pseudo_label.engine import EngineResult, GreyFrames, KeyMasks, dice
from uscl.pseudo_label.registration import Field, Motion, Registration, warp
from uscl.pseudo_label.score_cache import Score, ScoreCache
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
        cache: folder in which motion is kept, and the scores of every frame: another key frame changes those of the
            gaps whose four nearest key frames it is among.
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
        self._kept = ScoreCache(cache)
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
        way = ""
        if inside:
            motion = self._motion_of(frames)
            way = self.way or self._choose(motion, key_masks)
            keys, absent = _distances(key_masks)
            for i in inside:
                found, agreement[i] = self._scored(motion, keys, absent, wanted[i], (way,))
                scores[i] = found[way]
        return EngineResult(scores, agreement, way)

    def _choose(self, motion: Motion, key_masks: KeyMasks) -> str:
        met, sizes = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
        for n in sorted(key_masks)[1:-1]:
            keys, absent = _distances({m: mask for m, mask in key_masks.items() if m != n})
            for way, score in self._scored(motion, keys, absent, n, WAYS)[0].items():
                met[way] += 2 * int(np.count_nonzero((score > 0.5) & key_masks[n]))
                sizes[way] += int(np.count_nonzero(score > 0.5)) + int(np.count_nonzero(key_masks[n]))
        found = {way: met[way] / sizes[way] if sizes[way] else 0.0 for way in WAYS}
        best = max(found, key=lambda way: found[way])
        return best if found[best] - found[BLEND] > _CLEARLY else BLEND

    def _scored(
        self, motion: Motion, keys: dict[int, Distances], absent: set[int], t: int, ways: Sequence[str]
    ) -> tuple[dict[str, Score], float]:
        """Scores of a frame by way, and how far both sides agree about it; what is kept is not computed again."""
        near = nearest(sorted(keys), t)
        content = hashlib.blake2b(repr((motion.key, t, near, absent & {*near})).encode(), digest_size=16)
        for n in near:
            content.update(keys[n].tobytes())
        files = {way: f"{content.hexdigest()}-{way}" for way in ways}
        known = {way: kept for way, file in files.items() if (kept := self._kept.load(file)) is not None}
        if len(known) == len(ways):
            return {way: score for way, (score, _) in known.items()}, known[ways[0]][1]
        carried = {n: warp(keys[n], motion.enlarge(self._chain(motion, n, t))) for n in near}
        found = {"shape": between(keys, t, absent), "motion": between(carried, t, absent)}
        found[BLEND] = 0.5 * (found["shape"] + found["motion"])
        agreed = dice(*(carried[n] > 0 for n in around(near, t)))
        # Half a pixel inside the border is a little above one half.
        return {way: self._kept.keep(files[way], expit(found[way]), agreed) for way in ways}, agreed

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


def _distances(key_masks: KeyMasks) -> tuple[dict[int, Distances], set[int]]:
    """Signed distances of the key frames, and those that lack the class."""
    return key_distances(key_masks), {n for n, mask in key_masks.items() if not mask.any()}
