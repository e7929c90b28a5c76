"""The contract of a method that ours is compared with; chosen by ``model.comparator`` in YAML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from torch import nn

from uscl.prompting import Segmenter, VolumeSegmenter


class Loaded(NamedTuple):
    """A comparator with its weights.

    Attributes:
        segmenter: segments patches, or whole volumes where the comparator takes those.
        weights: what they are, in words, for the result rows.
        model: the torch module in it, which is moved to the device of the test; None if there is none.
    """

    segmenter: Segmenter | VolumeSegmenter
    weights: str
    model: nn.Module | None = None


class Comparator(ABC):
    """A promptable method that ours is compared with; settings are fields of frozen dataclasses.

    Attributes:
        title: name in tables, as in the paper.
        takes: what the segmenter's ``set_image`` is given: the normalised ``patch`` [1, 1, S, S, S], or the ``volume``
            as its file has it, with its geometry, for methods that prepare images in their own way.
    """

    title: ClassVar[str]
    takes: ClassVar[Literal["patch", "volume"]] = "patch"

    @property
    def slice_axis(self) -> int | None:
        """The axis of the patch along whose slices a 2D method takes its clicks; None for methods in 3D."""
        return None

    @abstractmethod
    def load(self) -> Loaded:
        """Builds the method and loads its weights.

        Raises:
            WeightsNotFoundError: they are not there.
            InputError: they cannot be used, or part of the model would stay random.
        """
