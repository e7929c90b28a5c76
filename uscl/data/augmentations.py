"""Changes to training patches that a scanner, an operator or a patient could have made.

Every entry of :class:`Augmentation` is a strength; 0 leaves the patch alone, bit for bit. Intensities never touch the
target; movements move image and target alike. Intensities are changed before normalisation, in units of the patch's own
*span*: the 99th percentile of its voxels above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from uscl.data.volume import Array
from uscl.errors import InputError

DEPTH, FRAMES = 1, 2
"""Axes of a sweep: x lateral, y depth, z frame (data/README.md)."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly training patches are changed; each entry is applied on its own with ``probability``.

    The first group moves, the second is for ultrasound, the third for CT and MR; nothing keeps them apart.

    Attributes:
        probability: of each entry.
        rotation: turns the patch about each axis by up to so many degrees.
        scaling: stretches it by up to this share.
        twist: turns frames about the axis of the sweep by an angle that grows along it, up to so many degrees at
            either end: a probe that rolls.
        gain: raises or lowers echoes by up to this share of the span. Grey levels are decibels, so a gain adds; what is
            black stays black.
        attenuation: the same, growing along the depth: another compensation of attenuation.
        speckle: multiplies the envelope by Rayleigh-like noise with this standard deviation, grey levels being
            decibels over a range of 60 dB.
        shadow: darkens a wedge of scan lines below a random depth by up to this share of the grey value.
        sector: blackens up to this share of the lateral width at the sides, as a narrower sector.
        contrast: raises normalised intensities to a power of up to exp(+- contrast).
        noise: adds Gaussian noise with a standard deviation of up to this share of the span.
        blur: smooths by up to this standard deviation, voxels.
        bias_field: coefficients of a smooth multiplicative field, up to this value.
    """

    probability: float = 0.5
    rotation: float = 0.0
    scaling: float = 0.0
    twist: float = 0.0
    gain: float = 0.0
    attenuation: float = 0.0
    speckle: float = 0.0
    shadow: float = 0.0
    sector: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    bias_field: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            limit = {"probability": 1.0, "shadow": 1.0, "sector": 0.9, "scaling": 0.9}.get(entry.name, np.inf)
            if not 0 <= value <= limit:
                raise InputError(f"augmentation.{entry.name} is {value}, expected a number from 0 to {limit:g}")


def augment(
    image: Array, target: Array | None, settings: Augmentation, random: np.random.Generator
) -> tuple[Array, Array | None]:
    """Changes a patch.

    Args:
        image: intensities before normalisation [S, S, S], along the axes of the file: lateral, depth and frame of a
            sweep.
        target: what belongs to it [S, S, S], a mask or a label map, or None.
        settings: how strongly.
        random: source of everything drawn.

    Returns:
        Image (float32) and target along the same axes, the inputs themselves where nothing was drawn.
    """
    drawn = {
        entry.name
        for entry in fields(settings)
        if entry.name != "probability" and random.random() < settings.probability and getattr(settings, entry.name) > 0
    }
    if drawn & {"rotation", "scaling", "twist"}:
        grid = _movement(image.shape[0], settings, drawn, random)
        image = _sampled(image, grid, "bilinear").astype(np.float32)
        target = target if target is None else _sampled(target, grid, "nearest").astype(target.dtype)
    for name, change in _INTENSITIES.items():
        if name in drawn and (image > 0).any():
            span = float(np.percentile(image[image > 0], 99))
            image = change(image.astype(np.float32), span, getattr(settings, name), random)
    return image, target


def _movement(size: int, settings: Augmentation, drawn: set[str], random: np.random.Generator) -> Tensor:
    """Where every voxel takes its value from, in [-1, 1]^3 along x, y, z: [S, S, S, 3]."""
    line = torch.linspace(-1, 1, size) * (1 - 1 / size)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    if "scaling" in drawn:
        grid = grid * float(1 + random.uniform(-1, 1) * settings.scaling)
    if "rotation" in drawn:
        for axis in range(3):
            grid = _turned(grid, axis, torch.tensor(np.radians(random.uniform(-1, 1) * settings.rotation)))
    if "twist" in drawn:
        most = np.radians(random.uniform(-1, 1) * settings.twist)
        grid = _turned(grid, FRAMES, float(most) * line)
    return grid


def _turned(grid: Tensor, axis: int, angle: Tensor) -> Tensor:
    """Points turned about an axis through the middle; the angle may differ along the last axis of the grid."""
    i, j = [a for a in range(3) if a != axis]
    cos, sin = angle.cos().float(), angle.sin().float()
    points = list(grid.unbind(-1))
    points[i], points[j] = cos * points[i] - sin * points[j], sin * points[i] + cos * points[j]
    return torch.stack(points, dim=-1)


def _sampled(array: Array, grid: Tensor, mode: str) -> Array:
    """Values at points of the unit cube; 0 outside."""
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    # grid_sample wants the last axis first.
    sampled: Array = F.grid_sample(values, grid.flip(-1)[None], mode=mode, align_corners=False)[0, 0].numpy()
    return sampled


def _add_decibels(image: Array, added: Array | float) -> Array:
    """Adds to grey levels that stand for decibels: black stays black and nothing falls below it."""
    return np.where(image > 0, np.maximum(image + added, 0), image).astype(np.float32)


def _gain(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    return _add_decibels(image, random.uniform(-1, 1) * strength * span)


def _attenuation(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    ramp = np.linspace(-1, 1, image.shape[DEPTH], dtype=np.float32)[None, :, None]
    return _add_decibels(image, random.uniform(-1, 1) * strength * span * ramp)


def _speckle(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    envelope = np.abs(1 + strength * random.standard_normal(image.shape, dtype=np.float32))
    return _add_decibels(image, span / 60 * 20 * np.log10(np.maximum(envelope, 1e-3)))


def _shadow(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    size, width = image.shape[0], random.uniform(0.05, 0.2)
    lateral = np.linspace(0, 1, size)[:, None, None] - random.random()
    depth = np.linspace(0, 1, image.shape[DEPTH])[None, :, None]
    frames = np.linspace(0, 1, image.shape[FRAMES])[None, None, :] - random.random()
    beam = np.exp(-((lateral / width) ** 2) - (frames / random.uniform(0.1, 0.5)) ** 2)
    below = 1 / (1 + np.exp(-(depth - random.uniform(0, 0.5)) / 0.02))
    darkened: Array = (image * (1 - random.random() * strength * beam * below)).astype(np.float32)
    darkened[image <= 0] = image[image <= 0]
    return darkened


def _sector(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    cut = random.random() * strength / 2
    lateral = np.linspace(0, 1, image.shape[0])[:, None, None]
    depth = np.linspace(0, 1, image.shape[DEPTH])[None, :, None]
    edge = cut * (0.5 + 0.5 * random.random() * depth)
    outside: NDArray[np.bool_] = (lateral < edge) | (lateral > 1 - edge)
    narrowed = image.copy()
    narrowed[outside & (image > 0)] = 0
    return narrowed


def _contrast(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    from monai.transforms.intensity.array import AdjustContrast

    return _with_monai(AdjustContrast(float(np.exp(random.uniform(-1, 1) * strength))), image)


def _noise(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    width = np.float32(random.random() * strength * span)
    noisy: Array = image + width * random.standard_normal(image.shape, dtype=np.float32)
    return noisy


def _blur(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    from monai.transforms.intensity.array import GaussianSmooth

    return _with_monai(GaussianSmooth(random.random() * strength), image)


def _bias_field(image: Array, span: float, strength: float, random: np.random.Generator) -> Array:
    from monai.transforms.intensity.array import RandBiasField

    field = RandBiasField(prob=1.0, coeff_range=(0.0, strength))
    field.set_random_state(int(random.integers(2**32)))
    return _with_monai(field, image)


def _with_monai(transform: Callable[[Array], Any], image: Array) -> Array:
    """Applies a transform of MONAI, which wants a channel axis and returns a tensor."""
    changed: Array = np.asarray(transform(image[None]), np.float32)[0]
    return changed


_INTENSITIES = {
    "gain": _gain,
    "attenuation": _attenuation,
    "speckle": _speckle,
    "shadow": _shadow,
    "sector": _sector,
    "contrast": _contrast,
    "blur": _blur,
    "bias_field": _bias_field,
    "noise": _noise,
}
