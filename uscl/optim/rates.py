"""Which parameters an optimiser gets, and at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW

from uscl.errors import InputError


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    interval: Literal["epoch", "step"] = "epoch",
    groups: Sequence[dict[str, Any]] | None = None,
) -> OptimizerLRScheduler:
    """Builds the optimiser over what is trainable; the scheduler, if any, steps once per ``interval``.

    Without an optimiser it is AdamW as SAM-Med3D trains its encoder: learning rate 8e-4, betas 0.9 and 0.999, weight
    decay 0.1.

    Args:
        module: what trains.
        optimizer: makes it from parameter groups.
        lr_scheduler: makes it from the optimiser.
        interval: between two steps of the scheduler.
        groups: parameter groups; ``factor`` multiplies the learning rate of a group. None is one group of everything.

    Raises:
        InputError: nothing is trainable.
    """
    given = [{"params": list(module.parameters())}] if groups is None else groups
    trainable = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in given]
    if not any(group["params"] for group in trainable):
        raise InputError("nothing is trainable; set model.tuning, e.g. --model.tuning LoRA")
    built = optimizer(trainable) if optimizer else AdamW(trainable, lr=8e-4, betas=(0.9, 0.999), weight_decay=0.1)
    for group in built.param_groups:
        group["lr"] *= group.get("factor", 1.0)
    if lr_scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": lr_scheduler(built), "interval": interval}}


def learning_rate_factor(module: nn.Module, parameter: nn.Parameter, reference: int = 384) -> float:
    """Scales a layer's learning rate by its number of inputs, once they are more than ``reference``.

    Adam moves every weight by about the learning rate, so the output of a layer moves in proportion to its inputs:
    the 4096 voxels of a token would swing wildly at a rate that suits the 192 channels of a block. Source: the rule
    for hidden layers under Adam in Yang et al. 2022 (https://arxiv.org/abs/2203.03466).
    """
    if parameter.ndim < 2 or not isinstance(module, nn.Linear | nn.Conv3d):
        return 1.0
    return min(1.0, reference / parameter[0].numel())
