"""A freehand convex sweep through a volume of tissues, simulated from the physics of pulse-echo ultrasound.

Per frame the tissue is sampled along the beams of a convex probe (polar grid), then

1. sound is attenuated (two ways, dB / cm / MHz) and loses energy at every change of impedance; the machine's time-gain
   compensation assumes soft tissue, which alone makes enhancement behind fluid and shadows behind bone;
2. speckle is complex white noise, scaled by echogenicity and attenuation, behind a separable point-spread function:
   axial from the pulse, lateral widening with depth, elevation along the travelled path, so that neighbouring frames
   decorrelate with hand speed;
3. interfaces seen at a right angle reflect specularly;
4. below gas the near field reverberates and haze fills the shadow; side lobes and electronic noise are added;
5. envelope, logarithm, gain, and scan conversion to the picture a machine shows.

Method: ray and scatterer convolution as in Wein et al. 2008, Burger et al. 2013 and LOTUS 2023; speckle statistics are
those of fully developed speckle (Rayleigh envelope, signal-to-noise ratio 1.91).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, log, radians, sin, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.phantom.tissues import ACOUSTICS, FLUIDS, GASES, Tissue

SPEED_OF_SOUND = 1.54
"""mm per microsecond, in soft tissue."""
_FWHM = 2 * sqrt(2 * log(2))
_TISSUES = sorted(ACOUSTICS)
_IMPEDANCE = torch.tensor([ACOUSTICS[tissue].impedance for tissue in _TISSUES])
_ATTENUATION = torch.tensor([ACOUSTICS[tissue].attenuation for tissue in _TISSUES])
_ECHOGENICITY = torch.tensor([ACOUSTICS[tissue].echogenicity for tissue in _TISSUES])


@dataclass(frozen=True)
class Machine:
    """Probe and settings of one sweep.

    Attributes:
        frequency: MHz.
        depth: from the probe's face, mm.
        radius: of the convex face, mm.
        field_of_view: of the sector, degrees.
        beams: per frame.
        samples: per beam.
        compensation: attenuation that the time-gain compensation assumes, dB / cm / MHz one way.
        dynamic_range: shown between black and white, dB.
        gain: dB.
        gamma: exponent of the grey-scale curve.
        cycles: of the pulse; its length sets the axial resolution.
        beam_width: full width at half maximum, degrees.
        slice_width: elevation full width at half maximum, mm.
        texture: standard deviation of slow echogenicity changes inside tissue, dB.
        clutter: level of side-lobe clutter below the signal it spreads, dB; None for none.
        noise: level of electronic noise before compensation, dB.
        specular: strength of specular reflections; 0 for none.
        fluid_echo: echogenicity of free fluid, dB relative to liver: -45 is clear, -20 holds debris.
    """

    frequency: float = 3.5
    depth: float = 160.0
    radius: float = 50.0
    field_of_view: float = 66.0
    beams: int = 96
    samples: int = 288
    compensation: float = 0.5
    dynamic_range: float = 60.0
    gain: float = 0.0
    gamma: float = 1.0
    cycles: float = 2.2
    beam_width: float = 1.6
    slice_width: float = 3.5
    texture: float = 1.5
    clutter: float | None = -34.0
    noise: float = -80.0
    specular: float = 1.0
    fluid_echo: float = -45.0


@dataclass(frozen=True)
class Pose:
    """Where the probe is in every frame, in the coordinates of the tissue volume, mm.

    Attributes:
        origin: middle of the probe's face [F, 3].
        axis: unit vector along the central beam [F, 3].
        lateral: unit vector across the beams, perpendicular to ``axis`` [F, 3].
    """

    origin: Tensor
    axis: Tensor
    lateral: Tensor

    @property
    def path(self) -> Tensor:
        """Distance travelled by each frame, mm [F]."""
        steps = (self.origin[1:] - self.origin[:-1]).norm(dim=1)
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep on the machine's picture grid.

    Attributes:
        image: uint8 [lateral, depth, frame].
        label: uint8 label ids on the same grid; 0 outside the sector.
        sector: bool [lateral, depth]: where the machine shows anything.
        spacing: mm along lateral, depth, and the mean frame step.
    """

    image: Tensor
    label: Tensor
    sector: Tensor
    spacing: tuple[float, float, float]


