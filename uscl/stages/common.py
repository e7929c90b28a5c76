"""What the stages do the same way: optimisers, announcing the trunk, fitting the data to the model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import AdamW

from uscl.backbone import RANDOM_WEIGHTS, Trunk
from uscl.errors import InputError

log = logging.getLogger(__name__)


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


def check_checkpoint(module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Compares a checkpoint to resume from with the module that is to go on.

    Raises:
        InputError: it was left by another stage, backbone or LoRA, or stands on other trunk weights: what is left in
            the end would be taken for an adapter of the configured ones.
    """
    trunk, began = getattr(module, "trunk", None), checkpoint.get(_TRUNK)
    if trunk is not None and began is not None and began["fingerprint"] != trunk.fingerprint:
        raise InputError(
            f"--ckpt_path: the training began on a trunk with {began['weights']}, model.weights now gives "
            f"{trunk.weights}. Resume with the configuration of the run that left it"
        )
    found, wanted = checkpoint["state_dict"], module.state_dict()
    for title, keys in (("lacks", [*wanted.keys() - found.keys()]), ("has besides", [*found.keys() - wanted.keys()])):
        if keys:
            raise InputError(
                f"--ckpt_path: belongs to another model; it {title} {len(keys)} tensors, first "
                f"{min(keys)}. Resume with the configuration of the run that left it"
            )
    for key, value in wanted.items():
        if found[key].shape != value.shape:
            raise InputError(
                f"--ckpt_path: belongs to another model; {key} is {list(found[key].shape)}, here "
                f"{list(value.shape)}. Resume with the configuration of the run that left it"
            )


def remember_trunk(checkpoint: dict[str, Any], trunk: Trunk | None) -> None:
    """Notes in a checkpoint on which trunk the training stands, for :func:`check_checkpoint`."""
    if trunk is not None:
        checkpoint[_TRUNK] = {"weights": trunk.weights, "fingerprint": trunk.fingerprint}


_TRUNK = "trunk"


def announce_trunk(trunk: Trunk) -> None:
    """Says on screen what the trunk's weights are, loudly if they are random."""
    if trunk.weights == RANDOM_WEIGHTS:
        log.warning(
            "The trunk has RANDOM WEIGHTS (model.weights is null): this run shows that everything works, "
            "not how well it segments"
        )
    else:
        log.info("Trunk: %s", trunk.weights)


def data_preprocessing(module: LightningModule, image_size: int) -> dict[str, Any] | None:
    """The preprocessing of the run's data module as plain values, checked against the model's input size.

    Raises:
        InputError: the patches have another size than the model takes.
    """
    datamodule = getattr(module.trainer, "datamodule", None)
    preprocessing = getattr(datamodule, "preprocessing", None)
    if preprocessing is None:
        return None
    if preprocessing.patch_size != image_size:
        raise InputError(
            f"data.preprocessing.patch_size is {preprocessing.patch_size}, but the backbone takes {image_size}; "
            f"set it to {image_size}"
        )
    return dataclasses.asdict(preprocessing)


def warn_of_other_preprocessing(adapter: dict[str, Any] | None, data: dict[str, Any] | None) -> None:
    """Says which settings differ between the data an adapter was trained on and the data at hand."""
    if adapter is None or data is None:
        return
    differing = {key: (adapter[key], data.get(key)) for key in adapter if _plain(adapter[key]) != _plain(data.get(key))}
    if differing:
        told = "; ".join(f"{key} was {was} and is {now}" for key, (was, now) in differing.items())
        log.warning("The adapter was trained with another preprocessing: %s. Expect worse masks", told)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
