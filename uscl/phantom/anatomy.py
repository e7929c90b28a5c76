"""Procedural patients: a torso of tissue ids on a 2 mm grid, different for every seed.

Coordinates are millimetres, LPS: x to the patient's left, y to the back, z to the head; the body's axis runs along z at
x = y = 0 and the top of the right diaphragm dome lies at z = 0. Organs are implicit shapes with smooth noise on their
surfaces; those with a published volume range are cut at exactly the voxels that make up the volume that was drawn.

Ranges: liver 1.35-2.2 l, spleen 105-450 ml, kidneys 9-13 cm and 120-260 ml, ribs 22-27 mm apart and 7-9 mm high,
    abdominal
wall 15-35 mm, diaphragm 3-5 mm (textbook values; medians of the Learn2Reg abdomen label maps lie inside them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uscl.phantom.tissues import Tissue

Array = NDArray[Any]
Side = Literal["right", "left"]
VOXEL = 2.0
"""Edge of a voxel, mm."""


@dataclass(frozen=True)
class Pathology:
    """Which fluids a patient has.

    Attributes:
        effusion_ml: pleural effusion on each side that has one, millilitres.
        ascites_mm: thickness of the ascites around liver and spleen; 0 for none.
    """

    effusion_ml: dict[Side, float]
    ascites_mm: float


@dataclass(frozen=True)
class Anatomy:
    """A patient.

    Attributes:
        tissue: :class:`Tissue` ids, uint8 [x, y, z], LPS.
        label: ids of :data:`LABEL_NAMES`, uint8 on the same grid; vessels inside the liver count as liver, sinus and
            pyramids as kidney.
        origin: position of voxel (0, 0, 0), mm.
        half_width: of the body's superellipse along x, mm.
        half_depth: along y, mm.
        exponent: of the superellipse.
        parameters: everything that was drawn.
    """

    tissue: NDArray[np.uint8]
    label: NDArray[np.uint8]
    origin: tuple[float, float, float]
    half_width: float
    half_depth: float
    exponent: float
    parameters: dict[str, Any]

    def skin_distance(self, direction: tuple[float, float]) -> float:
        """Distance from the body's axis to the skin along a unit vector in the x-y plane, mm."""
        x, y = direction
        sum_of_powers = abs(x / self.half_width) ** self.exponent + abs(y / self.half_depth) ** self.exponent
        return float(sum_of_powers ** (-1 / self.exponent))


class _Canvas:
    """The grid being painted: coordinates, smooth noise, tissue and label ids."""

    def __init__(
        self, shape: tuple[int, int, int], origin: tuple[float, float, float], random: np.random.Generator
    ) -> None:
        axes = [(np.arange(n, dtype=np.float32) * VOXEL + o) for n, o in zip(shape, origin, strict=True)]
        self.x, self.y, self.z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        self.shape = shape
        self.random = random
        self.tissue = np.zeros(shape, np.uint8)
        self.label = np.zeros(shape, np.uint8)

    def noise(self, scale: float) -> Array:
        """Smooth noise of unit variance with structures of about ``scale`` mm."""
        coarse = tuple(max(4, int(np.ceil(n * VOXEL / scale)) + 3) for n in self.shape)
        values = self.random.standard_normal(coarse).astype(np.float32)
        for axis, n in enumerate(self.shape):
            position = np.linspace(1, coarse[axis] - 2, n)
            values = _interpolate(values, position, axis)
        scaled: Array = values / values.std()
        return scaled

    def noise_2d(self, scale: float) -> Array:
        """Smooth noise over x and y."""
        coarse = [max(4, int(np.ceil(n * VOXEL / scale)) + 3) for n in self.shape[:2]]
        values = self.random.standard_normal((*coarse, 1)).astype(np.float32)
        for axis in (0, 1):
            values = _interpolate(values, np.linspace(1, coarse[axis] - 2, self.shape[axis]), axis)
        scaled: Array = values / values.std()
        return scaled

    def paint(self, where: Array, tissue: Tissue, label: int | None = None) -> None:
        """Writes a tissue, and a label (0 unless it is a target)."""
        self.tissue[where] = tissue
        self.label[where] = label or 0


def draw_pathology(random: np.random.Generator, kind: Literal["pleural", "abdominal"]) -> Pathology:
    """Fluids of a patient of the paper's two groups (section 3.1): pleural effusion, or ascites."""
    if kind == "pleural":
        sides: list[Side] = ["right", "left"]
        chosen = sides if random.random() < 0.3 else [sides[int(random.integers(2))]]
        return Pathology({side: float(random.uniform(250, 1400)) for side in chosen}, 0.0)
    return Pathology({}, float(random.uniform(4, 14)))


