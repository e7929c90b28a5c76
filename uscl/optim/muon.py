"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

MATRICES = "matrices"
"""Key of a parameter group: whether Muon takes it."""


def is_hidden_matrix(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether Muon suits a parameter: the weight of a linear layer, not a bias, an embedding or a convolution."""
    return isinstance(module, nn.Linear) and parameter.ndim == 2


class Muon(Optimizer):
    """Moves every matrix by the nearest orthogonal matrix of its momentum.

    As ``torch.optim.Muon``, which takes one matrix after the other in bfloat16. Here those of one shape go together, in
    float32: twenty times as fast for the many small ones of these models on a CPU (``benchmarks/muon.py``). Source:
    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/).

    Args:
        params: parameter groups, of matrices alone.
        lr: learning rate; taller matrices take more, by the root of height over width.
        weight_decay: decoupled.
        momentum: of Nesterov's kind.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                for parameter in parameters:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                gradients = [cast("Tensor", parameter.grad) for parameter in parameters]
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                ahead = torch.stack(gradients).lerp(torch.stack(buffers), group["momentum"])
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(_orthogonal(ahead).unbind()), alpha=-rate)
        return loss


def _orthogonal(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices [N, a, b]: singular values to about 1 by five Newton-Schulz steps, as published."""
    tall = matrices.shape[1] > matrices.shape[2]
    result: Tensor = matrices.mT if tall else matrices
    result = result / result.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(5):
        gram = result @ result.mT
        result = 3.4445 * result + (2.0315 * gram @ gram - 4.7750 * gram) @ result
    return result.mT if tall else result


class MuonAdamW(Optimizer):
    """Muon and AdamW side by side, over groups that say ``{"matrices": True}`` and groups that do not.

    With Muon every direction of a matrix learns at the same pace; small transformers trained from scratch need far
    fewer steps with it.

    Args:
        params: parameter groups.
        lr: of AdamW.
        matrix_lr: of Muon.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of both, decoupled.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        matrix_lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.02,
    ) -> None:
        groups = [{MATRICES: False, **group} for group in params]
        for group in groups:
            group.setdefault("lr", matrix_lr if group[MATRICES] else lr)
        super().__init__(groups, {"lr": lr})
        matrices, others = self._split()
        # Both get the very groups of this optimiser, so that a scheduler reaches them.
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, matrix_lr, weight_decay, momentum))
        if others:
            self.parts.append(AdamW(others, lr, betas, weight_decay=weight_decay))
        self._share()

    def _split(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return (
            [group for group in self.param_groups if group[MATRICES]],
            [group for group in self.param_groups if not group[MATRICES]],
        )

    def _share(self) -> None:
        """Makes groups and state of the parts those of this optimiser, which is what checkpoints hold."""
        for part, groups in zip(self.parts, [groups for groups in self._split() if groups], strict=True):
            part.param_groups, part.state = groups, self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a saved state."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
