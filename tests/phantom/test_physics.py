"""The simulator obeys the physics it is built on, measured from its own output; and each test notices broken physics.

Texture, clutter and noise are off where a property is about something else. Every property is measured once as it is
and once for each way of breaking it that is listed beside it.
"""

from dataclasses import replace
from math import cos, exp, pi, radians

import numpy as np
import pytest
import torch

import uscl.phantom.ultrasound as ultrasound
from uscl.phantom import structures
from uscl.phantom.canvas import Anatomy
from uscl.phantom.machine import Machine, Pose
from uscl.phantom.medium import Medium
from uscl.phantom.structures import Acoustics, Structure

CLEAN = Machine(
    beams=128, samples=400, texture=0.0, fascia=0.0, aperture=0.0, clutter=None, noise=None, mirror=False, b_lines=0
)
S = Structure


def block() -> np.ndarray:
    """A block of liver: 200 mm deep (x), 120 mm along the sweep (y), 220 mm across (z), on 2 mm."""
    return np.full((100, 60, 110), S.LIVER, np.uint8)


def level(ids: np.ndarray, machine: Machine = CLEAN, frames: int = 40, step: float = 1.0) -> torch.Tensor:
    """Echo level [frame, beam, sample] of a probe that slides along y with its beams in the x-z plane."""
    origin = torch.zeros(frames, 3)
    origin[:, 0], origin[:, 1], origin[:, 2] = 6.0, 40 + step * torch.arange(frames), 110.0
    axis, lateral = torch.tensor([1.0, 0, 0]).expand(frames, 3), torch.tensor([0, 0, 1.0]).expand(frames, 3)
    medium = Medium.of(Anatomy(ids, (0.0, 0.0, 0.0)))
    return ultrasound.receive(medium, Pose(origin, axis, lateral), machine, 3, range(frames)).level


DEPTH = torch.linspace(0, CLEAN.depth, CLEAN.samples)
ANGLE = torch.linspace(-CLEAN.field_of_view / 2, CLEAN.field_of_view / 2, CLEAN.beams)


def mean_db(db: torch.Tensor) -> torch.Tensor:
    """Mean power over frames, dB [beam, sample]."""
    return 10 * torch.log10((10 ** (db / 10)).mean(0))


def uniform_envelope(machine: Machine = CLEAN) -> torch.Tensor:
    return 10 ** (level(block(), machine)[:, 20:108, 60:360] / 20)


def speckle_snr() -> float:
    envelope = uniform_envelope()
    return (envelope.mean() / envelope.std()).item()


def rayleigh_tail() -> float:
    envelope = uniform_envelope()
    return (envelope > 2 * envelope.mean()).float().mean().item()


def depth_slope() -> float:
    db = level(block(), replace(CLEAN, compensation=0.0))[:, 20:108]
    power = 10 * torch.log10((10 ** (db / 10)).mean((0, 1)))
    return float(np.polyfit((DEPTH / 10).numpy()[40:360], power.numpy()[40:360], 1)[0])


def with_fluid() -> torch.Tensor:
    """Fluid from 40 to 70 mm below the probe, under the beams of one half."""
    ids = block()
    ids[23:38, :, :55] = S.EFFUSION
    return mean_db(level(ids, replace(CLEAN, specular=0.0)))


def halves(power: torch.Tensor, depths: tuple[float, float]) -> tuple[float, float]:
    """Mean level under the beams through the fluid and under those beside it."""
    rows = (depths[0] < DEPTH) & (depths[1] > DEPTH)
    through, beside = (ANGLE < -4) & (ANGLE > -14), (ANGLE > 4) & (ANGLE < 14)
    return power[through][:, rows].mean().item(), power[beside][:, rows].mean().item()


def enhancement() -> float:
    through, beside = halves(with_fluid(), (95, 125))
    return through - beside


def fluid_contrast() -> float:
    fluid, liver = halves(with_fluid(), (48, 62))
    return fluid - liver


def rib_shadow() -> float:
    ids = block()
    ids[10:14, :, 51:59] = S.RIB
    power = mean_db(level(ids))
    rows = (DEPTH > 95) & (DEPTH < 125)
    behind, beside = ANGLE.abs() < 2, (ANGLE > 18) & (ANGLE < 26)
    return (power[behind][:, rows].mean() - power[beside][:, rows].mean()).item()


def lung() -> tuple[float, float]:
    """Level of the pleura and of what is shown 15 to 35 mm below it, relative to liver, dB."""
    ids = block()
    ids[30:] = S.LUNG_RIGHT
    power = mean_db(level(ids))
    liver = power[:, (DEPTH > 20) & (DEPTH < 40)].mean()
    below = power[50:78][:, (DEPTH > 70) & (DEPTH < 90)].mean()
    return (power[60:68, 120:160].max() - liver).item(), (below - liver).item()


