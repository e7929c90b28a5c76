"""Whether the data of a run are prepared as its model needs them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from lightning.pytorch import LightningModule

from uscl.errors import InputError

log = logging.getLogger(__name__)


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
        changes = "; ".join(f"{key} was {was} and is {now}" for key, (was, now) in differing.items())
        log.warning("The adapter was trained with another preprocessing: %s. Expect worse masks", changes)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
