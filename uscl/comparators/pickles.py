"""Reading the tensors of a pickle that holds other objects, too, without running anything of it.

SAM-Med2D's published file holds a whole optimiser, which torch's own safe reading refuses.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from uscl.errors import InputError

# What tensors are made of; torch resolves storages itself before it asks.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Inert(dict[Any, Any]):
    """Stands for every object that is not a tensor: takes whatever the pickle does to it and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Takes part in pickled lists."""

    def extend(self, items: Any) -> None:
        """Takes part in pickled lists."""


class _Unpickler(pickle._Unpickler):  # the one in Python: torch derives from it
    def find_class(self, module: str, name: str, /) -> Any:
        return _ALLOWED.get((module, name), _Inert)


def read_pickled_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the state dict of a checkpoint whatever else was pickled beside it; nothing of the rest is created or run.

    Args:
        file: written by ``torch.save``, a state dict itself or a mapping with one under ``model``, ``state_dict`` or
            ``model_state_dict``.

    Raises:
        InputError: the file cannot be read, or holds no state dict.
    """

    def load(stream: Any, **options: Any) -> Any:
        return _Unpickler(stream, **options).load()

    reader = SimpleNamespace(Unpickler=_Unpickler, load=load, __name__="restricted")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:  # a broken pickle can make its reader raise anything
        raise InputError(
            f"{file}: not a checkpoint that can be read ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if isinstance(content, Mapping):
        for key in ("model", "state_dict", "model_state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{file}: holds no state dict; expected a checkpoint with tensors under 'model'")
    return tensors
