"""Learning rates over the course of a training."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Trapezoid(LambdaLR):
    """A learning rate that rises over ``warmup`` steps, stays, and falls to 0 over the last ``cooldown`` steps.

    A run can be taken up with another number of steps at any time before it cools down.

    Args:
        optimizer: its learning rate is the one in between.
        steps: length of the training.
        warmup: steps.
        cooldown: steps.
    """

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int, cooldown: int) -> None:
        super().__init__(optimizer, lambda step: min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / cooldown)))
