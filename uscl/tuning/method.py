"""The contract of a tuning method: what of a backbone is trained, and what is added to it for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from uscl.backbone import SamMed3D

Part = Literal["encoder", "decoder"]
Modules = Literal["encoder", "decoder", "both"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")
ROOTS: dict[Part, tuple[str, ...]] = {
    "encoder": ("image_encoder.",),
    "decoder": ("mask_decoder.", "prompt_encoder."),
}
"""Where the tensors of each part lie. What encodes prompts goes with the decoder."""


class TuningMethod(ABC):
    """What is trained, and how it gets into the model; settings are fields of frozen dataclasses.

    Attributes:
        title: name of a backbone tuned this way, for result rows.
        modules: tune the image ``encoder``, the mask ``decoder`` (with the prompt encoder), or ``both``.
        rank: of methods that have one, for tables; else 0.
    """

    title: ClassVar[str]
    modules: Modules
    rank: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that ``modules`` names."""
        return PARTS if self.modules == "both" else (self.modules,)

    @abstractmethod
    def insert(self, model: SamMed3D, part: Part) -> None:
        """Puts what the method adds into one part; the function that the model computes does not change."""

    @abstractmethod
    def owns(self, name: str) -> bool:
        """Whether the method trains and saves the tensor of this name in a part that it tunes."""

    def merge(self, model: SamMed3D) -> bool:
        """Folds what was added into the weights, in place, if that can be done.

        Returns:
            Whether the model is now one of the published architecture.
        """
        return False

    def apply(self, model: SamMed3D) -> None:
        """Freezes the model, inserts what the method adds and makes trainable what it owns."""
        for part in self.parts:
            self.insert(model, part)
        train_only(model, dict.fromkeys(self.parts, self))

    def tensors(self, model: nn.Module, part: Part) -> dict[str, Tensor]:
        """What is to be saved of one part, by name, trained or not."""
        return {name: tensor for name, tensor in model.state_dict().items() if self.owns_in(name, part)}

    def owns_in(self, name: str, part: Part) -> bool:
        """Whether the method owns the tensor of this name and it lies in this part."""
        return name.startswith(ROOTS[part]) and self.owns(name)


def train_only(model: nn.Module, methods: dict[Part, TuningMethod]) -> None:
    """Makes trainable what the method of each part owns there, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(method.owns_in(name, part) for part, method in methods.items()))


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Number of trainable parameters of each component of a backbone."""
    return {
        name: sum(p.numel() for p in component.parameters() if p.requires_grad)
        for name, component in model.named_children()
    }
