"""Images of label worlds with contrasts at random, CT and MR among them.

A model that has seen every tissue in every contrast has to use shapes and edges, which is how SynthSeg (Billot et al.
2023, https://doi.org/10.1016/j.media.2023.102789) reached real scans from label maps alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uscl.phantom.ct import PHASES, hounsfield_units
from uscl.phantom.filters import gaussian_matrix, interpolate
from uscl.phantom.mr import CONTRASTS, tissue_signal
from uscl.phantom.structures import KIDNEYS, STRUCTURES, Structure
from uscl.phantom.worlds import World

_S = Structure
_ALIKE: tuple[tuple[Structure, ...], ...] = (
    KIDNEYS,
    (_S.LIVER, _S.LIVER_VESSEL),
    (_S.LUNG_RIGHT, _S.LUNG_LEFT),
    (_S.VERTEBRA, _S.RIB),
    (_S.SKIN, _S.MUSCLE),
    (_S.FAT, _S.VISCERAL_FAT),
    (_S.STOMACH, _S.DUODENUM, _S.BOWEL),
    (_S.AORTA, _S.VENA_CAVA, _S.PORTAL_VEIN),
    (_S.ADRENAL_RIGHT, _S.ADRENAL_LEFT),
    (_S.STOMACH_GAS, _S.BOWEL_GAS),
    (_S.EFFUSION, _S.SEPTUM),
    (_S.GREY_MATTER, _S.DEEP_GREY_MATTER),
    (_S.CSF, _S.VENTRICLE),
    (_S.OEDEMA, _S.TUMOUR_CORE, _S.TUMOUR_RIM),
)
"""Parts of one thing: in random contrasts they mostly look much the same."""


def render(world: World, random: np.random.Generator) -> Tensor:
    """An image of a world, on the world's device. What is drawn depends on the kind of device too.

    Args:
        world: what is where.
        random: source of everything drawn.

    Returns:
        Intensities, float32 [S, S, S]: Hounsfield units, or 0 to about 1000 as MR has them. Where a scan would have
        ended they are 0, as in a padded patch.
    """
    device = world.structure.device
    fields = torch.Generator(device).manual_seed(int(random.integers(2**63)))
    kind = random.choice(["ct", "mr", "random"], p=[0.4, 0.3, 0.3]) if world.anatomical else "random"
    if kind == "ct":
        values = hounsfield_units(PHASES[int(random.integers(3))], random, spread=12)
        spread = np.full(STRUCTURES, random.uniform(0, 25), np.float32)
        noise = random.uniform(3, 40)
    elif kind == "mr":
        signal = tissue_signal(CONTRASTS[int(random.integers(4))], random)
        values = (1000 * signal / signal.max()).astype(np.float32)
        spread = random.uniform(0, 60) * random.random(STRUCTURES, dtype=np.float32)
        noise = random.uniform(0, 60)
    else:
        values, noise = _random_values(random), random.uniform(0, 70)
        spread = random.uniform(0, 120) * random.random(STRUCTURES, dtype=np.float32)
    size = world.structure.shape[0]
    ids = world.structure.int()
    image = torch.from_numpy(values).to(device)[ids]
    texture = _smooth_noise(size, fields, int(random.integers(size // 6, size // 2)))
    image += torch.from_numpy(spread).to(device)[ids] * texture
    if kind == "random" and random.random() < 0.5:
        image += random.uniform(0, 80) * _smooth_noise(size, fields, int(random.integers(4, 12)))
    image = _scanner_resolution(image, random)
    if kind != "ct" and random.random() < 0.8:
        image *= torch.exp(random.uniform(0, 0.35) * _smooth_noise(size, fields, int(random.integers(2, 5))))
    image += noise * torch.randn(image.shape, generator=fields, device=device)
    if kind == "mr":
        image.abs_()
    elif kind == "random":
        image = image.clamp_min_(0).div_(1000).pow_(float(np.exp(random.normal(0, 0.25)))).mul_(1000)
    elif random.random() < 0.8:
        image.clamp_(-1000, 1000)
    if kind != "ct" and random.random() < 0.4:  # published brain scans are black around the brain
        image[ids == 0] = 0
    return _end_of_scan(image, random)


def _random_values(random: np.random.Generator) -> NDArray[np.float32]:
    """A mean for every id; parts of one thing stay close in most draws; what is outside is mostly black."""
    values = random.uniform(20, 1000, STRUCTURES)
    for parts in _ALIKE:
        if random.random() < 0.8:
            values[list(parts)] = values[parts[0]] + random.normal(0, 60, len(parts))
    values[0] = 0 if random.random() < 0.8 else values[0]
    return np.clip(values, 0, 1100).astype(np.float32)


def _smooth_noise(size: int, fields: torch.Generator, points: int) -> Tensor:
    """Noise of about unit variance [size, size, size], interpolated from ``points`` values along each axis."""
    return interpolate(torch.randn((points,) * 3, generator=fields, device=fields.device), size).mul_(1.5)


def _scanner_resolution(image: Tensor, random: np.random.Generator) -> Tensor:
    """Blurs along each axis; one scan in three has thick slices along one of them."""
    size = image.shape[0]
    widths = random.uniform(0.3, 1.1, 3)
    thick = int(random.integers(3)) if random.random() < 0.35 else -1
    for axis in range(3):
        width = float(random.uniform(1.2, 2.2)) if axis == thick else float(widths[axis])
        blur = gaussian_matrix(size, width, "sum", image.device)
        image = torch.tensordot(blur, image, dims=([1], [0])).permute(1, 2, 0)
    return image.contiguous()


def _end_of_scan(image: Tensor, random: np.random.Generator) -> Tensor:
    """Zeros beyond the first and last slice along one axis, as a patch larger than its volume has; one in three."""
    if random.random() < 0.35:
        axis, size = int(random.integers(3)), image.shape[0]
        length = int(random.integers(size // 4, size))
        begin = int(random.integers(0, size - length + 1))
        image.narrow(axis, 0, begin).zero_()
        image.narrow(axis, begin + length, size - begin - length).zero_()
    return image
