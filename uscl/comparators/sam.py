"""The 2D SAM family on one prompt encoder and one mask decoder, those of the library transformers.

Source of the sizes and key names: https://github.com/facebookresearch/segment-anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from uscl.errors import InputError
from uscl.seeds import fixed_initial_values

if TYPE_CHECKING:
    from transformers import SamModel


@dataclass(frozen=True)
class SamSize:
    """Sizes of a SAM.

    Attributes:
        dim: width of the image encoder.
        depth: its blocks.
        heads: its attention heads.
        global_blocks: blocks that attend over the whole grid instead of windows.
        image_size: edge of the square input, pixels.
        window: edge of an attention window, tokens.
        prompt_dim: width of the embedding, of prompts and of the decoder.
        decoder_mlp_dim: hidden width of the decoder's MLPs.
        iou_hidden_dim: hidden width of the head that guesses the IoU.
        mask_channels: channels of a mask prompt before it is brought to ``prompt_dim``.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    image_size: int = 1024
    window: int = 14
    prompt_dim: int = 256
    decoder_mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    mask_channels: int = 16


SIZES: dict[str, SamSize] = {
    "vit_b": SamSize(),
    "vit_l": SamSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": SamSize(1280, 32, 16, (7, 15, 23, 31)),
}


class PromptedSam(nn.Module):
    """An image encoder with SAM's prompt encoder and mask decoder.

    Args:
        size: of everything.
        encoder: maps images [B, 3, S, S] to embeddings [B, E, S / 16, S / 16]; None builds SAM's own.

    Raises:
        InputError: transformers is not installed (extra ``comparators``).
    """

    def __init__(self, size: SamSize, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.image_size = size.image_size
        self.sam = _build(size, with_encoder=encoder is None)
        self.own_encoder = encoder

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Embeddings [B, E, g, g] of normalised images [B, 3, S, S]."""
        if self.own_encoder is not None:
            return cast("Tensor", self.own_encoder(images))
        return cast("Tensor", self.sam.vision_encoder(images)[0])

    @torch.no_grad()
    def decode(
        self, embeddings: Tensor, points: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws three masks for the prompts on each image.

        Args:
            embeddings: [B, E, g, g].
            points: [B, N, 2], x (column) and y (row) in pixels of the input.
            labels: [B, N]: 1 foreground, 0 background.
            masks: logits [B, 1, 4 g, 4 g] of the step before; None at the first.

        Returns:
            Logits [B, 3, 4 g, 4 g] and predicted IoU [B, 3].
        """
        out = self.sam(
            image_embeddings=embeddings,
            input_points=points[:, None].float(),
            input_labels=labels[:, None],
            input_masks=masks,
            multimask_output=True,
        )
        return out.pred_masks[:, 0], out.iou_scores[:, 0]

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames the tensors of a published file, or of the library's own format, to this module's keys."""
        if any(key.startswith("vision_encoder.") for key in tensors):
            found = {f"sam.{key}": value for key, value in tensors.items()}
            return {
                f"sam.{tied}": tensors[shared] for shared in _TIED[:1] if shared in tensors for tied in _TIED
            } | found
        return {new: value for key, value in tensors.items() for new in self.names(key)}

    def names(self, key: str) -> tuple[str, ...]:
        """This module's names for a published key; none for what it has no use for."""
        if key.startswith(("image_encoder.head.", "image_encoder.norm_head.")):
            return ()  # the classifier that TinyViT was trained with
        if self.own_encoder is not None and key.startswith("image_encoder."):
            return (key.replace("image_encoder.", "own_encoder.", 1),)
        return tuple(f"sam.{name}" for name in transformers_names(key))


def _build(size: SamSize, with_encoder: bool) -> SamModel:
    try:
        from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig
    except ImportError as error:
        raise InputError("the 2D comparators need `pip install uscl[comparators]`") from error
    # The library knows no SAM without an encoder: where another one is used its own is built as small as may be.
    dim, depth, heads = (size.dim, size.depth, size.heads) if with_encoder else (8, 0, 1)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            mlp_dim=4 * dim,
            global_attn_indexes=list(size.global_blocks) if with_encoder else [],
            image_size=size.image_size,
            window_size=size.window,
            output_channels=size.prompt_dim,
            num_pos_feats=size.prompt_dim // 2,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            image_size=size.image_size, hidden_size=size.prompt_dim, mask_input_channels=size.mask_channels
        ),
        # The published models normalise with 1e-5 here; the library's default of 1e-6 moves masks by 1e-4.
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=size.prompt_dim,
            mlp_dim=size.decoder_mlp_dim,
            iou_head_hidden_dim=size.iou_hidden_dim,
            layer_norm_eps=1e-5,
        ),
    )
    with fixed_initial_values():
        model = SamModel(config)
    if not with_encoder:
        del model.vision_encoder
    return model


_ENCODER: tuple[tuple[str, str], ...] = (
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^blocks\.(\d+)\.norm([12])", r"layers.\1.layer_norm\2"),
    (r"^blocks\.", "layers."),
    (r"^neck\.0", "neck.conv1"),
    (r"^neck\.1", "neck.layer_norm1"),
    (r"^neck\.2", "neck.conv2"),
    (r"^neck\.3", "neck.layer_norm2"),
)
_PROMPTS: tuple[tuple[str, str], ...] = (
    (r"^point_embeddings\.", "point_embed."),
    (r"^mask_downscaling\.0", "mask_embed.conv1"),
    (r"^mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"^mask_downscaling\.3", "mask_embed.conv2"),
    (r"^mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"^mask_downscaling\.6", "mask_embed.conv3"),
)
_DECODER: tuple[tuple[str, str], ...] = (
    (r"layers\.(\d+)\.norm(\d)", r"layers.\1.layer_norm\2"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"^output_upscaling\.0", "upscale_conv1"),
    (r"^output_upscaling\.1", "upscale_layer_norm"),
    (r"^output_upscaling\.3", "upscale_conv2"),
    (r"^(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"^(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1", r"\1.layers.0"),
    (r"^(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2", r"\1.proj_out"),
)
_PARTS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "image_encoder": ("vision_encoder", _ENCODER),
    "prompt_encoder": ("prompt_encoder", _PROMPTS),
    "mask_decoder": ("mask_decoder", _DECODER),
}
# The library keeps the same tensor twice.
_TIED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def transformers_names(key: str) -> tuple[str, ...]:
    """The library's names for a published key; two where it keeps the same tensor twice."""
    if key == _POSITIONS:
        return _TIED
    part, _, rest = key.partition(".")
    if part not in _PARTS:
        return (key,)
    theirs, rules = _PARTS[part]
    for pattern, new in rules:
        rest, count = re.subn(pattern, new, rest)
        if count:
            break
    return (f"{theirs}.{rest}",)