def simulate_sweep(
    tissue: Tensor, label: Tensor, origin: tuple[float, float, float], voxel: float, pose: Pose, machine: Machine,
    size: tuple[int, int], seed: int,
) -> Sweep:  # fmt: skip
    """Simulates a sweep.

    Args:
        tissue: :class:`Tissue` ids, uint8 [x, y, z].
        label: label ids, uint8 on the same grid.
        origin: position of voxel (0, 0, 0), mm.
        voxel: edge of a voxel, mm.
        pose: of every frame.
        machine: probe and settings.
        size: pixels of the picture along lateral and depth.
        seed: of speckle, texture and noise.

    Returns:
        The sweep.
    """
    generator = torch.Generator().manual_seed(seed)
    index = _beam_voxels(tissue.shape, origin, voxel, pose, machine)
    ids = _lookup(tissue, index)
    labels = _lookup(label, index)
    level = envelope_db(ids, pose, machine, generator)
    shown = ((level + machine.dynamic_range - 27 + machine.gain) / machine.dynamic_range).clamp(0, 1) ** machine.gamma
    grid, sector, pixel = _picture_grid(machine, size)
    frames = len(pose.origin)
    batch_grid = grid[None].expand(frames, -1, -1, -1)
    picture = F.grid_sample(shown[:, None], batch_grid, mode="bilinear", align_corners=True)[:, 0] * sector
    drawn = F.grid_sample(labels[:, None].float(), batch_grid, mode="nearest", align_corners=True)[:, 0] * sector
    step = float(pose.path[-1]) / max(frames - 1, 1)
    return Sweep(
        image=(255 * picture).round().to(torch.uint8).permute(2, 1, 0).contiguous(),
        label=drawn.round().to(torch.uint8).permute(2, 1, 0).contiguous(),
        sector=sector.T.contiguous(),
        spacing=(pixel[0], pixel[1], step),
    )


def envelope_db(ids: Tensor, pose: Pose, machine: Machine, generator: torch.Generator) -> Tensor:
    """Echo level after time-gain compensation, dB, on the polar grid.

    Args:
        ids: tissue ids [frame, beam, sample].
        pose: of every frame.
        machine: probe and settings.
        generator: of speckle, texture and noise.

    Returns:
        [frame, beam, sample], float32; fully developed speckle in liver under the probe lies around 0 dB.
    """
    step_cm = machine.depth / (machine.samples - 1) / 10
    depth_cm = torch.linspace(0, machine.depth / 10, machine.samples)
    near = (ids == Tissue.OUTSIDE).cumprod(-1).bool()  # coupling gel before the skin
    impedance = torch.where(near, _IMPEDANCE[Tissue.SOFT], _IMPEDANCE[ids])
    attenuation = torch.where(near, 0.0, _ATTENUATION[ids])
    reflection = torch.zeros_like(impedance)
    change = impedance[..., 1:] - impedance[..., :-1]
    reflection[..., 1:] = change / (impedance[..., 1:] + impedance[..., :-1])
    lost = 2 * machine.frequency * step_cm * attenuation.cumsum(-1)  # dB, there and back
    passed = 20 * torch.log10((1 - reflection.square()).clamp_min(1e-4)).cumsum(-1)  # T12 T21 = 1 - R^2

    echo = torch.where(near, -80.0, _ECHOGENICITY[ids])
    for fluid in FLUIDS:
        echo = torch.where(ids == fluid, machine.fluid_echo, echo)
    if machine.texture:
        echo = echo + machine.texture * _slow_noise(ids.shape, generator) * (echo > -20)
    amplitude = 10 ** ((echo - lost + passed) / 20)
    real = amplitude * _white_noise(pose, ids.shape, machine, generator)
    imaginary = amplitude * _white_noise(pose, ids.shape, machine, generator)
    if machine.specular:
        real = real + _specular(impedance, reflection, lost - passed, pose, machine)
    axial, lateral = _psf(machine)
    real, imaginary = (_convolve(_convolve(part, axial, 2), lateral, 1) for part in (real, imaginary))
    real, imaginary = _reverberate(real, imaginary, ids, near, lost, step_cm, lateral, generator)
    power = real.square() + imaginary.square()
    if machine.clutter is not None:
        power = power + _clutter(power, machine.clutter, generator)
    noise = 10 ** (machine.noise / 10)
    electronic = torch.randn(power.shape, generator=generator).square()
    electronic = electronic + torch.randn(power.shape, generator=generator).square()
    level = 10 * torch.log10((power + noise * electronic).clamp_min(1e-18))
    return level + 2 * machine.compensation * machine.frequency * depth_cm


