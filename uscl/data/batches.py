"""What travels between data, stages and evaluation.

B is the batch, S the edge of the backbone's patch, s that of a training patch, K the objects per patch. All patches are
indexed [x, y, z] and normalised. A batch of the loaders for training is one of these with its fields collated; the
loaders for evaluation and prediction give one object at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uscl.data.datasets import Case
from uscl.data.patches import Grid
from uscl.data.volume import Distances, Index, Triple, Volume

Batch = TypeVar("Batch")
ClickKey = tuple[str | int, ...]
"""What the clicks on an object are drawn by, e.g. ``("click", data_set, case, class_name)``."""


class ImagePatch(NamedTuple):
    """A patch to train on without labels.

    Attributes:
        image: float32 [1, s, s, s]; collated [B, 1, s, s, s].
        case: name of the case; collated a list.
    """

    image: Tensor
    case: str


class LabelledPatch(NamedTuple):
    """A patch to train on with the masks of K objects.

    Attributes:
        image: float32 [1, s, s, s]; collated [B, 1, s, s, s].
        target: 0 or 1, float32 [K, s, s, s]; collated [B, K, s, s, s].
        case: name of the case; collated a list.
        class_name: of the first object, around which the patch was cut; collated a list.
    """

    image: Tensor
    target: Tensor
    case: str
    class_name: str


class RenderedPatch(NamedTuple):
    """A patch of a rendered world to train a backbone on.

    Attributes:
        image: float32 [1, S, S, S]; collated [B, 1, S, S, S].
        target: bool [K, S, S, S]; collated [B, K, S, S, S].
        semantic: structure in the middle of every cell of 8^3 voxels, or -100, int64 [S / 8, S / 8, S / 8]; collated
            [B, S / 8, S / 8, S / 8].
    """

    image: Tensor
    target: Tensor
    semantic: Tensor


class ClickTarget(Protocol):
    """What it takes to set clicks on one object."""

    @property
    def image(self) -> Tensor:
        """Patch [1, 1, S, S, S]."""

    @property
    def target(self) -> Tensor:
        """Mask of the object, bool [S, S, S]."""

    @property
    def click_key(self) -> ClickKey:
        """What the clicks are drawn by."""

    @property
    def first_click(self) -> Index | None:
        """Voxel of the patch where the first click lies, where it placed the patch."""


class RenderedObject(NamedTuple):
    """One object of a rendered world, to validate on; a :class:`ClickTarget`."""

    image: Tensor
    target: Tensor
    click_key: ClickKey
    first_click: Index | None = None


class Truth(NamedTuple):
    """The reference mask of an object, for scoring on the grid of its image.

    Attributes:
        mask: bool, on the image's own grid.
        spacing: of that grid, mm; 1 along every axis where distances are assumed, so that surfaces are compared in
            voxels.
        distances: where the millimetres come from.
    """

    mask: NDArray[np.bool_]
    spacing: Triple
    distances: Distances


class CaseObject(NamedTuple):
    """One object of a case, to validate or test on; a :class:`ClickTarget`.

    Attributes:
        image: patch [1, 1, S, S, S].
        target: mask of the object, bool [S, S, S].
        click_key: what its clicks are drawn by.
        first_click: voxel of the patch, where the first click placed it; else None.
        data_set: name of the data set.
        case: which case.
        class_name: which structure.
        grid: with ``corner`` the way from the patch back to the image.
        corner: of the patch on the prepared grid.
        truth: for tests; None in a validation.
    """

    image: Tensor
    target: Tensor
    click_key: ClickKey
    first_click: Index | None
    data_set: str
    case: Case
    class_name: str
    grid: Grid
    corner: Index
    truth: Truth | None


class PromptedObject(NamedTuple):
    """One object that somebody has clicked on; no label is opened.

    Attributes:
        image: patch [1, 1, S, S, S].
        points: the clicks as voxels of the patch, and whether each is foreground.
        grid: with ``corner`` the way from the patch back to the image.
        corner: of the patch on the prepared grid.
        volume: the image.
        mask_name: names the mask, without ending.
    """

    image: Tensor
    points: tuple[tuple[Index, bool], ...]
    grid: Grid
    corner: Index
    volume: Volume
    mask_name: str = ""


def single(items: list[Batch]) -> Batch:
    """Collates a batch of one object: it is the batch."""
    (item,) = items
    return item


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch; grids, names, volumes and references stay where they are."""
    return batch._replace(
        **{name: value.to(device) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    )
