"""Going on with larger patches: weights of a model that saw small ones, carried over voxel for voxel.

A patch of 64 voxels costs an eighth of one of 128 and teaches the same about tissue, edges and clicks, so that training
begins on small patches (progressive resizing). The middle of the larger patch takes the place of the smaller one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone.checkpoints import fetch, read_tensors
from uscl.errors import InputError

if TYPE_CHECKING:
    from uscl.backbone import SamMed3D

POSITIONS = "image_encoder.pos_embed"
FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def load_smaller(model: SamMed3D, weights: str | os.PathLike[str]) -> None:
    """Fills a model with weights of the same model for smaller patches.

    Positions of tokens and of clicks keep their place around the middle of the patch and their scale in voxels; what
    lies further out than the smaller patch, or than its windows, begins like the nearest position known.

    Args:
        model: takes the weights; only ``image_size`` and ``window_size`` may differ.
        weights: what stage 0 leaves (``weights.safetensors``), a file or ``hf://`` reference.

    Raises:
        InputError: the weights do not belong to such a model.
    """
    tensors = {name: value.float() for name, value in read_tensors(fetch(str(weights))).items()}
    wanted = model.state_dict()
    if tensors.keys() != wanted.keys():
        raise InputError(f"{weights}: not the weights of this model on smaller patches; "
                         f"{len(tensors.keys() ^ wanted.keys())} names differ")  # fmt: skip
    # Positions lie in [-1, 1] of whatever patch.
    ratio = wanted[POSITIONS].shape[1] / tensors[POSITIONS].shape[1]
    if ratio < 1:
        raise InputError(f"{weights}: of a model with larger patches; found {tensors[POSITIONS].shape[1]} tokens "
                         f"along an axis, expected {wanted[POSITIONS].shape[1]} or fewer")  # fmt: skip
    tensors[FREQUENCIES] = tensors[FREQUENCIES] * ratio
    for name, value in tensors.items():
        if name == POSITIONS:
            tensors[name] = _extend(value.permute(0, 4, 1, 2, 3), wanted[name].shape[1]).permute(0, 2, 3, 4, 1)
        elif "rel_pos_" in name:
            tensors[name] = _extend(value.T[None], len(wanted[name]))[0].T
        if tensors[name].shape != wanted[name].shape:
            raise InputError(f"{weights}: {name} is {list(tensors[name].shape)}, expected {list(wanted[name].shape)}; "
                             "only image_size and window_size may differ")  # fmt: skip
    with torch.no_grad():
        model.load_state_dict(tensors)


def _extend(values: Tensor, size: int) -> Tensor:
    """Repeats the outermost values [B, C, n, ...] at both ends of every axis until it has ``size``."""
    more = size - values.shape[-1]
    if more < 0 or more % 2:
        return values  # refused by the caller
    return F.pad(values, (more // 2,) * 2 * (values.ndim - 2), mode="replicate")