def _beam_voxels(
    shape: torch.Size, origin: tuple[float, float, float], voxel: float, pose: Pose, machine: Machine
) -> Tensor:
    """Voxel under every sample of every beam, flattened; samples beyond the volume take its edge voxel."""
    half = radians(machine.field_of_view) / 2
    angle = torch.linspace(-half, half, machine.beams)[None, :, None]
    beam = angle.cos() * pose.axis[:, None] + angle.sin() * pose.lateral[:, None]
    apex = pose.origin - machine.radius * pose.axis
    reach = machine.radius + torch.linspace(0, machine.depth, machine.samples)
    flat = torch.zeros(len(pose.origin), machine.beams, machine.samples, dtype=torch.int32)
    for axis, size in enumerate(shape):
        start = ((apex[:, axis] - origin[axis]) / voxel)[:, None, None]
        position = start + (beam[..., axis] / voxel)[..., None] * reach
        flat = flat * size + position.round_().clamp_(0, size - 1).to(torch.int32)
    return flat


def _lookup(volume: Tensor, index: Tensor) -> Tensor:
    return volume.reshape(-1)[index.reshape(-1)].reshape(index.shape).int()


def _white_noise(pose: Pose, shape: torch.Size, machine: Machine, generator: torch.Generator) -> Tensor:
    """White noise of unit variance that is correlated between frames over the width of the slice."""
    grain = 0.5  # mm
    sigma = machine.slice_width / _FWHM / grain
    count = int(float(pose.path[-1]) / grain) + 2
    noise = torch.randn((count, *shape[1:]), generator=generator)
    return _convolve(noise, _gaussian(sigma), 0)[(pose.path / grain).round().long()]


