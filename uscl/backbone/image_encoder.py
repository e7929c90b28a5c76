"""The 3D vision transformer of SAM-Med3D: a 128^3 patch in, an image embedding of 384 x 8^3 out.

Module and parameter names equal the published checkpoint's.
Source: https://github.com/uni-medical/SAM-Med3D (image encoder of ``vit_b_ori``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uscl.backbone.attention import WindowAttention
from uscl.backbone.layers import LayerNorm3d, PatchConv3d

if TYPE_CHECKING:
    from uscl.backbone.config import SamMed3DConfig
    from uscl.types import Embedding, PatchBatch, TokenGrid


class PatchEmbed(nn.Module):
    """Cuts the patch into cubes and projects each to one token: [B, 1, S, S, S] -> [B, g, g, g, C]."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = PatchConv3d(1, embed_dim, patch_size)

    def forward(self, image: PatchBatch) -> TokenGrid:
        """Returns the tokens, channels last."""
        return self.proj.channels_last(image)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., C] to [..., C]."""
        return cast("Tensor", self.lin2(self.act(self.lin1(x))))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm1 x), then + mlp(norm2 .). Norm eps is 1e-6, as published.

    Attributes:
        adapter: what a tuning method may put beside the MLP; it takes the tokens before norm2.
    """

    def __init__(self, config: SamMed3DConfig, window_size: int, attention: bool = True) -> None:
        super().__init__()
        self.residual_after_norm = config.residual_after_norm
        self.attn: WindowAttention | None = None
        if attention:
            self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
            self.attn = WindowAttention(
                config.embed_dim,
                config.num_heads,
                edge=window_size or config.grid_size,
                window_size=window_size,
                published_positions=config.published_positions,
            )
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = Mlp(config.embed_dim, int(config.embed_dim * config.mlp_ratio))
        self.adapter: nn.Module | None = None

    def forward(self, tokens: TokenGrid) -> TokenGrid:
        """Maps [B, g, g, g, C] to the same shape."""
        if self.attn is not None:
            tokens = tokens + self.attn(self.norm1(tokens))
        normed = self.norm2(tokens)
        out = (normed if self.residual_after_norm else tokens) + cast("Tensor", self.mlp(normed))
        return out if self.adapter is None else out + self.adapter(tokens)


class ImageEncoder(nn.Module):
    """Patch embedding, transformer blocks and the convolutional neck.

    Args:
        config: sizes of the model.

    Attributes:
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations:
            less memory for about a third more time. Off unless a stage turns it on.
    """

    def __init__(self, config: SamMed3DConfig) -> None:
        super().__init__()
        grid = config.grid_size
        self.image_size = config.image_size
        self.activation_checkpointing = False
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                config,
                window_size=0 if i in config.global_attention_blocks else config.window_size,
                attention=i >= config.attention_free_blocks,
            )
            for i in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(config.embed_dim, config.prompt_dim, kernel_size=1, bias=False),
            LayerNorm3d(config.prompt_dim),
            nn.Conv3d(config.prompt_dim, config.prompt_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm3d(config.prompt_dim),
        )

    def forward(self, image: PatchBatch) -> Embedding:
        """Encodes normalised patches.

        Args:
            image: [B, 1, S, S, S].

        Returns:
            [B, E, g, g, g].

        Raises:
            ValueError: the patch is not S voxels along every axis (the absolute positions fix its size).
        """
        expected = (1, *(self.image_size,) * 3)
        if tuple(image.shape[1:]) != expected:
            raise ValueError(f"the image encoder takes [B, {str(expected)[1:-1]}], got {list(image.shape)}")
        tokens = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return cast("Tensor", self.neck(tokens.permute(0, 4, 1, 2, 3)))
