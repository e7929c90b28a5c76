r"""Low-rank adaptation of SAM-Med3D's attention layers and MLPs, with the layers of loralib.

::

    h = W0 x + (alpha / r) B A x          W0: [out, in] frozen,  A: [r, in],  B: [out, r] zero at the start

The encoder packs q, k and v into one linear layer, so its layer is loralib's ``MergedLinear``, which gives q and v an
A and a B of their own and leaves k alone; the decoder's q and v projections are separate linear layers. In
``vit_b_ori`` at rank 32 that is 12 x 2 x 32 x (768 + 768) = 1,179,648 weights in the encoder and 282,624 in the
decoder. Linear layers of the MLPs are tuned only where asked for: with them, LoRA of a language model came up to full
tuning, without them it did not (section 4 of https://arxiv.org/abs/2305.14314).

Source: equation 7 of the paper; LoRA, https://arxiv.org/abs/2106.09685. loralib is always built with
``merge_weights=False``: its default merges inside ``eval()`` and un-merges inside ``train()``, but Lightning restores
the training flag without calling ``train()``, after which nothing is trained any more and nothing warns of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import loralib
from torch import Tensor, nn

from uscl.backbone import SamMed3D
from uscl.backbone.attention import WindowAttention
from uscl.backbone.image_encoder import Mlp
from uscl.backbone.mask_decoder import DecoderAttention, DecoderMlp
from uscl.errors import InputError
from uscl.tuning.method import Modules, Part, TuningMethod

Projection = Literal["q", "k", "v", "out", "mlp"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


@dataclass(frozen=True)
class LoRA(TuningMethod):
    """What LoRA is inserted where.

    Attributes:
        rank: r, the width of the bottleneck; 32 is the paper's best.
        alpha: scale of the update, which is multiplied by alpha / rank. None ties it to the rank (a scale of 1), so
            that a sweep over ranks compares ranks and not step sizes.
        modules: tune the transformer layers of the image ``encoder``, of the mask ``decoder``, or of ``both``.
        dropout: share of the inputs of A that is dropped in training.
        projections: which of every attention layer's projections; ``mlp`` stands for both linear layers of every
            transformer block's MLP.
        decoder_rank: r in the decoder; None for that of the encoder.
        rank_stabilised: multiply by alpha / sqrt(rank) instead (rsLoRA, https://arxiv.org/abs/2312.03732); needs alpha.
    """

    title: ClassVar[str] = "SAM-Med3D + LoRA"
    rank: int = 32
    alpha: float | None = None
    modules: Modules = "both"
    dropout: float = 0.0
    projections: tuple[Projection, ...] = ("q", "v")
    decoder_rank: int | None = None
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "projections", tuple(self.projections))  # from JSON they come as a list
        if self.rank < 1 or (self.decoder_rank is not None and self.decoder_rank < 1):
            raise InputError(f"LoRA's ranks must be at least 1, found {self.rank} and {self.decoder_rank}")
        if self.alpha is not None and self.alpha <= 0:
            raise InputError(f"LoRA's alpha must be above 0, or null to tie it to the rank; found {self.alpha}")
        if self.alpha is None and self.rank_stabilised:
            raise InputError("LoRA's rank_stabilised needs alpha: without one the scale is 1 at every rank")
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoRA's dropout must lie in [0, 1), found {self.dropout}")
        if not self.projections or set(self.projections) - set(PROJECTIONS):
            known = ", ".join(PROJECTIONS)
            raise InputError(f"LoRA's projections are of {known}, at least one; found {list(self.projections)}")

    def rank_of(self, part: Part) -> int:
        """R in one part."""
        return self.decoder_rank if part == "decoder" and self.decoder_rank is not None else self.rank

    def scale_of(self, part: Part) -> float:
        """What the update is multiplied by in one part."""
        if self.alpha is None:
            return 1.0
        rank = self.rank_of(part)
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def insert(self, model: SamMed3D, part: Part) -> None:
        """Puts LoRA layers into one part of a model, around the weights it has; they share storage with the old."""
        rank = self.rank_of(part)
        # loralib multiplies by lora_alpha / r.
        alpha = self.scale_of(part) * rank
        options = {"r": rank, "lora_alpha": alpha, "lora_dropout": self.dropout, "merge_weights": False}
        for parent, name, layer in list(_tuned_layers(model, part, self.projections)):
            if name == "qkv":
                flags = [projection in self.projections for projection in ("q", "k", "v")]
                tuned: nn.Linear = loralib.MergedLinear(
                    layer.in_features, layer.out_features, enable_lora=flags, **options
                )
            else:
                tuned = loralib.Linear(layer.in_features, layer.out_features, **options)
            tuned.weight, tuned.bias = layer.weight, layer.bias
            if name == "qkv":
                # loralib keeps it beside the module, where it stays behind when the module moves to another device.
                rows = tuned.__dict__.pop("lora_ind")
                tuned.register_buffer("lora_ind", rows, persistent=False)
            tuned.train(layer.training)  # or its dropout would act in a model that predicts
            setattr(parent, name, tuned.to(layer.weight))

    def owns(self, name: str) -> bool:
        """A and B of every layer."""
        return ".lora_" in name

    def merge(self, model: SamMed3D) -> bool:
        """See :func:`merge_lora`."""
        merge_lora(model)
        return True


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


def _tuned_layers(
    model: SamMed3D, part: Part, projections: tuple[Projection, ...]
) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer that gets LoRA, with the module that holds it."""
    if part == "encoder":
        names = ["qkv"] * bool({"q", "k", "v"}.intersection(projections)) + ["proj"] * ("out" in projections)
    else:
        names = [f"{projection}_proj" for projection in projections if projection != "mlp"]
    root = model.image_encoder if part == "encoder" else model.mask_decoder
    for module in root.modules():
        if isinstance(module, WindowAttention | DecoderAttention):
            for name in names:
                yield module, name, getattr(module, name)
        elif isinstance(module, Mlp | DecoderMlp) and "mlp" in projections:
            yield module, "lin1", module.lin1
            yield module, "lin2", module.lin2


def _lora_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The layers of loralib, which have no types, with the module that holds them."""
    for module in model.modules():
        for name, layer in module.named_children():
            if isinstance(layer, loralib.LoRALayer):
                yield module, name, layer
