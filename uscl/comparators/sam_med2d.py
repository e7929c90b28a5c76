"""SAM-Med2D: SAM ViT-B at 256 px with an adapter beside the MLP of every encoder block.

Source: https://github.com/OpenGVLab/SAM-Med2D.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from uscl.comparators.sam import PromptedSam, SamSize
from uscl.seeds import fixed_initial_values

SIZE = SamSize(image_size=256)


class Adapter(nn.Module):
    """Weighs channels, then adds a detour through half the resolution; not a no-op at its initial values.

    Args:
        dim: channels.
        ratio: hidden share of the channel weighing.
    """

    def __init__(self, dim: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.norm = nn.LayerNorm(dim)
        self.channel = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [B, H, W, C], H and W even, to the same shape."""
        maps = tokens.permute(0, 3, 1, 2)
        weight = self.channel(maps.mean((2, 3)))[:, :, None, None]
        return cast("Tensor", self.norm((maps + self.spatial(maps * weight)).permute(0, 2, 3, 1)))


class AdaptedMlp(nn.Module):
    """The MLP of a block with the adapter beside it; both take the normalised tokens."""

    def __init__(self, mlp: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.mlp = mlp
        self.adapter = adapter

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [B, H, W, C] to the same shape."""
        return cast("Tensor", self.mlp(tokens) + self.adapter(tokens))


class SamMed2D(PromptedSam):
    """SAM with SAM-Med2D's adapters.

    Args:
        size: the published one unless a test wants a smaller.
    """

    def __init__(self, size: SamSize = SIZE) -> None:
        super().__init__(size)
        with fixed_initial_values():
            for layer in self.sam.vision_encoder.layers:
                layer.mlp = AdaptedMlp(cast("nn.Module", layer.mlp), Adapter(size.dim))

    def names(self, key: str) -> tuple[str, ...]:
        """This module's names for a published key."""
        if key.startswith("image_encoder.") and ".mlp." in key:
            key = key.replace(".mlp.", ".mlp.mlp.")
        return super().names(key.replace(".Adapter.", ".mlp.adapter."))