def build_torso(seed: int, pathology: Pathology) -> Anatomy:
    """Builds a patient from one seed.

    Args:
        seed: of everything that is drawn here.
        pathology: fluids.

    Returns:
        The anatomy; the same seed and pathology give the same voxels.
    """
    random = np.random.default_rng(seed)
    half_width, half_depth = random.uniform(145, 175), random.uniform(105, 128)
    exponent = float(random.uniform(2.2, 2.6))
    shape = (int(2 * half_width / VOXEL) + 8, int(2 * half_depth / VOXEL) + 8, 170)
    origin = (-(shape[0] - 1) / 2 * VOXEL, -(shape[1] - 1) / 2 * VOXEL, -260.0)
    canvas = _Canvas(shape, origin, random)
    drawn: dict[str, Any] = {
        "seed": seed, "half_width_mm": half_width, "half_depth_mm": half_depth,
        "effusion_ml": dict(pathology.effusion_ml), "ascites_mm": pathology.ascites_mm,
    }  # fmt: skip

    depth = _wall(canvas, half_width, half_depth, exponent, drawn)
    cavity = depth > 0
    dome = _diaphragm_height(canvas, half_width, half_depth)
    belly = cavity & (canvas.z < dome - 2)
    _bowel(canvas, belly)
    vessels = _great_vessels(canvas, half_depth)
    canvas.paint(vessels & cavity, Tissue.BLOOD)
    liver = _liver(canvas, belly & ~vessels, half_width, drawn)
    spleen = _spleen(canvas, belly & ~liver, depth, half_width, half_depth, drawn)
    fluid_rim = _ascites_rim(canvas, liver | spleen, belly, pathology.ascites_mm)
    liver &= ~fluid_rim
    spleen &= ~fluid_rim
    canvas.paint(liver, Tissue.LIVER, 3)
    _liver_vessels(canvas, liver)
    canvas.paint(spleen, Tissue.SPLEEN, 4)
    canvas.paint(fluid_rim, Tissue.ASCITES, 2)
    _gallbladder(canvas, liver)
    for side in ("right", "left"):
        _kidney(canvas, side, belly, half_depth, drawn)
    _chest(canvas, cavity & ~(canvas.z < dome - 2), dome, depth, pathology, half_depth)
    _skeleton(canvas, depth, half_depth, random)
    return Anatomy(canvas.tissue, canvas.label, origin, half_width, half_depth, exponent, drawn)


def _wall(canvas: _Canvas, half_width: float, half_depth: float, exponent: float, drawn: dict[str, Any]) -> Array:
    """Paints skin, fat and muscle; returns the depth below the inner face of the wall, mm (negative outside it)."""
    fat, muscle = canvas.random.uniform(5, 20), canvas.random.uniform(8, 13)
    drawn |= {"fat_mm": fat, "muscle_mm": muscle}
    radius = np.hypot(canvas.x, canvas.y)[:, :, 0]
    power = np.abs(canvas.x / half_width) ** exponent + np.abs(canvas.y / half_depth) ** exponent
    relative = np.maximum(power ** (1 / exponent), 1e-3)[:, :, 0]
    below_skin = (radius / relative - radius)[:, :, None].astype(np.float32)
    wavy = 1 + 0.12 * canvas.noise(70)
    layers = below_skin / wavy
    body = (below_skin >= 0) & np.ones_like(wavy, bool)
    canvas.paint(body, Tissue.SOFT)
    canvas.paint(body & (layers < 2 + fat + muscle), Tissue.MUSCLE)
    canvas.paint(body & (layers < 2 + fat), Tissue.FAT)
    canvas.paint(body & (below_skin < 2), Tissue.SKIN)
    depth: Array = (layers - (2 + fat + muscle)).astype(np.float32)
    return np.where(body, depth, np.float32(-1))


