"""What every engine does: given the masks of one class on some frames, score the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GreyFrames = NDArray[np.uint8]
"""Grey values [frame, row, column]."""
Mask = NDArray[np.bool_]
"""One class on one frame [row, column]."""
KeyMasks = Mapping[int, Mask]
"""Masks of one class by number of the frame, counted from 0."""


@dataclass(frozen=True)
class EngineResult:
    """What an engine says of the frames it was asked about.

    Attributes:
        scores: probability of foreground in [0, 1], float32 [asked, row, column]; the mask is above 0.5.
        agreement: Dice of what the key frame before and the one after say of the frame, float32 [asked]; nan where
            there is a key frame on one side alone.
        way: which of its ways the engine took, if it has several.
    """

    scores: NDArray[np.float32]
    agreement: NDArray[np.float32]
    way: str = ""


class Engine(Protocol):
    """Carries masks from key frames to other frames.

    Attributes:
        name: for tables.
        identity: differs whenever the scores would.
    """

    name: str

    @property
    def identity(self) -> str:
        """See above."""

    def scores(self, frames: GreyFrames, key_masks: KeyMasks, wanted: Sequence[int]) -> EngineResult:
        """Scores frames for one class.

        Args:
            frames: the whole sweep.
            key_masks: masks of the class by number of the frame, counted from 0; an empty one says that the class is
                not there.
            wanted: numbers of the frames to score, none of them a key frame.
        """


def dice(one: Mask, other: Mask) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty, which is agreement here."""
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 1.0