def _slow_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Smooth noise over about 8 frames, 8 beams and 10 samples."""
    frames, beams, samples = shape
    coarse = torch.randn((1, 1, frames // 8 + 3, beams // 8 + 3, samples // 10 + 3), generator=generator)
    return F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def _specular(impedance: Tensor, reflection: Tensor, lost: Tensor, pose: Pose, machine: Machine) -> Tensor:
    """Echoes of interfaces, strongest where the beam meets them at a right angle (cosine to the fourth)."""
    step = machine.depth / (machine.samples - 1)
    width = radians(machine.field_of_view) / (machine.beams - 1)
    reach = machine.radius + torch.linspace(0, machine.depth, machine.samples)
    frame_step = max(float(pose.path[-1]) / max(len(pose.origin) - 1, 1), 0.2)
    smooth = F.avg_pool3d(impedance[None, None], (3, 5, 5), stride=1, padding=(1, 2, 2))[0, 0]
    along = torch.gradient(smooth, dim=2)[0]
    across = torch.gradient(smooth, dim=1)[0] * (step / (reach * width))
    between = torch.gradient(smooth, dim=0)[0] * (step / frame_step) if len(smooth) > 1 else torch.zeros_like(along)
    cosine = along.abs() / (along.square() + across.square() + between.square() + 1e-9).sqrt()
    return machine.specular * 25 * reflection.abs() * 10 ** (-lost / 20) * cosine**4


def _reverberate(
    real: Tensor, imaginary: Tensor, ids: Tensor, near: Tensor, lost: Tensor, step_cm: float, lateral: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Below the first gas of each beam: fading copies of what lies above it, and haze ("dirty shadow")."""
    samples = ids.shape[-1]
    gas = torch.isin(ids, torch.tensor([int(tissue) for tissue in GASES])) & ~near
    first = torch.where(gas.any(-1), gas.int().argmax(-1), samples).clamp_min(12)[..., None]
    position = torch.arange(samples)
    copy = position // first
    beyond = (position - first).clamp_min(0) * step_cm
    fading = 10 ** (-(8.0 * copy.clamp(0, 1) + 5.5 * beyond) / 20) * ((copy > 0) & (copy < 7))
    source = position - copy * first
    # The pleura itself comes back as sharp lines; the wall above it only faintly.
    fading = fading * (0.12 + torch.exp(-(((first - source) * step_cm / 0.25) ** 2)))
    real, imaginary = (part + part.gather(2, source) * fading for part in (real, imaginary))
    at_gas = lost.gather(2, first.clamp_max(samples - 1))
    haze = 10 ** ((-6.5 * beyond - 4.0 - at_gas) / 20) * (position > first)
    for part in (real, imaginary):
        part += haze * _convolve(torch.randn(part.shape, generator=generator), lateral, 1)
    return real, imaginary


def _clutter(power: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Side lobes: power spread over 41 neighbouring beams, with speckle of its own."""
    frames, beams, samples = power.shape
    by_sample = power.transpose(1, 2).reshape(-1, 1, beams)
    spread = F.avg_pool1d(by_sample, 41, stride=1, padding=20).reshape(frames, samples, beams).transpose(1, 2)
    exponential = -torch.rand(power.shape, generator=generator).clamp_min(1e-9).log()
    return spread * 10 ** (level / 10) * exponential


def _psf(machine: Machine) -> tuple[Tensor, Tensor]:
    """Axial and lateral kernels of unit energy, in samples and beams."""
    pulse = machine.cycles * SPEED_OF_SOUND / machine.frequency / 2  # mm, full width at half maximum
    axial = pulse / _FWHM / (machine.depth / (machine.samples - 1))
    lateral = machine.beam_width / _FWHM / (machine.field_of_view / (machine.beams - 1))
    return _gaussian(axial), _gaussian(max(lateral, 0.5))


def _gaussian(sigma: float) -> Tensor:
    """Gaussian of unit energy: white noise of unit variance keeps its variance."""
    reach = max(1, ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return kernel / kernel.square().sum().sqrt()


def _convolve(volume: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolution along one axis, zeros beyond the ends."""
    moved = volume.movedim(axis, -1)
    rows = moved.reshape(-1, 1, moved.shape[-1])
    return F.conv1d(rows, kernel[None, None], padding="same").reshape(moved.shape).movedim(-1, axis)


def _picture_grid(machine: Machine, size: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Where each pixel (depth, lateral) reads the polar grid, which pixels lie in the sector, and their size in mm."""
    width, height = size
    half = radians(machine.field_of_view) / 2
    side = (machine.radius + machine.depth) * sin(half)
    lateral = torch.linspace(-side, side, width)
    depth = torch.linspace(machine.radius * cos(half), machine.radius + machine.depth, height)
    down, across = torch.meshgrid(depth, lateral, indexing="ij")
    reach = torch.hypot(down, across) - machine.radius
    grid = torch.stack([2 * reach / machine.depth - 1, torch.atan2(across, down) / half], dim=-1)
    sector = (grid.abs() <= 1).all(-1)
    return grid, sector, (float(lateral[1] - lateral[0]), float(depth[1] - depth[0]))
