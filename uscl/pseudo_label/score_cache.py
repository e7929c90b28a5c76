"""Scores that were computed once, on disk, so that another run need not compute them again."""

from __future__ import annotations

from math import nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Score = NDArray[np.float32]
"""Probability of foreground on one frame [row, column]."""


class ScoreCache:
    """Keeps a file for every score.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str) -> tuple[Score, float] | None:
        """The score that was kept under a key and the agreement of both sides about it, or None."""
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        with np.load(file) as kept:
            found: Score = kept["score"].astype(np.float32)
            return found, float(kept["agreement"])

    def keep(self, key: str, score: Score, agreement: float = nan) -> Score:
        """Keeps a score, and what belongs to it, and returns it as it will be read back: in half precision."""
        half = score.astype(np.float16)
        if (file := self._file(key)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.savez_compressed(stream, score=half, agreement=np.float64(agreement))
            partial.replace(file)
        return half.astype(np.float32)

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"score-{key}.npz"
