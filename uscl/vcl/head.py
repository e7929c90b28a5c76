"""VCL head: from an image embedding to the feature space in which bases and crops are compared."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call


class VCLHead(nn.Module):
    """Global average pooling and a projector of three linear layers with norm and ReLU between them.

    Source: "linear layers" in section 2.2.2; layers and norms as VoCo's projector, whose batch norm has no weights
    and uses the statistics of the batch at all times. For batches of few sub-volumes ``layer`` norm is the steadier
    choice.

    Args:
        dim: channels E of the image embedding.
        hidden_dim: width of the hidden layers.
        out_dim: width P of the feature.
        norm: ``batch`` or ``layer``.
    """

    def __init__(
        self, dim: int, hidden_dim: int = 2048, out_dim: int = 2048, norm: Literal["batch", "layer"] = "batch"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (dim, hidden_dim):
            layers += [nn.Linear(width, hidden_dim), _norm(norm, hidden_dim), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """Maps embeddings [N, E, g, g, g] to features [N, P]."""
        return cast("Tensor", self.projector(embedding.mean(dim=(2, 3, 4))))


class VCLStudent(nn.Module):
    """Encoder and head: sub-volumes [N, 1, S, S, S] to features [N, P]."""

    def __init__(self, encoder: nn.Module, head: VCLHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, volumes: Tensor) -> Tensor:
        """Encodes and projects."""
        return cast("Tensor", self.head(self.encoder(volumes)))


class EmaTeacher(nn.Module):
    """The student with exponentially averaged copies of exactly those tensors that are trained.

    The frozen trunk is the student's own, never copied. Source: equation 2 of the paper. Averaging A and B of LoRA
    one by one is not averaging their product; at a momentum of 0.9 the difference is small.

    Args:
        student: what to follow; the teacher begins as its copy.
        momentum: m.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                self.register_buffer(_buffer_name(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Teacher <- m teacher + (1 - m) student."""
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                self.get_buffer(_buffer_name(name)).lerp_(parameter, 1 - self.momentum)

    @torch.no_grad()
    def forward(self, student: nn.Module, volumes: Tensor) -> Tensor:
        """Runs the student with the averaged tensors in place of its own; no gradient."""
        own = {name: self.get_buffer(_buffer_name(name)) for name in self.names}
        return cast("Tensor", functional_call(student, own, (volumes,)))


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width)
    return nn.BatchNorm1d(width, affine=False, track_running_stats=False)


def _buffer_name(name: str) -> str:
    return name.replace(".", "__")