def frame_correlation() -> list[float]:
    """Of the envelope with itself 1, 2, 3 and 4 mm further along the sweep."""
    envelope = uniform_envelope()
    centred = envelope - envelope.mean()
    return [((centred[:-k] * centred[k:]).mean() / centred.square().mean()).item() for k in (1, 2, 3, 4)]


SLICE_SIGMA = 3.5 / 2.3548

PROPERTIES = {
    "speckle SNR": (speckle_snr, lambda x: abs(x - 1.913) < 0.05),
    "Rayleigh tail": (rayleigh_tail, lambda x: abs(x - exp(-pi)) < 0.004),
    "depth slope": (depth_slope, lambda x: abs(x + 2 * 0.5 * 3.5) < 0.05),
    "enhancement": (enhancement, lambda x: abs(x - 2 * (0.5 - 0.005) * 3.5 * 3.0 / cos(radians(9))) < 0.5),
    "fluid contrast": (fluid_contrast, lambda x: x < -25),
    "rib shadow": (rib_shadow, lambda x: x < -20),
    "lung": (lung, lambda x: x[0] > 10 and x[1] < 3),
    "frame correlation": (
        frame_correlation,
        lambda x: all(
            abs(c - exp(-(k**2) / (2 * SLICE_SIGMA**2))) < 0.05 for k, c in zip((1, 2, 3, 4), x, strict=True)
        ),
    ),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_property_holds(name):
    measure, holds = PROPERTIES[name]
    value = measure()
    assert holds(value), value


def real_noise_only(monkeypatch):
    """One quadrature: a half-normal envelope instead of Rayleigh's."""
    scatter = ultrasound._scatterers
    monkeypatch.setattr(
        ultrasound,
        "_scatterers",
        lambda pose, machine, seed, part, *rest: scatter(pose, machine, seed, part, *rest) * (part == "real"),
    )


def uniform_noise(monkeypatch):
    """Scatterers of equal strength: no speckle statistics at all."""
    monkeypatch.setattr(
        ultrasound,
        "_scatterers",
        lambda pose, machine, seed, part, frames, device: torch.ones(len(frames), machine.beams, machine.samples),
    )


def acoustics(structure: Structure, **change):
    def mutate(monkeypatch):
        values = structures.ACOUSTICS[structure]._asdict() | change
        monkeypatch.setitem(structures.ACOUSTICS, structure, Acoustics(**values))

    return mutate


def one_way_attenuation(monkeypatch):
    """Attenuation counted there but not back."""
    halved = {s: Acoustics(a.impedance, a.attenuation / 2, a.echogenicity) for s, a in structures.ACOUSTICS.items()}
    monkeypatch.setattr(ultrasound, "ACOUSTICS", halved)


def no_transmission_loss(monkeypatch):
    """Bone and lung let everything through and attenuate nothing."""
    weak = {s: Acoustics(1.6, min(a.attenuation, 1.0), a.echogenicity) for s, a in structures.ACOUSTICS.items()}
    monkeypatch.setattr(ultrasound, "ACOUSTICS", weak)


def elevation(width: float):
    def mutate(monkeypatch):
        scatter = ultrasound._scatterers
        monkeypatch.setattr(
            ultrasound,
            "_scatterers",
            lambda pose, machine, *rest: scatter(pose, replace(machine, slice_width=width), *rest),
        )

    return mutate


def frames_by_number(monkeypatch):
    """Speckle that follows the number of the frame and not the path: it never decorrelates."""
    monkeypatch.setattr(Pose, "path", property(lambda pose: 0.2 * torch.arange(len(pose.origin))))


MUTATIONS = [
    ("speckle SNR", real_noise_only),
    ("speckle SNR", uniform_noise),
    ("Rayleigh tail", real_noise_only),
    ("Rayleigh tail", uniform_noise),
    ("depth slope", one_way_attenuation),
    ("depth slope", acoustics(S.LIVER, attenuation=0.45)),
    ("enhancement", one_way_attenuation),
    ("enhancement", acoustics(S.EFFUSION, attenuation=0.2)),
    ("fluid contrast", acoustics(S.LIVER, echogenicity=-25.0)),
    ("rib shadow", no_transmission_loss),
    ("lung", no_transmission_loss),
    ("frame correlation", elevation(2.5)),
    ("frame correlation", elevation(5.0)),
    ("frame correlation", frames_by_number),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutate"), MUTATIONS)
def test_property_fails_when_its_physics_is_broken(name, mutate, monkeypatch):
    mutate(monkeypatch)
    measure, holds = PROPERTIES[name]
    value = measure()
    assert not holds(value), value


def test_the_size_of_the_chunks_does_not_show():
    ids = block()
    ids[30:, :, 40:70] = S.LUNG_LEFT
    medium = Medium.of(Anatomy(ids, (0.0, 0.0, 0.0)))
    frames = 20
    origin = torch.zeros(frames, 3)
    origin[:, 0], origin[:, 1], origin[:, 2] = 6.0, 40 + 0.9 * torch.arange(frames), 110.0
    pose = Pose(
        origin, torch.tensor([1.0, 0, 0]).expand(frames, 3).clone(), torch.tensor([0, 0, 1.0]).expand(frames, 3).clone()
    )
    machine = Machine(b_lines=3, smoothing=1.0)
    whole, parts = (ultrasound.simulate_sweep(medium, pose, machine, (64, 64), 1, chunk) for chunk in (20, 7))
    assert torch.equal(whole.label, parts.label)
    assert torch.equal(whole.visible, parts.visible)
    assert (whole.image.int() - parts.image.int()).abs().max() <= 1, "rounding at most"


def test_edges_are_smooth():
    """A tilted plane between two tissues, stored on the steps of the grid, is met within a third of a voxel."""
    ids = block()
    x, y, z = np.meshgrid(*(2.0 * np.arange(n) for n in ids.shape), indexing="ij")
    plane = x + 0.35 * z + 0.2 * y - 120
    ids[plane > 0] = S.SPLEEN
    medium = Medium.of(Anatomy(ids, (0.0, 0.0, 0.0)))
    start = torch.tensor([[0.0, 50.3, 20 + 1.7 * i] for i in range(80)])
    reach = torch.arange(0, 180, 0.1)
    found, _ = medium.sample(start, torch.tensor([1.0, 0, 0]).expand(80, 3), reach)
    met = reach[(found == S.SPLEEN).int().argmax(1)]
    wanted = 120 - 0.35 * start[:, 2] - 0.2 * start[:, 1]
    error = met - wanted
    assert (error - error.mean()).abs().max() < 0.67
    assert (error - error.mean()).std() < 0.25


def test_visible_is_what_no_bone_hides():
    ids = block()
    ids[10:14, :, 51:59] = S.RIB
    medium = Medium.of(Anatomy(ids, (0.0, 0.0, 0.0)))
    origin = torch.tensor([[6.0, 40.0, 110.0], [6.0, 41.0, 110.0]])
    pose = Pose(origin, torch.tensor([1.0, 0, 0]).expand(2, 3), torch.tensor([0, 0, 1.0]).expand(2, 3))
    sweep = ultrasound.simulate_sweep(medium, pose, Machine(aperture=0.0), (96, 96), 1)
    middle, row = 48, 70
    assert sweep.visible[middle, row].max() == 0, "behind the rib"
    assert sweep.visible[middle + 25, row].min() == 1, "beside it"
    assert sweep.label[middle, row].min() == 3, "labels do not depend on what can be seen"


@pytest.mark.parametrize("option", ["mirror", "b_lines", "fascia", "smoothing", "aperture"])
def test_every_option_changes_the_picture_and_not_the_labels(option):
    ids = block()
    ids[:8] = S.MUSCLE
    ids[50:] = S.LUNG_RIGHT
    ids[48:50] = S.DIAPHRAGM
    medium = Medium.of(Anatomy(ids, (0.0, 0.0, 0.0)))
    origin = torch.tensor([[6.0, 40.0 + i, 110.0] for i in range(4)])
    pose = Pose(origin, torch.tensor([1.0, 0, 0]).expand(4, 3), torch.tensor([0, 0, 1.0]).expand(4, 3))
    off = Machine(mirror=False, b_lines=0, fascia=0.0, smoothing=0.0, aperture=0.0)
    on = replace(
        off, **{option: {"mirror": True, "b_lines": 4, "fascia": 6.0, "smoothing": 1.5, "aperture": 2.0}[option]}
    )
    first, second = (ultrasound.simulate_sweep(medium, pose, machine, (64, 64), 1) for machine in (off, on))
    assert not torch.equal(first.image, second.image)
    assert torch.equal(first.label, second.label)


def test_nothing_shows_beyond_the_sector():
    medium = Medium.of(Anatomy(block(), (0.0, 0.0, 0.0)))
    origin = torch.tensor([[6.0, 40.0, 110.0], [6.0, 41.0, 110.0]])
    pose = Pose(origin, torch.tensor([1.0, 0, 0]).expand(2, 3), torch.tensor([0, 0, 1.0]).expand(2, 3))
    sweep = ultrasound.simulate_sweep(medium, pose, Machine(), (64, 64), 1)
    assert sweep.image[~sweep.sector].max() == 0
    assert sweep.label[~sweep.sector].max() == 0
    assert sweep.image[sweep.sector].float().mean() > 20
    assert 0.3 < sweep.sector.float().mean() < 0.9