def _diaphragm_height(canvas: _Canvas, half_width: float, half_depth: float) -> Array:
    """Height of the diaphragm over x and y: two domes, the right one higher, falling to the costophrenic angles."""
    random = canvas.random
    relative = (np.abs(canvas.x / (half_width - 28)) ** 2.4 + np.abs(canvas.y / (half_depth - 25)) ** 2.4) ** (1 / 2.4)
    drop = random.uniform(75, 100) + random.uniform(5, 25) * np.clip(canvas.y / half_depth, 0, 1)
    left_lower = random.uniform(8, 20) / (1 + np.exp(-canvas.x / 15.0))
    middle = 14 * np.exp(-((canvas.x / 28.0) ** 2))
    height = -left_lower - middle - drop * np.clip(relative, 0, 1.2) ** random.uniform(2.6, 3.4)
    rough: Array = (height + 2.5 * canvas.noise_2d(45)).astype(np.float32)
    return rough


def _bowel(canvas: _Canvas, belly: Array) -> None:
    """Bowel loops and stomach: soft walls, bright content, and gas where it floats, in front."""
    front = belly & (canvas.y < 10) & (np.abs(canvas.x) < 110)
    loops = canvas.noise(22)
    canvas.paint(front & (loops > 0.2), Tissue.BOWEL)
    canvas.paint(front & (loops > 1.0) & (canvas.y < -25), Tissue.GAS)
    centre = (canvas.random.uniform(45, 70), canvas.random.uniform(-45, -20), canvas.random.uniform(-75, -55))
    stomach = belly & (_ellipsoid(canvas, centre, (42, 38, 45)) + 0.15 * canvas.noise(30) < 1)
    canvas.paint(stomach, Tissue.BOWEL)
    canvas.paint(stomach & (canvas.y < centre[1] - 12), Tissue.GAS)


def _great_vessels(canvas: _Canvas, half_depth: float) -> Array:
    """Aorta and inferior vena cava, in front of the spine."""
    front = 0.5 * half_depth - 26
    aorta = np.hypot(canvas.x - canvas.random.uniform(8, 16), canvas.y - front) < canvas.random.uniform(8, 11)
    cava = np.hypot(canvas.x + canvas.random.uniform(16, 24), canvas.y - front) < canvas.random.uniform(8, 12)
    return np.broadcast_to(aorta | cava, canvas.shape)


def _liver(canvas: _Canvas, room: Array, half_width: float, drawn: dict[str, Any]) -> Array:
    """What lies under the right dome and above a slanted surface that rises to the left, at the volume drawn."""
    random = canvas.random
    volume = random.uniform(1350, 2200)
    drawn["liver_ml"] = volume
    slope, bend = random.uniform(0.42, 0.62), random.uniform(0.0006, 0.0012)
    right = canvas.x + half_width  # mm from the right flank
    under = canvas.z - (slope * right + bend * right**2) - 0.10 * np.abs(canvas.y)
    under = under + 5 * canvas.noise(40)
    behind_spine = (canvas.y > 40) & (np.abs(canvas.x) < 45)
    return _at_volume(under, room & ~behind_spine & (canvas.x < 75), volume)


def _spleen(
    canvas: _Canvas, room: Array, depth: Array, half_width: float, half_depth: float, drawn: dict[str, Any]
) -> Array:
    """A crescent along the wall under the left dome, at the volume drawn."""
    random = canvas.random
    volume = random.uniform(105, 450)
    drawn["spleen_ml"] = volume
    centre = (half_width - 45, random.uniform(0.25, 0.45) * half_depth, random.uniform(-88, -72))
    near = 1.6 - _ellipsoid(canvas, centre, (30, 46, 56)) - 0.012 * np.maximum(depth - 30, 0)
    return _at_volume(near + 0.06 * canvas.noise(25), room & (canvas.x > 20), volume)


def _ascites_rim(canvas: _Canvas, organs: Array, belly: Array, thickness: float) -> Array:
    """Free fluid around liver and spleen, thicker at the back; takes its room from the organs and from what is next."""
    if thickness <= 0:
        return np.zeros(canvas.shape, bool)
    sigma = max(4.0, thickness)
    blurred = ndimage.gaussian_filter(organs.astype(np.float32), sigma / VOXEL, truncate=2.5)
    share = np.clip(0.5 + 0.45 * canvas.noise(60) + 0.4 * np.clip(canvas.y / 60, -1, 1), 0, 1.4)
    # Over the blurred step from 0 to 1 the fluid takes the band around 0.5 that is as wide as it is thick.
    half_band = 0.34 * share
    rim: Array = belly & (blurred > 0.5 - half_band) & (blurred < 0.5 + 0.5 * half_band)
    return rim


