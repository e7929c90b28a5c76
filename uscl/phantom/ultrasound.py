"""A freehand convex sweep through an anatomy, simulated from the physics of pulse-echo ultrasound.

Per frame the structures are sampled along the beams of a convex probe (polar grid), then

1. sound is attenuated (two ways, dB / cm / MHz) and loses energy at every change of impedance; the machine's time-gain
   compensation assumes soft tissue, which alone makes enhancement behind fluid and shadows behind bone;
2. speckle is complex white noise, scaled by echogenicity and attenuation, behind a separable point-spread function:
   axial from the pulse, lateral widening with depth, elevation along the travelled path, so that neighbouring frames
   decorrelate with hand speed;
3. interfaces met at a right angle reflect specularly;
4. below gas the near field reverberates (A-lines, or a mirror image across the diaphragm), haze fills the shadow and
   B-lines cross it; side lobes and electronic noise are added;
5. envelope, logarithm, gain, and scan conversion to the picture a machine shows.

Method: ray and scatterer convolution as in Wein et al. 2008, Burger et al. 2013 and LOTUS 2023; speckle statistics are
those of fully developed speckle (Rayleigh envelope, signal-to-noise ratio 1.91). Every random number belongs to a frame
or to a place along the path, so that the size of the chunks in which frames are computed does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, log, radians, sin, sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.phantom.artefacts import clutter, fascia, reverberate
from uscl.phantom.filters import gaussian_matrix, linear_matrix, randn
from uscl.phantom.machine import Machine, Pose
from uscl.phantom.medium import Medium
from uscl.phantom.structures import ACOUSTICS, FLUIDS, GASES, SWEEP_LABEL_OF, WALL, Structure, lookup_table

SPEED_OF_SOUND = 1.54
"""mm per microsecond, in soft tissue."""
SHADOW_DB = 40.0
"""A structure counts as visible where the sound lost less than this beyond what the machine makes up for, dB."""
_FWHM = 2 * sqrt(2 * log(2))
_GRAIN = 0.5
"""Distance of the planes of scatterers along the path, mm."""


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep on the machine's picture grid.

    Attributes:
        image: uint8 [lateral, depth, frame].
        label: uint8 ids of :data:`SWEEP_LABELS` on the same grid; as an annotator would outline them: shadows of ribs
            are bridged, what lies behind lung or bowel gas is left out, and so is everything outside the sector.
        visible: uint8, 1 where the two-way loss stays below :data:`SHADOW_DB`; what lies in full shadow is 0.
        sector: bool [lateral, depth]: where the machine shows anything.
        spacing: mm along lateral, depth, and the mean frame step.
    """

    image: Tensor
    label: Tensor
    visible: Tensor
    sector: Tensor
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Echoes:
    """What comes back before scan conversion, on the polar grid [frame, beam, sample].

    Attributes:
        level: echo level after time-gain compensation, dB; fully developed speckle in liver lies around 0.
        structure: structure ids.
        excess_loss: two-way loss beyond what the machine makes up for, dB.
    """

    level: Tensor
    structure: Tensor
    excess_loss: Tensor


