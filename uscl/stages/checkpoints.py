"""What a checkpoint has to agree with before a training goes on from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from uscl.backbone import Trunk
from uscl.errors import InputError

_TRUNK = "trunk"


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


def check_readable(checkpoint: str) -> None:
    """Looks into a checkpoint file; what Lightning resolves itself (``last``, ``best``, addresses) is left to it.

    Raises:
        InputError: there is no such file, or it is none of Lightning's.
    """
    file = Path(checkpoint).expanduser()
    if not file.suffix or "://" in checkpoint:
        return
    if not file.is_file():
        raise InputError(f"--ckpt_path: {file}: no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"--ckpt_path: {file}: not a checkpoint that can be read safely") from error
    if not isinstance(content, dict) or "state_dict" not in content or "loops" not in content:
        raise InputError(
            f"--ckpt_path: {file}: not a checkpoint of a run; expected checkpoints/last.ckpt. Weights "
            "alone are given as --model.weights, adapters as --model.adapter"
        )
