"""Clicks and mask prompts of SAM-Med3D, brought to the width of the image embedding.

Source: https://github.com/uni-medical/SAM-Med3D (prompt encoder). Boxes are not supported: the published code for them
is two-dimensional and has no trained weights.
"""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from uscl.backbone.layers import LayerNorm3d, PatchConv3d

if TYPE_CHECKING:
    from uscl.backbone.config import SamMed3DConfig
    from uscl.types import LowResLogits, PointCoords, PointLabels

PADDING, BACKGROUND, FOREGROUND = -1, 0, 1
"""The three labels a point can have."""


class RandomPositionalEncoding(nn.Module):
    """Random Fourier code of points in the unit cube: [..., 3] -> [..., E], as sin, cos, sin of E / 3 frequencies."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, frequencies))

    def forward(self, unit: Tensor) -> Tensor:
        """Codes positions given in [0, 1]^3."""
        angle = 2 * pi * ((2 * unit - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)


class PromptEncoder(nn.Module):
    """Turns clicks into sparse tokens and a mask prompt into a dense map.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: SamMed3DConfig) -> None:
        super().__init__()
        dim, hidden = config.prompt_dim, config.mask_in_channels
        self.image_size, self.grid_size = config.image_size, config.grid_size
        self.published_positions = config.published_positions
        self.pe_layer = RandomPositionalEncoding(dim // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            PatchConv3d(1, hidden // 4, 2),
            LayerNorm3d(hidden // 4),
            nn.GELU(),
            PatchConv3d(hidden // 4, hidden, 2),
            LayerNorm3d(hidden),
            nn.GELU(),
            nn.Conv3d(hidden, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_positions(self) -> Tensor:
        """Positional code of every token cell: [1, E, g, g, g].

        With ``published_positions`` cell (i, j, k) carries the code of (j, i, k): the published code exchanges the
        first two axes here but not for clicks, and its weights were trained with that.
        """
        axis = torch.arange(self.grid_size, device=self.pe_layer.positional_encoding_gaussian_matrix.device) + 0.5
        i, j, k = torch.meshgrid(axis / self.grid_size, axis / self.grid_size, axis / self.grid_size, indexing="ij")
        unit = torch.stack([j, i, k] if self.published_positions else [i, j, k], dim=-1)
        return cast("Tensor", self.pe_layer(unit)).permute(3, 0, 1, 2)[None]

    def forward(
        self, points: tuple[PointCoords, PointLabels] | None, mask: LowResLogits | None, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Encodes the prompts of ``batch`` objects.

        Args:
            points: voxel indices [B, N, 3] in the patch and labels [B, N] (1 foreground, 0 background, -1 padding).
                One padding point is appended, as the published code does whenever there is no box.
            mask: low-resolution logits [B, 1, m, m, m] of the step before. All zeros, never None, is what the
                published weights saw at the first click; None uses an embedding that they never trained.
            batch: B, needed when neither is given.

        Returns:
            Sparse tokens [B, N + 1, E] (or [B, 0, E] without points) and the dense map [B, E, g, g, g].
        """
        device = self.no_mask_embed.weight.device
        if points is None:
            sparse = torch.zeros(batch, 0, self.no_mask_embed.embedding_dim, device=device)
        else:
            sparse = self._embed_points(*points)
        if mask is None:
            grid = (self.grid_size,) * 3
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1, 1).expand(batch, -1, *grid)
        else:
            dense = self.mask_downscaling(mask)
        return sparse, dense

    def _embed_points(self, coords: PointCoords, labels: PointLabels) -> Tensor:
        unit = (coords.float() + 0.5) / self.image_size
        unit = torch.cat([unit, unit.new_zeros(unit.shape[0], 1, 3)], dim=1)
        labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), PADDING)], dim=1)[..., None]
        code = self.pe_layer(unit)
        code = torch.where(labels == PADDING, self.not_a_point_embed.weight, code)
        for label, embedding in zip((BACKGROUND, FOREGROUND), self.point_embeddings, strict=True):
            code = code + torch.where(labels == label, cast("nn.Embedding", embedding).weight, 0.0)
        return code
