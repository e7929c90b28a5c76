"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

MATRICES = "matrices"
"""Key of a parameter group: whether Muon takes it."""


def is_hidden_matrix(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether Muon suits a parameter: the weight of a linear layer, not a bias, an embedding or a convolution."""
    return isinstance(module, nn.Linear) and parameter.ndim == 2


class MuonAdamW(Optimizer):
    """Both of torch's optimisers side by side, over groups that say ``{"matrices": True}`` and groups that do not.

    Muon moves a matrix by the nearest orthogonal matrix of its momentum, so that every direction learns at the same
    pace; small transformers trained from scratch need far fewer steps with it. Source: Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon/).

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
        return ([group for group in self.param_groups if group[MATRICES]],
                [group for group in self.param_groups if not group[MATRICES]])  # fmt: skip

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
