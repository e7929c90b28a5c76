"""SegGPT's network, that of the library transformers, with the feature ensemble of the original.

Source of sizes, key names and the ensemble: https://github.com/baaivision/Painter (SegGPT_inference); Wang et al.,
"SegGPT: Segmenting Everything In Context", arXiv 2304.03284.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from uscl.backbone.checkpoints import LoadReport, fetch, load_checkpoint
from uscl.errors import InputError
from uscl.seeds import fixed_initial_values

if TYPE_CHECKING:
    from transformers import SegGptForImageSegmentation

WEIGHTS = "hf://BAAI/seggpt-vit-large/model.safetensors"
"""The published weights in the library's own layout; ``hf://BAAI/SegGPT/seggpt_vit_large.pth`` is the authors' file."""
PromptType = Literal["instance", "semantic"]


@dataclass(frozen=True)
class SegGptSize:
    """Sizes of a SegGPT; the defaults are the published model's.

    Attributes:
        dim: width of the encoder.
        depth: its blocks.
        heads: its attention heads.
        image_size: edge of the square images, pixels, a multiple of the patch of 16. Prompt and query stand on one
            canvas, one above the other, so that the model's input is twice as high.
        pretrain_size: edge of the images that the absolute positions were trained on.
        decoder_dim: channels of the decoder.
        merge_after: block after which the streams of images and of masks are averaged into one.
        features: blocks whose outputs go to the decoder.
    """

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    image_size: int = 448
    pretrain_size: int = 224
    decoder_dim: int = 64
    merge_after: int = 2
    features: tuple[int, ...] = (5, 11, 17, 23)


class SegGpt(nn.Module):
    """Paints the mask of an image after the example of others.

    With several prompts, what the query attends to is averaged over them after the attention of every block, for the
    streams of images and masks apart as long as they are apart. The library has a switch for that which mixes the two
    streams in the block they are merged after and moves the answer by about 1 % (transformers 5.23, even with a single
    prompt); it stays off and hooks do it.
    A forward pass keeps the number of prompts for the hooks: one module serves one thread.

    Args:
        size: of everything.

    Raises:
        InputError: transformers is not installed (extra ``pseudo-label``).
    """

    def __init__(self, size: SegGptSize = SegGptSize()) -> None:
        super().__init__()
        self.image_size = size.image_size
        self.seggpt = _build(size)
        self.prompts = 1
        for layer in self.seggpt.model.encoder.layers:
            layer.attention.register_forward_hook(self._ensemble)

    def _ensemble(self, layer: nn.Module, given: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any] | None:
        """Averages the query's half over the prompts of each query: rows come as [stream, query, prompt]."""
        if self.prompts == 1:
            return None
        attended, weights = output
        prompt, query = attended.chunk(2, dim=1)
        by_query = query.unflatten(0, (-1, self.prompts))
        mean = by_query.mean(1, keepdim=True).expand_as(by_query).flatten(0, 1)
        return torch.cat((prompt, mean), dim=1), weights

    def forward(self, images: Tensor, masks: Tensor, queries: Tensor, prompt_type: PromptType = "instance") -> Tensor:
        """Paints the queries.

        Args:
            images: prompts [B, N, 3, S, S], normalised with ImageNet's mean and deviation; S = 448.
            masks: their masks as pictures, white on black, [B, N, 3, S, S], normalised in the same way.
            queries: [B, 3, S, S].
            prompt_type: which of the two trained tokens says what a prompt is: one object, or a class by its colour.

        Returns:
            [B, 3, S, S], normalised in the same way. Where prompts differ so do their answers, slightly; the first
            prompt's is the one that counts, as in the original.
        """
        self.prompts = images.shape[1]
        features = self.seggpt.model(
            pixel_values=queries[:, None].expand_as(images).flatten(0, 1),
            prompt_pixel_values=images.flatten(0, 1),
            prompt_masks=masks.flatten(0, 1),
            feature_ensemble=False,
            embedding_type=prompt_type,
        ).intermediate_hidden_states
        first = torch.cat([feature[:: self.prompts] for feature in features], dim=-1)
        return cast("Tensor", self.seggpt.decoder(first))[:, :, self.image_size :]


def load_seggpt(weights: str | None = None, size: SegGptSize = SegGptSize()) -> tuple[SegGpt, LoadReport]:
    """Builds the network and fills in its weights, every one of them and nothing else.

    Args:
        weights: file or ``hf://`` reference, in the library's layout or in the authors'; pickles are read without
            running anything of them. None looks for the published file on this machine.
        size: of the network.

    Raises:
        WeightsNotFoundError: the weights are not there; the message says what to fetch and where to put it.
        InputError: they cannot be used: another network's, part of it missing, or more than belongs to it.
    """
    file = fetch(weights or WEIGHTS, download=weights is not None)  # before a model of gigabytes is built
    network = SegGpt(size)
    report = load_checkpoint(network.seggpt, file, transformers_names).require_complete()
    if report.unexpected:
        raise InputError(f"{report}. SegGPT's published files hold nothing else: this is another network")
    return network.eval(), report


def _build(size: SegGptSize) -> SegGptForImageSegmentation:
    try:
        from transformers import SegGptConfig, SegGptForImageSegmentation
    except ImportError as error:
        raise InputError("the SegGPT engine needs `pip install uscl[pseudo-label]`") from error
    config = SegGptConfig(
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        image_size=[2 * size.image_size, size.image_size],
        pretrain_image_size=size.pretrain_size,
        decoder_hidden_size=size.decoder_dim,
        merge_index=size.merge_after,
        intermediate_hidden_state_indices=list(size.features),
    )
    with fixed_initial_values():
        return SegGptForImageSegmentation(config)


_TOKENS = {
    "mask_token": "mask_token",
    "segment_token_x": "segment_token_input",
    "segment_token_y": "segment_token_prompt",
    "type_token_cls": "type_token_semantic",
    "type_token_ins": "type_token_instance",
    "pos_embed": "position_embeddings",
}
_RULES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.proj\.", "model.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"model.encoder.layers.\1.attention."),
    (r"^blocks\.(\d+)\.norm1\.", r"model.encoder.layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"model.encoder.layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.mlp\.fc(\d)\.", r"model.encoder.layers.\1.mlp.lin\2."),
    (r"^norm\.", "model.encoder.layernorm."),
    (r"^decoder_embed\.", "decoder.decoder_embed."),
    (r"^decoder_pred\.0\.", "decoder.decoder_pred.conv."),
    (r"^decoder_pred\.1\.", "decoder.decoder_pred.layernorm."),
    (r"^decoder_pred\.3\.", "decoder.decoder_pred.head."),
)


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of the authors' file to the library's keys; those of the library's layout stay."""
    return {_name(key): value for key, value in tensors.items()}


def _name(key: str) -> str:
    if key in _TOKENS:
        return f"model.embeddings.{_TOKENS[key]}"
    for pattern, new in _RULES:
        renamed, count = re.subn(pattern, new, key)
        if count:
            return renamed
    return key