def _liver_vessels(canvas: _Canvas, liver: Array) -> None:
    """Hepatic veins and portal branches: tubes that start near the vena cava or the hilum and thin out."""
    random = canvas.random
    for start in ((-22.0, 10.0, -25.0), (-30.0, 0.0, -85.0)):
        for _ in range(4):
            point, radius = np.array(start), random.uniform(4.0, 6.0)
            heading = np.array([-1.0, random.uniform(-0.8, 0.8), random.uniform(-0.7, 0.7)])
            for _ in range(3):
                heading = heading / np.linalg.norm(heading)
                end = point + heading * random.uniform(22, 34)
                _tube(canvas, point, end, radius, liver)
                point, radius = end, 0.7 * radius
                heading = heading + 0.5 * random.standard_normal(3)


def _gallbladder(canvas: _Canvas, liver: Array) -> None:
    """A pear under the liver, below the middle of its right lobe."""
    below = liver & (canvas.x > -85) & (canvas.x < -35) & (canvas.y < 10)
    if not below.any():
        return
    z = float(np.nanmean(np.where(below.any(2), np.argmax(below, axis=2), np.nan))) * VOXEL + float(canvas.z.flat[0])
    centre = (float(canvas.random.uniform(-70, -50)), float(canvas.random.uniform(-45, -20)), z)
    pear = _ellipsoid(canvas, centre, (13, 15, 26)) < 1
    canvas.paint(pear & ~np.isin(canvas.tissue, (Tissue.OUTSIDE, Tissue.SKIN, Tissue.FAT, Tissue.MUSCLE)),
                 Tissue.GALLBLADDER)  # fmt: skip


def _kidney(canvas: _Canvas, side: Side, belly: Array, half_depth: float, drawn: dict[str, Any]) -> None:
    """A bean with sinus and pyramids in a shell of fat; its upper pole leans to the spine and to the back."""
    random = canvas.random
    sign = -1.0 if side == "right" else 1.0
    length, width, thick = random.uniform(92, 126), random.uniform(46, 58), random.uniform(40, 50)
    centre = np.array([
        sign * random.uniform(62, 76), 0.34 * half_depth + random.uniform(-6, 8),
        random.uniform(-150, -130) - (12 if side == "right" else 0),
    ])  # fmt: skip
    lean, tip = random.uniform(0.15, 0.3), random.uniform(0.05, 0.2)
    dx, dy, dz = canvas.x - centre[0], canvas.y - centre[1], canvas.z - centre[2]
    u = dx + sign * lean * dz  # the upper pole (dz > 0) lies nearer to the spine
    v = dy - tip * dz
    shape = (2 * u / width) ** 2 + (2 * v / thick) ** 2 + (2 * dz / length) ** 2
    hilum = ((u + sign * 0.55 * width) / 17) ** 2 + (v / 13) ** 2 + (dz / 20) ** 2
    bean = np.sqrt(shape) + 0.04 * canvas.noise(28) + 0.9 * np.exp(-hilum)
    drawn[f"{side}_kidney_ml"] = float((bean < 1).sum() * VOXEL**3 / 1000)
    canvas.paint(belly & (bean < 1.22), Tissue.FAT)
    kidney = belly & (bean < 1)
    canvas.paint(kidney, Tissue.KIDNEY, 5)
    sinus = (2 * (u + sign * 0.12 * width) / (0.48 * width)) ** 2 + (2 * v / (0.4 * thick)) ** 2
    sinus = np.sqrt(sinus + (2 * dz / (0.58 * length)) ** 2) + 0.18 * canvas.noise(12)
    canvas.paint(kidney & (sinus < 1), Tissue.SINUS, 5)
    for _ in range(9):
        angle, height = random.uniform(-1.9, 1.9), random.uniform(-0.3, 0.3)
        pyramid = ((u - sign * 0.30 * width * np.cos(angle)) / 6) ** 2 + ((dz - height * length) / 6) ** 2
        pyramid = pyramid + ((v - 0.30 * thick * np.sin(angle)) / 6) ** 2
        canvas.paint(kidney & (pyramid < 1) & (sinus > 1), Tissue.PYRAMID, 5)


