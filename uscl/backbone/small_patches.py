"""Training on patches smaller than the backbone takes: the same weights, on what lies around the middle of its patch.

A patch of 64 voxels costs an eighth of one of 128 and teaches as much about tissue, edges and clicks, so that a step
sees eight places where it would see one. What it cannot teach is how to look further than it reaches.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from uscl.backbone.attention import WindowAttention
from uscl.backbone.sam_med3d import SamMed3D
from uscl.errors import InputError

M = TypeVar("M", bound=nn.Module)


def on_small_patches(model: SamMed3D, size: int, setting: str = "data.sampling.size") -> SamMed3D:
    """The model for smaller patches, which are taken to lie in the middle of those that it is for.

    Everything learned is the model's own, whatever tuning method has put into it: gradients reach it, codes of
    positions included. Cheap; made anew for every step, because it holds views of the positions. Answers on the middle
    of a patch differ from the model's where its windows are cut elsewhere and where it looks further than the smaller
    patch.

    Args:
        model: for patches of ``model.config.image_size`` voxels.
        size: edge of the smaller patches, voxels.
        setting: where it was set, for the error.

    Raises:
        InputError: the patches are larger than the model's, no whole tokens, or cannot lie in the middle.
    """
    token, whole = model.config.patch_size, model.config.image_size
    if not 0 < size <= whole or (whole - size) % (2 * token):
        raise InputError(
            f"{setting} is {size}; the backbone takes {whole}, from which an even number of tokens "
            f"of {token} voxels can be taken off"
        )
    config = replace(model.config, image_size=size)
    small = _copied(model)
    small.config = config
    encoder, prompts = small.image_encoder, small.prompt_encoder
    encoder.image_size = prompts.image_size = size
    prompts.grid_size = config.grid_size
    # Positions lie in [-1, 1] of whatever patch.
    prompts.pe_layer.positional_encoding_gaussian_matrix = prompts.pe_layer.positional_encoding_gaussian_matrix * (
        size / model.config.image_size
    )
    _show(encoder, "pos_embed", (1, 2, 3), config.grid_size)
    for module in encoder.modules():
        if isinstance(module, WindowAttention) and module.window_size == 0:
            for name in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
                _show(module, name, (0,), 2 * config.grid_size - 1)
    return small


def _copied(module: M) -> M:
    """A module of its own over the same tensors."""
    copied = copy(module)
    vars(copied).update(_parameters=dict(module._parameters), _buffers=dict(module._buffers))
    children = {name: None if child is None else _copied(child) for name, child in module._modules.items()}
    vars(copied)["_modules"] = children
    return copied


def _show(module: nn.Module, name: str, axes: tuple[int, ...], count: int) -> None:
    """Puts the middle ``count`` values along ``axes`` of a parameter in its place."""
    values: Tensor = getattr(module, name)
    for axis in axes:
        values = values.narrow(axis, (values.shape[axis] - count) // 2, count)
    delattr(module, name)
    setattr(module, name, values)
