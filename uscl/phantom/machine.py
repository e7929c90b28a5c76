"""Probe, settings and hand: what differs from sweep to sweep, and from machine to machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, radians
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uscl.errors import InputError
from uscl.phantom.filters import gaussian_matrix
from uscl.phantom.torso import Side, TorsoAnatomy, View

Range = tuple[float, float]


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
        aperture: over how many beams (standard deviation) the aperture averages what reaches a depth; 0 for none.
        smoothing: standard deviation of the machine's speckle reduction, samples and beams; 0 for none.
        texture: standard deviation of slow echogenicity changes inside tissue, dB.
        fascia: brightness of the sheets in the wall, dB; 0 for none.
        clutter: level of side-lobe clutter below the signal it spreads, dB; None for none.
        noise: level of electronic noise before compensation, dB; None for none.
        specular: strength of specular reflections; 0 for none.
        fluid_echo: echogenicity of free fluid, dB relative to liver: -45 is clear, -20 holds debris.
        mirror: show mirror images across a deep diaphragm.
        b_lines: number of B-lines along the sweep.
    """

    frequency: float = 3.5
    depth: float = 160.0
    radius: float = 50.0
    field_of_view: float = 66.0
    beams: int = 96
    samples: int = 256
    compensation: float = 0.5
    dynamic_range: float = 60.0
    gain: float = 0.0
    gamma: float = 1.0
    cycles: float = 2.2
    beam_width: float = 1.6
    slice_width: float = 3.5
    aperture: float = 1.0
    smoothing: float = 0.0
    texture: float = 1.5
    fascia: float = 6.0
    clutter: float | None = -34.0
    noise: float | None = -80.0
    specular: float = 1.0
    fluid_echo: float = -45.0
    mirror: bool = True
    b_lines: int = 0

    def beams_of(self, pose: Pose) -> tuple[Tensor, Tensor]:
        """Direction of every beam [F, beams, 3] and the centre of the face's curvature [F, 3]."""
        half = radians(self.field_of_view) / 2
        angle = torch.linspace(-half, half, self.beams, device=pose.origin.device)[None, :, None]
        beam = angle.cos() * pose.axis[:, None] + angle.sin() * pose.lateral[:, None]
        return beam, pose.origin - self.radius * pose.axis

    def despeckle(self, shown: Tensor) -> Tensor:
        """The machine's speckle reduction on grey values [frame, beam, sample]."""
        if not self.smoothing:
            return shown
        across = gaussian_matrix(self.beams, 0.6 * self.smoothing, "sum", shown.device)
        down = gaussian_matrix(self.samples, self.smoothing, "sum", shown.device)
        return across @ shown @ down.T