def simulate_sweep(
    medium: Medium, pose: Pose, machine: Machine, size: tuple[int, int], seed: int, chunk: int = 32
) -> Sweep:
    """Simulates a sweep.

    Args:
        medium: the patient; decides the device.
        pose: of every frame.
        machine: probe and settings.
        size: pixels of the picture along lateral and depth.
        seed: of speckle, texture and noise.
        chunk: frames computed at once, which bounds memory and nothing else.

    Returns:
        The sweep, on the CPU.
    """
    grid, sector, pixel = _picture_grid(machine, size, medium.structure.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin in range(0, len(pose.origin), chunk):
        frames = range(begin, min(begin + chunk, len(pose.origin)))
        echoes = receive(medium, pose, machine, seed, frames)
        shown = (echoes.level + machine.dynamic_range - 27 + machine.gain) / machine.dynamic_range
        shown = machine.despeckle(shown.clamp_(0, 1)) ** machine.gamma
        where = grid.expand(len(frames), -1, -1, -1)
        picture = F.grid_sample(shown[:, None], where, mode="bilinear", align_corners=True)[:, 0] * sector
        coded = _outlined(echoes.structure) + 8.0 * (echoes.excess_loss < SHADOW_DB)
        drawn = F.grid_sample(coded[:, None], where, mode="nearest", align_corners=True)[:, 0] * sector
        drawn = drawn.to(torch.uint8)
        parts.append(((255 * picture).round().to(torch.uint8).cpu(), (drawn & 7).cpu(), (drawn >> 3).cpu()))
    image, label, visible = (torch.cat(part).permute(2, 1, 0).contiguous() for part in zip(*parts, strict=True))
    step = float(pose.path[-1]) / max(len(pose.origin) - 1, 1)
    return Sweep(image, label, visible, sector.T.contiguous().cpu(), (pixel[0], pixel[1], step))


def share_labelled(medium: Medium, pose: Pose, machine: Machine) -> float:
    """Share of the sector that shows a target, over five frames along a sweep."""
    frames = torch.linspace(0, len(pose.origin) - 1, 5).round().long()
    some = Pose(pose.origin[frames], pose.axis[frames], pose.lateral[frames]).to(medium.structure.device)
    beam, apex = machine.beams_of(some)
    reach = machine.radius + torch.linspace(0, machine.depth, machine.samples, device=beam.device)
    labels = _outlined(medium.sample(apex[:, None].expand_as(beam), beam, reach)[0])
    return float(((labels > 0) * reach).mean() / reach.mean())


def _outlined(structure: Tensor) -> Tensor:
    """What an annotator would outline along each beam [frame, beam, sample]: nothing behind gas."""
    labels = torch.from_numpy(lookup_table(SWEEP_LABEL_OF)).to(structure.device)
    gas = torch.isin(structure, torch.tensor(GASES, device=structure.device)).cumsum(-1) > 0
    return labels[structure] * ~gas


def receive(medium: Medium, pose: Pose, machine: Machine, seed: int, frames: range) -> Echoes:
    """Echoes of some frames of a sweep.

    Args:
        medium: the patient.
        pose: of every frame of the sweep.
        machine: probe and settings.
        seed: of speckle, texture and noise.
        frames: which.
    """
    device = medium.structure.device
    now = pose.select(frames).to(device)
    beam, apex = machine.beams_of(now)
    reach = machine.radius + torch.linspace(0, machine.depth, machine.samples, device=device)
    ids, voxels = medium.sample(apex[:, None].expand_as(beam), beam, reach)

    table = ACOUSTICS
    step_cm = machine.depth / (machine.samples - 1) / 10
    depth_cm = torch.linspace(0, machine.depth / 10, machine.samples, device=device)
    gel = (ids == Structure.OUTSIDE).cumprod(-1).bool()  # coupling gel before the skin
    impedance = _look_up({s: a.impedance for s, a in table.items()}, ids)
    impedance[gel] = ACOUSTICS[Structure.VISCERAL_FAT].impedance
    attenuation = _look_up({s: a.attenuation for s, a in table.items()}, ids).masked_fill_(gel, 0.0)
    reflection = torch.zeros_like(impedance)
    change = impedance[..., 1:] - impedance[..., :-1]
    reflection[..., 1:] = change / (impedance[..., 1:] + impedance[..., :-1])
    lost = attenuation.cumsum_(-1).mul_(2 * machine.frequency * step_cm)  # dB, there and back
    lost -= (1 - reflection.square()).clamp_min_(1e-4).log10_().mul_(20).cumsum_(-1)  # T12 T21 = 1 - R^2
    compensation = 2 * machine.compensation * machine.frequency * depth_cm

    levels = {s: a.echogenicity for s, a in table.items()} | dict.fromkeys(FLUIDS, machine.fluid_echo)
    echo = _look_up(levels, ids).masked_fill_(gel, -80.0)
    solid = echo > -20
    if machine.texture:
        echo += solid * machine.texture * _slow_noise(pose, machine, seed, "texture", (8, 8, 10), frames, device)
    if machine.fascia:
        wall = torch.isin(ids, torch.tensor(WALL, device=device)) & ~gel
        streaks = _slow_noise(pose, machine, seed, "fascia", (14, 20, 2.0), frames, device)
        echo += wall * fascia(streaks, machine.fascia)
    # The aperture averages over neighbouring beams, which softens the edges of shadows.
    reached = 10 ** (-lost / 20)
    if machine.aperture:
        reached = gaussian_matrix(machine.beams, machine.aperture, "sum", device) @ reached
    amplitude = reached * 10 ** (echo / 20)
    axial, lateral = _psf(machine, device)
    real = amplitude * _scatterers(pose, machine, seed, "real", frames, device)
    if machine.specular:
        _add_specular(real, reflection, reached, medium, voxels, beam, machine.specular)
    imaginary = amplitude * _scatterers(pose, machine, seed, "imaginary", frames, device)
    real, imaginary = (lateral @ (part @ axial) for part in (real, imaginary))
    real, imaginary = reverberate(real, imaginary, ids, gel, lost, machine, lateral, seed, frames, len(pose.origin))
    power = real.square() + imaginary.square()
    if machine.clutter is not None:
        power += clutter(power, machine.clutter, seed, frames)
    if machine.noise is not None:
        electronic = randn(seed, "electronic", frames, power.shape[1:], device).square_()
        electronic += randn(seed, "electronic-q", frames, power.shape[1:], device).square_()
        power += 10 ** (machine.noise / 10) * electronic
    level = power.clamp_min_(1e-18).log10_().mul_(10) + compensation
    return Echoes(level, ids, lost - compensation)


def _look_up(values: dict[Structure, float], ids: Tensor) -> Tensor:
    return torch.from_numpy(lookup_table(values, 0.0, np.float32)).to(ids.device)[ids]


def _scatterers(pose: Pose, machine: Machine, seed: int, part: str, frames: range, device: torch.device) -> Tensor:
    """White noise of unit variance, correlated between frames over the width of the slice along the travelled path."""
    sigma = machine.slice_width / _FWHM
    path = pose.path[frames.start : frames.stop]
    first, last = ceil(float(path[0] - 4 * sigma) / _GRAIN), ceil(float(path[-1] + 4 * sigma) / _GRAIN)
    planes = range(first, last + 1)
    distance = path[:, None] - _GRAIN * torch.tensor(list(planes))[None]
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() < 4 * sigma)
    weights = (weights / weights.square().sum(1, keepdim=True).sqrt()).to(device)
    noise = randn(seed, f"scatterers {part}", planes, torch.Size((machine.beams, machine.samples)), device)
    return (weights @ noise.flatten(1)).reshape(len(frames), *noise.shape[1:])


