"""The contract of simulated clicks in training: a step's loss, from images and the masks of their objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from uscl.backbone import SamMed3D

if TYPE_CHECKING:
    from uscl.types import PatchBatch


class ClickTraining(ABC):
    """How clicks are simulated in training; settings are fields of frozen dataclasses."""

    @abstractmethod
    def loss(
        self, model: SamMed3D, image: PatchBatch, target: Tensor, key: tuple[str | int, ...]
    ) -> tuple[Tensor, Tensor]:
        """One training step.

        Args:
            model: the backbone.
            image: [B, 1, S, S, S].
            target: 0/1 masks [B, K, S, S, S] of K objects per image; every one must hold an object.
            key: what every draw of the step depends on.

        Returns:
            The loss to minimise, and the same per click, detached, to be logged.

        Raises:
            InputError: there are more objects per image than it can click on.
        """
