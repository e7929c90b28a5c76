"""AdaptFormer: a bottleneck parallel to every MLP.

::

    out = x + mlp(norm x) + scale * up(dropout(relu(down x)))     down: C -> width, up: width -> C, zero at the start

The input of the bottleneck is what enters the norm before the MLP, not what leaves it: the figure of the paper shows
the norm, the published code has none, and its authors say that the code is right (issues 9 and 10 of the repository).
The decoder's blocks normalise after their MLP; there the bottleneck takes what the MLP takes.

Source: Chen et al. 2022 (https://arxiv.org/abs/2205.13535), https://github.com/ShoufaChen/AdaptFormer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from uscl.backbone import SamMed3D
from uscl.backbone.image_encoder import Block
from uscl.backbone.mask_decoder import TwoWayBlock
from uscl.errors import InputError
from uscl.tuning.method import Modules, Part, TuningMethod


class Bottleneck(nn.Module):
    """The layer itself; returns zeros until it is trained.

    Args:
        dim: C.
        width: of the bottleneck.
        scale: of the output.
        dropout: share of the hidden units that is dropped in training.
        layer_norm: normalise the input.
    """

    def __init__(self, dim: int, width: int, scale: float, dropout: float, layer_norm: bool) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.norm = nn.LayerNorm(dim) if layer_norm else None
        self.down_proj, self.up_proj = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for zero in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., C] to [..., C]."""
        hidden = F.relu(self.down_proj(x if self.norm is None else self.norm(x)))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return cast("Tensor", self.up_proj(hidden)) * self.scale


@dataclass(frozen=True)
class AdaptFormer(TuningMethod):
    """Inserts bottlenecks and trains them alone.

    Attributes:
        width: of the bottleneck; 64 is the paper's. With ``vit_b_ori`` that is 99,136 weights per encoder block.
        scale: of the output.
        dropout: share of the hidden units that is dropped in training.
        layer_norm: normalise the input, as the paper's figure has it.
        modules: tune the image ``encoder``, the mask ``decoder``, or ``both``.
    """

    title: ClassVar[str] = "SAM-Med3D + AdaptFormer"
    width: int = 64
    scale: float = 0.1
    dropout: float = 0.1
    layer_norm: bool = False
    modules: Modules = "both"

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"tuning: width must be at least 1 and dropout lie in [0, 1), found {self.width} and {self.dropout}"
            )

    def insert(self, model: SamMed3D, part: Part) -> None:
        """Puts a bottleneck beside every MLP of a part."""
        for block, mlp_input in _blocks(model, part):
            added = Bottleneck(mlp_input.in_features, self.width, self.scale, self.dropout, self.layer_norm)
            # In the mode of the block, or its dropout would act in a model that predicts.
            block.adapter = added.to(mlp_input.weight).train(block.training)

    def owns(self, name: str) -> bool:
        """The bottlenecks alone."""
        return ".adapter." in name


def _blocks(model: SamMed3D, part: Part) -> Iterator[tuple[Block | TwoWayBlock, nn.Linear]]:
    """Every transformer block of a part, with the first layer of its MLP."""
    root = model.image_encoder if part == "encoder" else model.mask_decoder
    for module in root.modules():
        if isinstance(module, Block | TwoWayBlock):
            yield module, module.mlp.lin1
