"""A tuning method of one's own: DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353) of the attention layers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from uscl.tuning import TuningMethod


class DoRALinear(nn.Linear):
    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.dora_A = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.dora_B = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.dora_magnitude = nn.Parameter(layer.weight.detach().norm(dim=1))

    def forward(self, x):
        weight = self.weight + self.dora_B @ self.dora_A
        return F.linear(x, (self.dora_magnitude / weight.norm(dim=1))[:, None] * weight, self.bias)


@dataclass(frozen=True)
class DoRA(TuningMethod):
    title: ClassVar[str] = "SAM-Med3D + DoRA"
    rank: int = 8
    modules: str = "both"

    def insert(self, model, part):
        for module in list((model.image_encoder if part == "encoder" else model.mask_decoder).modules()):
            for name in ("qkv", "q_proj", "v_proj"):
                if isinstance(layer := getattr(module, name, None), nn.Linear):
                    setattr(module, name, DoRALinear(layer, self.rank).to(layer.weight))

    def owns(self, name):
        return ".dora_" in name
