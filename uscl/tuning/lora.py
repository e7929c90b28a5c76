r"""Low-rank adaptation of SAM-Med3D's attention layers, with the layers of loralib.

::

    h = W0 x + (alpha / r) B A x          W0: [out, in] frozen,  A: [r, in],  B: [out, r] zero at the start

The encoder packs q, k and v into one linear layer, so its layer is loralib's ``MergedLinear``, which gives q and v an
A and a B of their own and leaves k alone; the decoder's q and v projections are separate linear layers. In
``vit_b_ori`` at rank 32 that is 12 x 2 x 32 x (768 + 768) = 1,179,648 weights in the encoder and 282,624 in the
decoder.

Source: equation 7 of the paper; LoRA, https://arxiv.org/abs/2106.09685. loralib is always built with
``merge_weights=False``: its default merges inside ``eval()`` and un-merges inside ``train()``, but Lightning restores
the training flag without calling ``train()``, after which nothing is trained any more and nobody is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import loralib
from torch import Tensor, nn

from uscl.backbone import SamMed3D
from uscl.errors import InputError

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")


@dataclass(frozen=True)
class LoRA:
    """What LoRA is inserted where.

    Attributes:
        rank: r, the width of the bottleneck; 32 is the paper's best.
        alpha: scale of the update, which is multiplied by alpha / rank. None ties it to the rank (a scale of 1), so
            that a sweep over ranks compares ranks and not step sizes.
        modules: tune the attention layers of the image ``encoder``, of the mask ``decoder``, or of ``both``.
        dropout: share of the inputs of A that is dropped in training.
    """

    rank: int = 32
    alpha: float | None = None
    modules: Literal["encoder", "decoder", "both"] = "both"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank must be at least 1, found {self.rank}")
        if self.alpha is not None and self.alpha <= 0:
            raise InputError(f"lora.alpha must be above 0, or null to tie it to the rank; found {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout must lie in [0, 1), found {self.dropout}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that ``modules`` names."""
        return PARTS if self.modules == "both" else (self.modules,)

    @property
    def scale(self) -> float:
        """What the update is multiplied by, alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def apply(self, model: SamMed3D) -> None:
        """Freezes the model and inserts trainable LoRA layers; the function it computes does not change."""
        model.requires_grad_(False)
        for part in self.parts:
            self.insert(model, part)

    def insert(self, model: SamMed3D, part: Part) -> None:
        """Puts LoRA layers into one part of a model, around the weights it has; they share storage with the old."""
        alpha = self.rank if self.alpha is None else self.alpha
        options = {"r": self.rank, "lora_alpha": alpha, "lora_dropout": self.dropout, "merge_weights": False}
        for parent, name, layer in list(_attention_projections(model, part)):
            if part == "encoder":
                tuned: nn.Linear = loralib.MergedLinear(
                    layer.in_features, layer.out_features, enable_lora=[True, False, True], **options
                )
            else:
                tuned = loralib.Linear(layer.in_features, layer.out_features, **options)
            tuned.weight, tuned.bias = layer.weight, layer.bias
            setattr(parent, name, tuned.to(layer.weight.device))


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA tensors of a model by name, trained or not."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def merge_lora(model: nn.Module) -> nn.Module:
    """Adds every LoRA update to its weight and puts plain linear layers back, in place.

    The result computes the same function up to rounding, has the published checkpoint's keys and no trace of LoRA, so
    that merging twice does nothing more. The sum is taken in float64 and rounded once.

    Returns:
        The model itself.
    """
    for parent, name, layer in list(_lora_layers(model)):
        packed = isinstance(layer, loralib.MergedLinear)
        update = layer.merge_AB().double() if packed else layer.lora_B.double() @ layer.lora_A.double()
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
        weight = (layer.weight.double() + layer.scaling * update).to(layer.weight.dtype)
        plain.weight = nn.Parameter(weight.detach(), requires_grad=layer.weight.requires_grad)
        plain.bias = layer.bias
        setattr(parent, name, plain)
    return model


def _attention_projections(model: SamMed3D, part: Part) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every attention layer's projections that get LoRA, with the module that holds them."""
    names = ("qkv",) if part == "encoder" else ("q_proj", "v_proj")
    root = model.image_encoder if part == "encoder" else model.mask_decoder
    for module in root.modules():
        for name in names:
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                yield module, name, layer


def _lora_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The layers of loralib, which have no types, with the module that holds them."""
    for module in model.modules():
        for name, layer in module.named_children():
            if isinstance(layer, loralib.LoRALayer):
                yield module, name, layer
