"""Layers that encoder, prompt encoder and decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm3d(nn.Module):
    """Layer norm over the channel axis of [B, C, x, y, z], per voxel (biased variance, as SAM's LayerNorm2d).

    Args:
        channels: C.
        eps: added to the variance inside the square root; the published value is 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over axis 1 and returns the same shape."""
        centred = x - x.mean(1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return normed * self.weight[:, None, None, None] + self.bias[:, None, None, None]