def _chest(
    canvas: _Canvas, chest: Array, dome: Array, depth: Array, pathology: Pathology, half_depth: float
) -> None:  # fmt: skip
    """Diaphragm, lungs, what lies between them, and pleural fluid with collapsed lung in it."""
    thickness = canvas.random.uniform(3, 4.5)
    above = canvas.z - dome
    canvas.paint(chest & (above < thickness), Tissue.DIAPHRAGM)
    space = chest & (above >= thickness)
    between = np.hypot(canvas.x / 38.0, (canvas.y + 5) / (0.75 * half_depth)) < 1
    canvas.paint(space & between, Tissue.SOFT)
    lung = space & ~between
    canvas.paint(lung, Tissue.LUNG)
    sink = canvas.random.uniform(0.5, 0.9) * canvas.y - above - 0.25 * np.minimum(depth, 40) + 5 * canvas.noise(35)
    collapse = canvas.noise(24)
    for side, volume in pathology.effusion_ml.items():
        here = lung & ((canvas.x < 0) if side == "right" else (canvas.x > 0))
        share = canvas.random.uniform(0.15, 0.35)
        wet = _at_volume(sink, here, volume / (1 - share))
        canvas.paint(wet, Tissue.EFFUSION, 1)
        tongue = _at_volume(depth + 0.3 * above + 14 * collapse, wet & (depth > 18), share * volume / (1 - share))
        canvas.paint(tongue, Tissue.ATELECTASIS)


def _skeleton(canvas: _Canvas, depth: Array, half_depth: float, random: np.random.Generator) -> None:
    """Spine with discs, and ribs as oblique bands inside the wall, down to the costal margin."""
    back = 0.5 * half_depth
    column = np.hypot(canvas.x, canvas.y - back) < random.uniform(17, 20)
    arch = (np.abs(canvas.x) < 6) & (canvas.y > back) & (canvas.y < back + 42)
    disc = np.mod(canvas.z, 34.0) < 6
    canvas.paint((column | arch) & ~disc & (canvas.tissue > 0), Tissue.BONE)
    pitch, height, slope = random.uniform(22, 27), random.uniform(7, 9), random.uniform(25, 40)
    around = np.arctan2(canvas.y, np.abs(canvas.x))  # -pi/2 in front, pi/2 at the back
    phase = np.mod(canvas.z - slope * around + random.uniform(0, pitch), pitch)
    margin = -150 + 70 * np.clip(-around, -0.4, 1.2)
    ribs = (depth < -1.5) & (depth > -9.5) & (phase < height) & (canvas.z > margin) & (np.abs(canvas.x) > 15)
    canvas.paint(ribs & (canvas.tissue == Tissue.MUSCLE), Tissue.BONE)


def _at_volume(field: Array, room: Array, millilitres: float) -> Array:
    """The voxels of ``room`` with the highest values of ``field`` that make up a volume."""
    count = int(millilitres * 1000 / VOXEL**3)
    values = np.broadcast_to(field, room.shape)[room]
    if count >= values.size:
        return room.copy()
    limit = np.partition(values, values.size - count)[values.size - count]
    chosen: Array = room & (field >= limit)
    return chosen


def _ellipsoid(canvas: _Canvas, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Distance from a centre in units of the radii: 1 on the surface."""
    offsets = ((canvas.x - centre[0]) / radii[0], (canvas.y - centre[1]) / radii[1], (canvas.z - centre[2]) / radii[2])
    distance: Array = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2).astype(np.float32)
    return distance


def _tube(canvas: _Canvas, start: Array, end: Array, radius: float, inside: Array) -> None:
    """Paints blood within ``radius`` of a line segment, inside an organ whose label it keeps."""
    axes = (canvas.x.ravel(), canvas.y.ravel(), canvas.z.ravel())
    low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
    box = tuple(slice(*np.searchsorted(axis, (lo, hi))) for axis, lo, hi in zip(axes, low, high, strict=True))
    grid = np.stack(np.meshgrid(*(axis[span] for axis, span in zip(axes, box, strict=True)), indexing="ij"), -1)
    along = np.clip(((grid - start) @ (end - start)) / ((end - start) @ (end - start)), 0, 1)
    near = np.linalg.norm(grid - start - along[..., None] * (end - start), axis=-1) < radius
    part = canvas.tissue[box]
    part[near & inside[box]] = Tissue.BLOOD


def _interpolate(values: Array, position: Array, axis: int) -> Array:
    """Cubic (Catmull-Rom) interpolation along one axis, so that coarse noise becomes smooth."""
    base = np.clip(np.floor(position).astype(int), 1, values.shape[axis] - 3)
    t = (position - base).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    a, b, c, d = (values.take(base + shift, axis) for shift in (-1, 0, 1, 2))
    curve: Array = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve
