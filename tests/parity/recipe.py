"""Weights and image of the full-size fixture by recipe, from numpy's frozen legacy generator.

Any implementation with the right names and shapes can make them, so that full-size parity needs only the outputs.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

PARITY = Path(__file__).parent


def recipe_weights(module: nn.Module) -> None:
    """Fills every tensor of a module from a stream seeded by the CRC of its name."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(_values(name, tuple(tensor.shape))))


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    values = stream.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
    embeddings = ("positional_encoding_gaussian_matrix", "iou_token.weight", "mask_tokens.weight", "embed.weight")
    if name.endswith(embeddings) or "point_embeddings" in name:
        return values
    if "rel_pos" in name or "pos_embed" in name:
        return np.float32(0.3) * values
    if name.endswith(".bias"):
        return np.float32(0.1) * values
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * values
    fan_in = int(np.prod(shape)) // shape[0]
    gain = 8.0 if ".layers.2.weight" in name and "hypernetworks" in name else 0.577
    return (gain * values / np.sqrt(np.float32(fan_in))).astype(np.float32)


def recipe_image(size: int = 128) -> torch.Tensor:
    """Smooth blobs with noise, z-normalised: float32 [1, 1, size, size, size]."""
    stream = np.random.RandomState(0)
    axis = np.arange(size, dtype=np.float64) / size
    field = np.zeros((size,) * 3)
    for _ in range(6):
        centre, width, height = stream.rand(3), 0.05 + 0.2 * stream.rand(3), stream.randn()
        x, y, z = (np.exp(-(((axis - centre[i]) / width[i]) ** 2)) for i in range(3))
        field += height * x[:, None, None] * y[None, :, None] * z[None, None, :]
    field += 0.2 * stream.standard_normal(field.shape)
    return torch.from_numpy(((field - field.mean()) / field.std()).astype(np.float32))[None, None]
