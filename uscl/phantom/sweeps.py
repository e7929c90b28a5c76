"""How a sonographer would sweep a patient: probe poses and machine settings, drawn from one seed."""

from __future__ import annotations

from math import pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from uscl.phantom.anatomy import Anatomy, Side
from uscl.phantom.ultrasound import Machine, Pose

View = Literal["pleural", "abdominal"]


def draw_machine(random: np.random.Generator) -> Machine:
    """Settings that differ from sweep to sweep: frequency, depth, gain, resolution, clarity of fluid."""
    return Machine(
        frequency=float(random.uniform(2.5, 5.0)),
        depth=float(random.uniform(130, 180)),
        radius=float(random.uniform(50, 60)),
        field_of_view=float(random.uniform(60, 70)),
        dynamic_range=float(random.uniform(55, 65)),
        gain=float(random.uniform(-8, 4)),
        gamma=float(random.uniform(0.9, 1.2)),
        cycles=float(random.uniform(1.8, 2.7)),
        beam_width=float(random.uniform(1.3, 2.0)),
        compensation=float(random.uniform(0.45, 0.6)),
        fluid_echo=float(random.choice([-45.0, -45.0, -35.0, -20.0])),
    )


def draw_pose(random: np.random.Generator, anatomy: Anatomy, side: Side, view: View, frames: int) -> Pose:
    """A sweep in the coronal plane from the flank, sliding from front to back or back to front.

    The central beam points at the body's axis, the beams fan out from head (first) to foot. Hand speed varies by a
    quarter, the probe wobbles by about a degree.

    Args:
        random: source of everything drawn.
        anatomy: the patient.
        side: flank.
        view: ``pleural`` looks at the costophrenic angle, ``abdominal`` at kidney and lower liver or spleen.
        frames: number of frames.
    """
    height = random.uniform(-88, -62) if view == "pleural" else random.uniform(-125, -98)
    steps = torch.from_numpy(random.uniform(0.7, 1.3) * random.uniform(0.75, 1.25, frames))
    travelled = steps.cumsum(0) - steps[0]
    sign = -1.0 if side == "right" else 1.0
    middle = random.uniform(0.0, 0.35)  # radians behind the mid-axillary line
    reach = 0.5 * (anatomy.half_width + anatomy.half_depth)
    angle = middle + (travelled - travelled[-1] / 2) / reach * (1 if random.random() < 0.5 else -1)
    outward = torch.stack([sign * angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    skin = torch.tensor([anatomy.skin_distance((float(x), float(y))) for x, y, _ in outward])
    # The face is curved and the skin gives way: the probe sinks in by a few millimetres.
    origin = outward * (skin - random.uniform(2, 5))[:, None] + torch.tensor([0.0, 0.0, float(height)])
    origin = origin + 0.3 * _wobble(random, frames)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    headwards = torch.tensor([0.0, 0.0, 1.0]).expand(frames, 3)
    across = torch.linalg.cross(headwards.double(), outward)
    tilt = (random.uniform(-12, 12) + 1.2 * _wobble(random, frames)) * pi / 180
    turn = (random.uniform(-8, 8) + 1.0 * _wobble(random, frames)) * pi / 180
    axis = _rotate(-outward, across, tilt)
    lateral = _rotate(-headwards.double(), across, tilt)
    lateral = _rotate(lateral, axis, turn)
    return Pose(origin.float(), axis.float(), lateral.float())


def _wobble(random: np.random.Generator, frames: int) -> Tensor:
    """Smooth noise of about unit size along the sweep."""
    noise = random.standard_normal(frames + 32)
    kernel = np.hanning(17)
    return torch.from_numpy(np.convolve(noise, kernel / np.sqrt((kernel**2).sum()), mode="same")[16:-16])


def _rotate(vectors: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Rotates vectors [F, 3] about unit axes [F, 3] by angles [F] in radians (Rodrigues' formula)."""
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    along = (vectors * axis).sum(1, keepdim=True) * axis
    rotated: Tensor = vectors * c + torch.linalg.cross(axis, vectors) * s + along * (1 - c)
    return rotated
