"""Layers that encoder, prompt encoder and decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchConv3d(nn.Conv3d):
    """A convolution of cubes that do not overlap (stride equal to the kernel), as one matrix product.

    The weights are the same; on a CPU torch's own takes several times as long (benchmarks/convolutions.py).

    Args:
        in_channels: C.
        out_channels: D.
        edge: of a cube, voxels; every axis of the input must be a multiple of it.
    """

    def __init__(self, in_channels: int, out_channels: int, edge: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=edge, stride=edge)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, x, y, z] to [B, D, x / edge, y / edge, z / edge]."""
        return self.channels_last(x).permute(0, 4, 1, 2, 3)

    def channels_last(self, x: Tensor) -> Tensor:
        """The same as [B, x / edge, y / edge, z / edge, D]."""
        batch, channels, *extent = x.shape
        edge = self.kernel_size[0]
        grid = [axis // edge for axis in extent]
        split = x.reshape(batch, channels, grid[0], edge, grid[1], edge, grid[2], edge)
        cubes = split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, channels * edge**3)
        return F.linear(cubes, self.weight.flatten(1), self.bias).reshape(batch, *grid, -1)


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
