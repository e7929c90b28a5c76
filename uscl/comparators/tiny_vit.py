"""TinyViT-5M as MobileSAM and TinySAM use it: an image of 1024 px in, an embedding of 256 x 64^2 out.

Module and parameter names equal the published checkpoints' (``image_encoder.*``; their unused classification head is
left out). Source of the sizes: https://github.com/ChaoningZhang/MobileSAM and Wu et al. 2022
(https://arxiv.org/abs/2207.10666).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, D, H / stride, W / stride]."""
        return cast("Tensor", self.bn(self.c(x)))


class PatchEmbed(nn.Module):
    """Two convolutions with stride 2: [B, 3, S, S] -> [B, C, S / 4, S / 4]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, dim // 2, 3, 2), nn.GELU(), ConvNorm(dim // 2, dim, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the feature map."""
        return cast("Tensor", self.seq(x))


class MBConv(nn.Module):
    """Inverted bottleneck with a depthwise convolution; the activation follows the residual sum."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = dim * expansion
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to the same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Widens the features and, with stride 2, halves the map."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, D, H / stride, W / stride]."""
        return cast("Tensor", self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Attention(nn.Module):
    """Attention within a window, with a learnt bias for every pair of row and column distances; the norm is inside."""

    offsets: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Distances are numbered in the order in which a row-major walk over all pairs meets them first.
        numbers: dict[tuple[int, int], int] = {}
        cells = list(product(range(window), range(window)))
        index = [numbers.setdefault((abs(a - c), abs(b - d)), len(numbers)) for a, b in cells for c, d in cells]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(numbers)))
        self.register_buffer("offsets", torch.tensor(index).view(len(cells), len(cells)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [B, window^2, C] to the same shape."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(batch, count, self.heads, 3, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.attention_biases[:, self.offsets])
        return cast("Tensor", self.proj(out.transpose(1, 2).reshape(batch, count, dim)))


class Mlp(nn.Module):
    """Norm, then two linear layers with a GELU between them."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * expansion)
        self.fc2 = nn.Linear(dim * expansion, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., C] to [..., C]."""
        return cast("Tensor", self.fc2(F.gelu(self.fc1(self.norm(x)))))


class Block(nn.Module):
    """Window attention, a depthwise convolution and an MLP.

    The map is padded with zeros before the norm of the attention, so that padding is attended to, as in the original.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(dim, heads, window)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to the same shape."""
        x = x + self._attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x)
        return x + cast("Tensor", self.mlp(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        size = self.window
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = x.view(batch, rows, size, columns, size, dim).transpose(2, 3).reshape(-1, size * size, dim)
        windows = self.attn(windows).view(batch, rows, columns, size, size, dim)
        whole: Tensor = windows.transpose(2, 3).reshape(batch, rows * size, columns * size, dim)
        return whole[:, :height, :width]


class Stage(nn.Module):
    """Blocks, then the merging that leads to the next stage, if there is one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps a feature map to that of the next stage."""
        x = cast("Tensor", self.blocks(x))
        return x if self.downsample is None else cast("Tensor", self.downsample(x))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises every position."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """The image encoder of MobileSAM and TinySAM.

    Args:
        dims: width of each stage.
        depths: blocks of each stage; the first has convolutions only.
        heads: attention heads of each stage; the first has none.
        windows: edge of the attention windows of each stage.
        out_dim: width of the embedding.
    """

    def __init__(
        self,
        dims: tuple[int, ...] = (64, 128, 160, 320),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (2, 4, 5, 10),
        windows: tuple[int, ...] = (7, 7, 14, 7),
        out_dim: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dims[0])
        stages = []
        for number, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = [MBConv(dim) for _ in range(depth)]
            if number:
                blocks = [Block(dim, heads[number], windows[number]) for _ in range(depth)]
            last = number == len(dims) - 1
            # The merging into the last stage keeps the map's size, or its decoder's grid would not be met.
            stride = 1 if number == len(dims) - 2 else 2
            stages.append(Stage(blocks, None if last else PatchMerging(dim, dims[number + 1], stride)))
        self.layers = nn.Sequential(*stages)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out_dim, 1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, S, S] to [B, 256, S / 16, S / 16]."""
        return cast("Tensor", self.neck(self.layers(self.patch_embed(images))))