@dataclass(frozen=True)
class Pose:
    """Where the probe is in every frame, in the coordinates of the anatomy, mm.

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

    def select(self, frames: range) -> Pose:
        """Some frames."""
        part = slice(frames.start, frames.stop)
        return Pose(self.origin[part], self.axis[part], self.lateral[part])

    def to(self, device: torch.device) -> Pose:
        """On another device."""
        return Pose(self.origin.to(device), self.axis.to(device), self.lateral.to(device))


@dataclass(frozen=True)
class MachineModel:
    """What a kind of machine offers; settings of a sweep are drawn from its ranges.

    Attributes:
        frequency: MHz.
        depth: mm.
        radius: mm.
        field_of_view: degrees.
        dynamic_range: dB.
        gain: dB.
        gamma: of the grey-scale curve.
        cycles: of the pulse.
        beam_width: degrees.
        slice_width: mm.
        smoothing: of the speckle reduction, samples.
        clutter: dB.
    """

    frequency: Range = (2.5, 5.0)
    depth: Range = (125.0, 185.0)
    radius: Range = (45.0, 60.0)
    field_of_view: Range = (58.0, 72.0)
    dynamic_range: Range = (52.0, 68.0)
    gain: Range = (-11.0, 3.0)
    gamma: Range = (0.9, 1.6)
    cycles: Range = (1.7, 2.8)
    beam_width: Range = (1.3, 2.1)
    slice_width: Range = (3.0, 4.5)
    smoothing: Range = (0.0, 1.6)
    clutter: Range = (-38.0, -26.0)


MACHINES: dict[str, MachineModel] = {
    "any": MachineModel(),
    # A handheld probe: low frequency, wide beams, little dynamic range, strong smoothing.
    "handheld": MachineModel(
        frequency=(2.0, 3.0),
        dynamic_range=(45.0, 54.0),
        gain=(-8.0, 2.0),
        gamma=(1.2, 1.7),
        cycles=(2.5, 3.2),
        beam_width=(2.0, 2.8),
        slice_width=(4.0, 5.5),
        smoothing=(1.2, 2.0),
        clutter=(-28.0, -22.0),
    ),
    # A cart of some years' age.
    "cart": MachineModel(
        frequency=(3.0, 4.0),
        dynamic_range=(56.0, 64.0),
        gain=(-12.0, 0.0),
        gamma=(0.95, 1.3),
        smoothing=(0.3, 1.0),
    ),
    # A recent high-end cart: high frequency, narrow beams, wide dynamic range.
    "high-end": MachineModel(
        frequency=(4.0, 5.5),
        dynamic_range=(64.0, 74.0),
        gain=(-14.0, -4.0),
        gamma=(0.9, 1.2),
        cycles=(1.4, 1.9),
        beam_width=(0.9, 1.3),
        slice_width=(2.5, 3.2),
        smoothing=(0.5, 1.2),
        clutter=(-44.0, -36.0),
    ),
}
"""Presets for studying how a model carries over from one kind of machine to another."""


def draw_machine(random: np.random.Generator, name: str = "any", beams: int = 96, samples: int = 256) -> Machine:
    """Settings of one sweep on a kind of machine.

    Raises:
        InputError: no machine has this name.
    """
    if name not in MACHINES:
        raise InputError(f"no machine {name!r}; choose one of {', '.join(MACHINES)}")
    model = MACHINES[name]
    drawn: dict[str, Any] = {key: float(random.uniform(*limits)) for key, limits in vars(model).items()}
    return Machine(
        **drawn,
        beams=beams,
        samples=samples,
        compensation=float(random.uniform(0.45, 0.6)),
        fascia=float(random.uniform(5, 12)),
        texture=float(random.uniform(1, 2.5)),
        specular=float(random.uniform(0.6, 1.3)),
        fluid_echo=float(random.choice([-45.0, -45.0, -45.0, -35.0, -25.0])),
        mirror=bool(random.random() < 0.7),
        b_lines=int(random.choice([0, 0, 0, 1, 2, 4])),
    )


def draw_pose(
    random: np.random.Generator, anatomy: TorsoAnatomy, side: Side, view: View, frames: int, footwards: float = 0.0
) -> Pose:
    """A sweep in the coronal plane from the flank, sliding from front to back or back to front.

    The central beam points at the body's axis, the beams fan out from head (first) to foot. Hand speed varies by a
    quarter, the probe wobbles by about a degree.

    Args:
        random: source of everything drawn.
        anatomy: the patient.
        side: flank.
        view: ``pleural`` looks at the costophrenic angle, ``abdominal`` at the kidney and at liver or spleen before it.
        frames: number of frames.
        footwards: how much lower than usual the probe is held, mm: below a lung that hides everything.
    """
    height, middle = random.uniform(-88, -62), random.uniform(0.0, 0.35)  # radians behind the mid-axillary line
    if view == "abdominal":
        x, y, z = anatomy.kidneys.get(side, (70.0, 35.0, -140.0))
        height, middle = z + random.uniform(5, 35), float(np.arctan2(y, abs(x))) - random.uniform(0.0, 0.2)
    steps = torch.from_numpy(random.uniform(0.7, 1.3) * random.uniform(0.75, 1.25, frames))
    travelled = steps.cumsum(0) - steps[0]
    sign = -1.0 if side == "right" else 1.0
    reach = 0.5 * (anatomy.trunk.half_width + anatomy.trunk.half_depth)
    angle = middle + (travelled - travelled[-1] / 2) / reach * (1 if random.random() < 0.5 else -1)
    outward = torch.stack([sign * angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    skin = torch.tensor([anatomy.trunk.skin_distance(float(x), float(y)) for x, y, _ in outward])
    # The face is curved and the skin gives way: the probe sinks in by a few millimetres.
    origin = outward * (skin - random.uniform(2, 5))[:, None] + torch.tensor([0.0, 0.0, float(height) - footwards])
    origin = origin + 0.3 * _wobble(random, frames)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    headwards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(frames, 3)
    across = torch.linalg.cross(headwards, outward)
    tilt = (random.uniform(-12, 12) + 1.2 * _wobble(random, frames)) * pi / 180
    turn = (random.uniform(-8, 8) + 1.0 * _wobble(random, frames)) * pi / 180
    axis = _rotate(-outward, across, tilt)
    lateral = _rotate(_rotate(-headwards, across, tilt), axis, turn)
    return Pose(origin.float(), axis.float(), lateral.float())


def _wobble(random: np.random.Generator, frames: int) -> Tensor:
    """Smooth noise of about unit size along the sweep."""
    kernel = np.hanning(17)
    noise = np.convolve(random.standard_normal(frames + 32), kernel / np.sqrt((kernel**2).sum()), mode="same")
    return torch.from_numpy(noise[16:-16])


def _rotate(vectors: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Rotates vectors [F, 3] about unit axes [F, 3] by angles [F] in radians (Rodrigues' formula)."""
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    along = (vectors * axis).sum(1, keepdim=True) * axis
    rotated: Tensor = vectors * c + torch.linalg.cross(axis, vectors) * s + along * (1 - c)
    return rotated
