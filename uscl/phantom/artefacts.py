"""What a machine shows that is not there: reverberation, mirror images, B-lines, side lobes. And the fascia."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.phantom.filters import randn
from uscl.phantom.machine import Machine
from uscl.phantom.structures import GASES, Structure
from uscl.seeds import seeded_draw


def fascia(streaks: Tensor, strength: float) -> Tensor:
    """Bright thin sheets in the wall, dB, from noise that is long across the beams and thin along them."""
    return strength * ((streaks - 0.35).clamp_(0, 1) * 2 - 0.4)


def reverberate(
    real: Tensor,
    imaginary: Tensor,
    ids: Tensor,
    gel: Tensor,
    lost: Tensor,
    machine: Machine,
    lateral: Tensor,
    seed: int,
    frames: range,
    total: int,
) -> tuple[Tensor, Tensor]:
    """Fills the shadow below the first gas of each beam.

    Under a shallow pleura the near field comes back at multiples of its depth, the pleura itself as sharp lines
    (A-lines), what lies above it faintly; across a deep diaphragm the liver is mirrored. Haze ("dirty shadow") fades
    with depth, B-lines do not.
    """
    samples, step_cm = ids.shape[-1], machine.depth / (machine.samples - 1) / 10
    device = ids.device
    gas = torch.isin(ids, torch.tensor(GASES, device=device)) & ~gel
    first = torch.where(gas.any(-1), gas.int().argmax(-1), samples).clamp_min_(12)[..., None]
    position = torch.arange(samples, device=device)
    copy = position // first
    beyond = (position - first).clamp_min_(0) * step_cm
    below = (copy > 0) & (copy < 7)
    source = position - copy * first
    pleura = torch.exp(-(((first - source) * step_cm / 0.25) ** 2))
    fading = 10 ** (-(8.0 + 5.5 * beyond) / 20) * (0.1 + pleura) * below
    if machine.mirror:
        before = ids.gather(2, (first - 1).clamp_max(samples - 1))
        deep = (before == Structure.DIAPHRAGM) & (first * step_cm > 4.5)
        mirrored = (2 * first - position).clamp_(0, samples - 1)
        source = torch.where(deep, mirrored, source)
        fading = torch.where(deep, 10 ** (-(6.0 + 1.5 * beyond) / 20) * (position >= first), fading)
    real, imaginary = (part + part.gather(2, source) * fading for part in (real, imaginary))
    at_gas = lost.gather(2, first.clamp_max(samples - 1))
    haze = 10 ** ((-6.5 * beyond - 4.0 - at_gas) / 20) * (position > first)
    if machine.b_lines:
        haze = haze + _b_lines(machine, seed, frames, total, device) * 10 ** ((-1.2 * beyond - at_gas) / 20) * (
            position > first
        )
    if bool((first < samples).any()):
        shape = ids.shape[1:]
        real = real + haze * (lateral @ randn(seed, "haze", frames, shape, device))
        imaginary = imaginary + haze * (lateral @ randn(seed, "haze-q", frames, shape, device))
    return real, imaginary


def _b_lines(machine: Machine, seed: int, frames: range, total: int, device: torch.device) -> Tensor:
    """Strength of B-lines [frame, beam, 1]: narrow rays that come and go while the probe moves."""
    draw = seeded_draw("b-lines", seed)
    beams = torch.arange(machine.beams, device=device)[None]
    now = torch.tensor(list(frames), device=device)[:, None]
    strength = torch.zeros(len(frames), machine.beams, device=device)
    for _ in range(machine.b_lines):
        beam, frame, life = draw(machine.beams), draw(total), 4 + draw(12)
        strength = strength + torch.exp(-0.5 * ((beams - beam) / 1.4) ** 2 - 0.5 * ((now - frame) / life) ** 2)
    return 2.0 * strength[..., None]


def clutter(power: Tensor, level: float, seed: int, frames: range) -> Tensor:
    """Side lobes: power spread over 41 neighbouring beams, ``level`` dB below it, with speckle of its own."""
    count, beams, samples = power.shape
    by_sample = power.transpose(1, 2).reshape(-1, 1, beams)
    spread = F.avg_pool1d(by_sample, 41, stride=1, padding=20).reshape(count, samples, beams).transpose(1, 2)
    # The square of two normal numbers is exponential: the power of speckle.
    speckle = randn(seed, "clutter", frames, power.shape[1:], power.device).square_()
    return spread * (10 ** (level / 10)) * speckle
