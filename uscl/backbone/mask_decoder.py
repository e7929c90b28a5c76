"""The two-way transformer of SAM-Med3D that draws masks from an image embedding and prompts.

Source: https://github.com/uni-medical/SAM-Med3D (mask decoder). In any published weights only the first mask is
trained: the IoU head and the other masks never received a gradient, so do not rank masks by their predicted IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uscl.backbone.layers import LayerNorm3d

if TYPE_CHECKING:
    from uscl.backbone.config import SamMed3DConfig
    from uscl.types import Embedding, LowResLogits


class DecoderAttention(nn.Module):
    """Multi-head attention with an inner width of its own: queries [B, n, E] against keys [B, m, E].

    Args:
        dim: E.
        num_heads: heads.
        inner_dim: width of q, k and v together; the published model uses E in self- and E / 2 in cross-attention.
    """

    def __init__(self, dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns [B, n, E]."""
        q, k, v = (self._split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        out = F.scaled_dot_product_attention(q, k, v)
        return cast("Tensor", self.out_proj(out.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class DecoderMlp(nn.Module):
    """Linear, ReLU, linear (the encoder's MLP has a GELU; this one has not)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., E] to [..., E]."""
        return cast("Tensor", self.lin2(F.relu(self.lin1(x))))


class TwoWayBlock(nn.Module):
    """Tokens look at each other, at the image, pass an MLP, and the image looks back; post-norm, eps 1e-5.

    Args:
        config: sizes of the model.
        first: the first block's self-attention has neither positions nor a residual, as published.

    Attributes:
        adapter: what a tuning method may put beside the MLP.
    """

    def __init__(self, config: SamMed3DConfig, first: bool) -> None:
        super().__init__()
        dim, heads = config.prompt_dim, config.decoder_heads
        self.first = first
        self.self_attn = DecoderAttention(dim, heads, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = DecoderAttention(dim, heads, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = DecoderMlp(dim, config.decoder_mlp_dim)
        self.adapter: nn.Module | None = None
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = DecoderAttention(dim, heads, dim // 2)

    def forward(self, tokens: Tensor, image: Tensor, token_pos: Tensor, image_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Updates tokens [B, n, E] and image tokens [B, g^3, E]; the positions are added to queries and keys only."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pos
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        attended = self.cross_attn_token_to_image(tokens + token_pos, image + image_pos, image)
        tokens = self.norm2(tokens + attended)
        changed = tokens + self.mlp(tokens)
        tokens = self.norm3(changed if self.adapter is None else changed + self.adapter(tokens))
        attended = self.cross_attn_image_to_token(image + image_pos, tokens + token_pos, tokens)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """Two-way blocks and a last look of the tokens at the image."""

    def __init__(self, config: SamMed3DConfig) -> None:
        super().__init__()
        dim = config.prompt_dim
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.decoder_depth))
        self.final_attn_token_to_image = DecoderAttention(dim, config.decoder_heads, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, image_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, n, E] (which are their own positions), image tokens and their positions [B, g^3, E]."""
        token_pos = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pos, image_pos)
        attended = self.final_attn_token_to_image(tokens + token_pos, image + image_pos, image)
        return self.norm_final_attn(tokens + attended), image


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., dim] to [..., out]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return cast("Tensor", self.layers[-1](x))


class Upscaling(nn.Sequential):
    """Makes 4^3 cells of every token: two transposed convolutions with a norm and GELUs.

    Their kernels are as large as their strides, so no two outputs overlap and each convolution is one matrix product
    per token, with the channels last all the way. That takes less time on a CPU than torch's transposed convolutions
    (benchmarks/convolutions.py), whose weights it keeps under their published names.

    Args:
        dim: E.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.ConvTranspose3d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm3d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Maps image tokens [B, n, E] to features of their cells [B, n, 64, E / 8].

        The cells of a token come in the order of their halves: first along x, y and z, then the halves of the halves.
        """
        modules: Any = self
        first, norm, activation, second, last = modules
        batch, tokens, _ = image.shape
        halves = _split_in_halves(image.flatten(0, 1), first)
        halves = activation(F.layer_norm(halves, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        cells = last(_split_in_halves(halves, second)).unflatten(0, (batch, tokens, 64))
        return cast("Tensor", cells)


def _split_in_halves(cells: Tensor, layer: nn.ConvTranspose3d) -> Tensor:
    """Applies a transposed convolution of kernel and stride 2 to separate cells: [N, C] to [8 N, D]."""
    weight = layer.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
    bias = layer.bias.repeat(8) if layer.bias is not None else None
    return F.linear(cells, weight, bias).reshape(8 * len(cells), -1)


def cells_in_place(cells: Tensor, grid: Sequence[int]) -> Tensor:
    """Puts the values of the cells [B, M, n, 64] of n = x y z tokens where they lie: [B, M, 4 x, 4 y, 4 z]."""
    objects, masks = cells.shape[:2]
    split = cells.reshape(objects, masks, *grid, *(2,) * 6).permute(0, 1, 2, 5, 8, 3, 6, 9, 4, 7, 10)
    return split.reshape(objects, masks, *(4 * edge for edge in grid))


class MaskDecoder(nn.Module):
    """Predicts low-resolution mask logits.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: SamMed3DConfig) -> None:
        super().__init__()
        dim, masks = config.prompt_dim, config.num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(masks, dim)
        self.output_upscaling = Upscaling(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(dim, dim, dim // 8, 3) for _ in range(masks))
        self.iou_prediction_head = Mlp(dim, config.iou_head_hidden_dim, masks, config.iou_head_depth)

    def forward(
        self, embedding: Embedding, positions: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[LowResLogits, Tensor]:
        """Draws masks for B objects.

        Args:
            embedding: image embeddings [B, E, g, g, g].
            positions: dense positional code [1, E, g, g, g].
            sparse: click tokens [B, n, E].
            dense: mask prompt [B, E, g, g, g].
            multimask: return masks 1.. instead of mask 0.

        Returns:
            Logits [B, M, m, m, m] and predicted IoU [B, M], with M = 1 or ``num_multimask_outputs``.
        """
        batch, _, *grid = embedding.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), sparse], dim=1)
        image = (embedding + dense).flatten(2).transpose(1, 2)
        image_pos = positions.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, image, image_pos)
        # All kernels are made and then selected, so that the unused heads get a zero gradient, as in the original,
        # rather than none.
        heads = self.output_hypernetworks_mlps
        wanted = slice(1, None) if multimask else slice(0, 1)
        kernels = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)[:, wanted]
        cells = (self.output_upscaling(image).flatten(1, 2) @ kernels.transpose(1, 2)).transpose(1, 2)
        iou = self.iou_prediction_head(tokens[:, 0])
        return cells_in_place(cells.unflatten(2, (-1, 64)), grid), iou[:, wanted]
