"""Separable filters as matrices, and noise that is keyed by what it is for."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from uscl.seeds import derive_seed


@lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, unit: Literal["energy", "sum"], device: torch.device) -> Tensor:
    """Gaussian convolution along an axis of ``size`` points, as a symmetric band matrix with zeros beyond the ends.

    A product with a small dense matrix is faster than a convolution of one channel.

    Args:
        size: points.
        sigma: in points.
        unit: ``energy``: white noise of unit variance keeps it, as a point-spread function does. ``sum``: a constant
            stays one, also at the ends.
        device: where to.
    """
    index = torch.arange(size, dtype=torch.float32)
    matrix = torch.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)
    matrix[(index[:, None] - index[None]).abs() > 4 * sigma + 1] = 0
    middle = matrix[size // 2]
    matrix = matrix / middle.square().sum().sqrt() if unit == "energy" else matrix / matrix.sum(1, keepdim=True)
    return matrix.to(device)


@lru_cache(maxsize=64)
def linear_matrix(size: int, points: int, device: torch.device) -> Tensor:
    """Linear interpolation of ``points`` values, the first and last at the ends, to ``size``: [size, points]."""
    position = torch.linspace(0, points - 1, size)[:, None]
    return (1 - (position - torch.arange(points)[None]).abs()).clamp_min(0).to(device)


def interpolate(coarse: Tensor, size: int) -> Tensor:
    """Trilinear interpolation of [..., x, y, z], its first and last points at the ends: [..., size, size, size]."""
    for points in coarse.shape[-3:]:
        matrix = linear_matrix(size, points, coarse.device)
        coarse = torch.tensordot(coarse, matrix, dims=([coarse.ndim - 3], [1]))
    return coarse


def randn(seed: int, name: str, places: range, shape: torch.Size, device: torch.device) -> Tensor:
    """Normal noise [places, *shape]; each place has a stream of its own, in whatever company it is asked for."""
    generator = torch.Generator(device)
    planes = []
    for place in places:
        generator.manual_seed(derive_seed(name, seed, place))
        planes.append(torch.randn(shape, generator=generator, device=device))
    return torch.stack(planes)