def _slow_noise(
    pose: Pose,
    machine: Machine,
    seed: int,
    name: str,
    scales: tuple[float, float, float],
    frames: range,
    device: torch.device,
) -> Tensor:
    """Smooth noise of about unit variance with features of so many frames, beams and samples."""
    whole = (len(pose.origin), machine.beams, machine.samples)
    coarse = [ceil(n / scale) + 2 for n, scale in zip(whole, scales, strict=True)]
    noise = randn(seed, name, range(coarse[0]), torch.Size(coarse[1:]), device)
    along, across, down = (linear_matrix(n, points, device) for n, points in zip(whole, coarse, strict=True))
    along = along[frames.start : frames.stop]
    rows = (along @ noise.flatten(1)).reshape(len(frames), *noise.shape[1:])
    return across @ rows @ down.T


def _add_specular(
    real: Tensor, reflection: Tensor, reached: Tensor, medium: Medium, voxels: Tensor, beam: Tensor, strength: float
) -> None:
    """Adds echoes of interfaces, strongest where the beam meets them at a right angle (cosine to the fourth)."""
    place = (reflection.abs() > 1e-4).reshape(-1).nonzero()[:, 0]
    direction = beam.reshape(-1, 3)[place // reflection.shape[-1]]
    normal = medium.normal[voxels.reshape(-1)[place]].float()
    cosine = (direction * normal).sum(1).abs()
    echo = 25 * strength * reflection.reshape(-1)[place].abs() * reached.reshape(-1)[place] * cosine**4
    real.view(-1)[place] += echo


def _psf(machine: Machine, device: torch.device) -> tuple[Tensor, Tensor]:
    """Axial and lateral point-spread functions of unit energy, as matrices over samples and over beams."""
    pulse = machine.cycles * SPEED_OF_SOUND / machine.frequency / 2  # mm, full width at half maximum
    axial = pulse / _FWHM / (machine.depth / (machine.samples - 1))
    lateral = machine.beam_width / _FWHM / (machine.field_of_view / (machine.beams - 1))
    return (
        gaussian_matrix(machine.samples, max(axial, 0.3), "energy", device),
        gaussian_matrix(machine.beams, max(lateral, 0.5), "energy", device),
    )


def _picture_grid(
    machine: Machine, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, tuple[float, float]]:
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
    return grid[None].to(device), sector.to(device), (float(lateral[1] - lateral[0]), float(depth[1] - depth[0]))
