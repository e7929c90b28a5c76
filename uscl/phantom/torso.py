"""Procedural torsos: chest and abdomen of a patient, different for every seed.

Coordinates are millimetres, LPS; the body's axis runs along z at x = y = 0 and the top of the right diaphragm dome lies
near z = 0. Organs are implicit shapes with smooth noise on their surfaces; those with a published volume range are
cut at exactly the voxels that make up the volume that was drawn.

Ranges: liver 1.35-2.2 l, spleen 105-450 ml, kidneys 9-13 cm and 120-260 ml, ribs 22-27 mm apart and 7-9 mm high,
abdominal wall 15-35 mm, diaphragm 3-4.5 mm (textbook values; medians of the Learn2Reg abdomen label maps lie inside
them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from uscl.phantom.canvas import VOXEL, Anatomy, Array, Canvas, Point, at_volume, ellipsoid, tube
from uscl.phantom.structures import Structure

Side = Literal["right", "left"]
View = Literal["pleural", "abdominal"]
SIDES: tuple[Side, Side] = ("right", "left")


@dataclass(frozen=True)
class Pathology:
    """Which fluids a patient has.

    Attributes:
        effusion_ml: pleural effusion on each side that has one, millilitres.
        ascites_mm: thickness of the ascites around liver and spleen; 0 for none.
        complex_effusion: septa cross the effusion.
        atelectasis: share of the effusion's place that collapsed lung takes.
    """

    effusion_ml: dict[Side, float]
    ascites_mm: float = 0.0
    complex_effusion: bool = False
    atelectasis: float = 0.25


@dataclass(frozen=True)
class Trunk:
    """The outline of a body: a superellipse, the same at every height.

    Attributes:
        half_width: along x, mm.
        half_depth: along y, mm.
        exponent: 2 is an ellipse; larger is squarer.
    """

    half_width: float
    half_depth: float
    exponent: float

    def skin_distance(self, x: float, y: float) -> float:
        """Distance from the body's axis to the skin along a unit vector, mm."""
        power = abs(x / self.half_width) ** self.exponent + abs(y / self.half_depth) ** self.exponent
        return float(power ** (-1 / self.exponent))


@dataclass(frozen=True)
class TorsoAnatomy(Anatomy):
    """A torso whose diaphragm reaches up to z = 0.

    Attributes:
        trunk: where its skin is.
        kidneys: the middle of each kidney that it has, mm; what a sonographer looks for.
    """

    trunk: Trunk = Trunk(160, 115, 2.4)
    kidneys: dict[Side, Point] = field(default_factory=dict)


def draw_pathology(random: np.random.Generator, view: View) -> Pathology:
    """Fluids of a patient of the paper's two groups (section 3.1): pleural effusion, or ascites."""
    if view == "abdominal":
        return Pathology({}, float(random.uniform(4, 14)))
    chosen = SIDES if random.random() < 0.3 else (SIDES[int(random.integers(2))],)
    volumes: dict[Side, float] = {side: float(random.uniform(250, 1400)) for side in chosen}
    return Pathology(volumes, 0.0, bool(random.random() < 0.3), float(random.uniform(0.15, 0.35)))


def build_torso(seed: int, pathology: Pathology) -> TorsoAnatomy:
    """Builds a patient from one seed.

    Args:
        seed: of everything that is drawn here.
        pathology: fluids.

    Returns:
        The anatomy; the same seed and pathology give the same voxels.
    """
    random = np.random.default_rng(seed)
    trunk = Trunk(random.uniform(145, 175), random.uniform(105, 128), random.uniform(2.2, 2.6))
    shape = (int(2 * trunk.half_width / VOXEL) + 8, int(2 * trunk.half_depth / VOXEL) + 8, 170)
    origin = (-(shape[0] - 1) / 2 * VOXEL, -(shape[1] - 1) / 2 * VOXEL, -260.0)
    canvas = Canvas(shape, origin, random)
    drawn: dict[str, Any] = {
        "seed": seed,
        "half_width_mm": trunk.half_width,
        "half_depth_mm": trunk.half_depth,
        "effusion_ml": dict(pathology.effusion_ml),
        "ascites_mm": pathology.ascites_mm,
        "complex_effusion": pathology.complex_effusion,
    }
    depth = paint_wall(canvas, trunk, drawn)
    dome = _diaphragm_height(canvas, trunk)
    belly = (depth > 0) & (canvas.z < dome - 2)
    canvas.paint(belly, Structure.VISCERAL_FAT)
    paint_bowel(canvas, belly)
    vessels = _great_vessels(canvas, belly, trunk)
    liver = _liver(canvas, belly & ~vessels, trunk, drawn)
    spleen = _spleen(canvas, belly & ~liver, depth, trunk, drawn)
    rim = ascites_rim(canvas, liver | spleen, belly, pathology.ascites_mm)
    liver &= ~rim
    spleen &= ~rim
    canvas.paint(liver, Structure.LIVER)
    canvas.paint(spleen, Structure.SPLEEN)
    canvas.paint(rim, Structure.ASCITES)
    _liver_vessels(canvas, liver)
    _upper_abdomen(canvas, belly, liver, trunk)
    for side in SIDES:
        _kidney(canvas, side, belly, trunk, drawn)
    paint_chest(canvas, (depth > 0) & ~belly, dome, depth, pathology, trunk)
    paint_skeleton(canvas, depth, trunk)
    return TorsoAnatomy(canvas.structure, origin, VOXEL, drawn, trunk, find_kidneys(canvas))


def find_kidneys(canvas: Canvas) -> dict[Side, Point]:
    """The middle of each kidney, mm."""
    found: dict[Side, Point] = {}
    for side in SIDES:
        voxels = np.nonzero(canvas.structure == Structure[f"KIDNEY_{side.upper()}"])
        if voxels[0].size:
            x, y, z = (float(v.mean() * VOXEL + o) for v, o in zip(voxels, canvas.origin, strict=True))
            found[side] = (x, y, z)
    return found


def paint_wall(canvas: Canvas, trunk: Trunk, drawn: dict[str, Any]) -> Array:
    """Paints skin, fat and muscle; returns the depth below the inner face of the wall, mm (-1 outside the body)."""
    fat, muscle = canvas.random.uniform(5, 20), canvas.random.uniform(8, 13)
    drawn |= {"fat_mm": fat, "muscle_mm": muscle}
    below_skin = depth_below_skin(canvas, trunk)
    layers = below_skin / (1 + 0.12 * canvas.noise(70))
    body = np.broadcast_to(below_skin >= 0, canvas.shape)
    canvas.paint(body & (layers < 2 + fat + muscle), Structure.MUSCLE)
    canvas.paint(body & (layers < 2 + fat), Structure.FAT)
    canvas.paint(body & (below_skin < 2), Structure.SKIN)
    return np.where(body, (layers - (2 + fat + muscle)).astype(np.float32), np.float32(-1))


def depth_below_skin(canvas: Canvas, trunk: Trunk) -> Array:
    """Distance to the skin along the line from the body's axis, mm [x, y, 1]; negative outside."""
    radius = np.hypot(canvas.x, canvas.y)
    x, y = np.abs(canvas.x / trunk.half_width), np.abs(canvas.y / trunk.half_depth)
    power = x**trunk.exponent + y**trunk.exponent
    relative = np.maximum(power ** (1 / trunk.exponent), 1e-3)
    depth: Array = (radius / relative - radius).astype(np.float32)
    return depth


def ascites_rim(canvas: Canvas, organs: Array, belly: Array, thickness: float) -> Array:
    """Free fluid around liver and spleen, thicker at the back; takes its room from the organs and from what is next."""
    if thickness <= 0:
        return np.zeros(canvas.shape, bool)
    blurred = ndimage.gaussian_filter(organs.astype(np.float32), max(4.0, thickness) / VOXEL, truncate=2.5)
    share = np.clip(0.5 + 0.45 * canvas.noise(60) + 0.4 * np.clip(canvas.y / 60, -1, 1), 0, 1.4)
    # Across the blurred step from 0 to 1 the fluid takes the band around 0.5.
    half_band = 0.34 * share
    rim: Array = belly & (blurred > 0.5 - half_band) & (blurred < 0.5 + 0.5 * half_band)
    return rim


def paint_chest(canvas: Canvas, chest: Array, dome: Array, depth: Array, pathology: Pathology, trunk: Trunk) -> None:
    """Diaphragm, lungs, heart and what lies around it, and pleural fluid with collapsed lung and septa in it."""
    random = canvas.random
    thickness = random.uniform(3, 4.5)
    above = canvas.z - dome
    canvas.paint(chest & (above < thickness), Structure.DIAPHRAGM)
    space = chest & (above >= thickness)
    between = np.hypot(canvas.x / 38.0, (canvas.y + 5) / (0.75 * trunk.half_depth)) < 1
    canvas.paint(space & between, Structure.MEDIASTINUM)
    centre = (random.uniform(18, 32), random.uniform(-45, -30), random.uniform(25, 45))
    heart = space & (ellipsoid(canvas, centre, (48, 38, 44)) + 0.05 * canvas.noise(40) < 1)
    canvas.paint(heart, Structure.HEART)
    lung = space & ~between & ~heart
    canvas.paint(lung & (canvas.x < 0), Structure.LUNG_RIGHT)
    canvas.paint(lung & (canvas.x >= 0), Structure.LUNG_LEFT)
    if not pathology.effusion_ml:
        return
    sink = random.uniform(0.5, 0.9) * canvas.y - above - 0.25 * np.minimum(depth, 40) + 5 * canvas.noise(35)
    collapse, sheets = canvas.noise(24), canvas.noise(30)
    share = pathology.atelectasis
    for side, volume in pathology.effusion_ml.items():
        here = lung & ((canvas.x < 0) if side == "right" else (canvas.x >= 0))
        wet = at_volume(sink, here, volume / (1 - share))
        canvas.paint(wet, Structure.EFFUSION)
        if pathology.complex_effusion:
            canvas.paint(wet & (np.abs(sheets) < 0.07), Structure.SEPTUM)
        tongue = at_volume(depth + 0.3 * above + 14 * collapse, wet & (depth > 18), share * volume / (1 - share))
        canvas.paint(tongue, Structure.ATELECTASIS)


def paint_skeleton(canvas: Canvas, depth: Array, trunk: Trunk, margin: float = -150.0) -> None:
    """Spine with discs, and ribs as oblique bands inside the wall, down to the costal margin (mm, z)."""
    random, back = canvas.random, 0.5 * trunk.half_depth
    body = canvas.structure > 0
    column = np.hypot(canvas.x, canvas.y - back) < random.uniform(17, 20)
    arch = (np.abs(canvas.x) < 6) & (canvas.y > back) & (canvas.y < back + 42)
    disc = np.mod(canvas.z, 34.0) < 6
    canvas.paint((column | arch) & ~disc & body, Structure.VERTEBRA)
    canvas.paint(column & disc & body, Structure.DISC)
    pitch, height, slope = random.uniform(22, 27), random.uniform(7, 9), random.uniform(25, 40)
    around = np.arctan2(canvas.y, np.abs(canvas.x))  # -pi/2 in front, pi/2 at the back
    phase = np.mod(canvas.z - slope * around + random.uniform(0, pitch), pitch)
    lowest = margin + 70 * np.clip(-around, -0.4, 1.2)
    ribs = (depth < -1.5) & (depth > -9.5) & (phase < height) & (canvas.z > lowest) & (np.abs(canvas.x) > 15)
    canvas.paint(ribs & (canvas.structure == Structure.MUSCLE), Structure.RIB)


def _diaphragm_height(canvas: Canvas, trunk: Trunk) -> Array:
    """Height of the diaphragm over x and y: two domes, the right one higher, falling to the costophrenic angles."""
    random = canvas.random
    x, y = np.abs(canvas.x / (trunk.half_width - 28)), np.abs(canvas.y / (trunk.half_depth - 25))
    relative = (x**2.4 + y**2.4) ** (1 / 2.4)
    drop = random.uniform(75, 100) + random.uniform(5, 25) * np.clip(canvas.y / trunk.half_depth, 0, 1)
    left_lower = random.uniform(8, 20) / (1 + np.exp(-canvas.x / 15.0))
    middle = 14 * np.exp(-((canvas.x / 28.0) ** 2))
    height = -left_lower - middle - drop * np.clip(relative, 0, 1.2) ** random.uniform(2.6, 3.4)
    rough: Array = (height + 2.5 * canvas.noise(45, flat=True)).astype(np.float32)
    return rough


def paint_bowel(canvas: Canvas, belly: Array) -> None:
    """Bowel loops and stomach: soft walls, content, and gas where it floats, in front."""
    random = canvas.random
    front = belly & (canvas.y < 10) & (np.abs(canvas.x) < 110)
    loops = canvas.noise(22)
    canvas.paint(front & (loops > 0.2), Structure.BOWEL)
    canvas.paint(front & (loops > 1.0) & (canvas.y < -25), Structure.BOWEL_GAS)
    centre = (random.uniform(45, 70), random.uniform(-45, -20), random.uniform(-75, -55))
    stomach = belly & (ellipsoid(canvas, centre, (42, 38, 45)) + 0.15 * canvas.noise(30) < 1)
    canvas.paint(stomach, Structure.STOMACH)
    canvas.paint(stomach & (canvas.y < centre[1] - random.uniform(5, 25)), Structure.STOMACH_GAS)


def _great_vessels(canvas: Canvas, belly: Array, trunk: Trunk) -> Array:
    """Aorta, inferior vena cava and, up to the hiatus, the oesophagus, in front of the spine."""
    random = canvas.random
    front = 0.5 * trunk.half_depth - 26
    aorta = np.hypot(canvas.x - random.uniform(8, 16), canvas.y - front) < random.uniform(8, 11)
    cava = np.hypot(canvas.x + random.uniform(16, 24), canvas.y - front) < random.uniform(8, 12)
    gullet = (np.hypot(canvas.x - 4, canvas.y - front + 18) < 8) & (canvas.z > -50)
    for mask, structure in ((aorta, Structure.AORTA), (cava, Structure.VENA_CAVA), (gullet, Structure.OESOPHAGUS)):
        canvas.paint(belly & mask, structure)
    return np.broadcast_to(aorta | cava | gullet, canvas.shape)


def _liver(canvas: Canvas, room: Array, trunk: Trunk, drawn: dict[str, Any]) -> Array:
    """What lies under the right dome and above a slanted surface that rises to the left, at the volume drawn."""
    random = canvas.random
    drawn["liver_ml"] = volume = random.uniform(1350, 2200)
    slope, bend = random.uniform(0.42, 0.62), random.uniform(0.0006, 0.0012)
    right = canvas.x + trunk.half_width  # mm from the right flank
    under = canvas.z - (slope * right + bend * right**2) - 0.10 * np.abs(canvas.y) + 5 * canvas.noise(40)
    behind_spine = (canvas.y > 40) & (np.abs(canvas.x) < 45)
    return at_volume(under, room & ~behind_spine & (canvas.x < 75), volume)


def _spleen(canvas: Canvas, room: Array, depth: Array, trunk: Trunk, drawn: dict[str, Any]) -> Array:
    """A crescent along the wall under the left dome, at the volume drawn."""
    random = canvas.random
    drawn["spleen_ml"] = volume = random.uniform(105, 450)
    centre = (trunk.half_width - 45, random.uniform(0.25, 0.45) * trunk.half_depth, random.uniform(-88, -72))
    near = 1.6 - ellipsoid(canvas, centre, (30, 46, 56)) - 0.012 * np.maximum(depth - 30, 0)
    return at_volume(near + 0.06 * canvas.noise(25), room & (canvas.x > 20), volume)


def _liver_vessels(canvas: Canvas, liver: Array) -> None:
    """Hepatic veins and portal branches: tubes that start near the vena cava or the hilum and thin out."""
    random = canvas.random
    for start in ((-22.0, 10.0, -25.0), (-30.0, 0.0, -85.0)):
        for _ in range(4):
            point, radius = np.array(start), random.uniform(4.0, 6.0)
            heading = np.array([-1.0, random.uniform(-0.8, 0.8), random.uniform(-0.7, 0.7)])
            for _ in range(3):
                heading = heading / np.linalg.norm(heading)
                end = point + heading * random.uniform(22, 34)
                tube(canvas, point, end, radius, liver, Structure.LIVER_VESSEL)
                point, radius = end, 0.7 * radius
                heading = heading + 0.5 * random.standard_normal(3)


def _upper_abdomen(canvas: Canvas, belly: Array, liver: Array, trunk: Trunk) -> None:
    """Gallbladder under the liver; duodenum, pancreas, portal vein and adrenal glands between liver and kidneys."""
    random = canvas.random
    under = liver & (canvas.x > -85) & (canvas.x < -35) & (canvas.y < 10)
    soft = np.isin(canvas.structure, (Structure.VISCERAL_FAT, Structure.BOWEL, Structure.BOWEL_GAS)) & belly
    if under.any():
        lowest = np.where(under.any(2), np.argmax(under, axis=2), 0)
        z = float(lowest[lowest > 0].mean()) * VOXEL + canvas.origin[2]
        pear = ellipsoid(canvas, (random.uniform(-70, -50), random.uniform(-45, -20), z), (13, 15, 26)) < 1
        canvas.paint(belly & pear, Structure.GALLBLADDER)
    front, height = 0.5 * trunk.half_depth - 48, random.uniform(-118, -100)
    loop = np.hypot(np.hypot(canvas.x + 38, canvas.z - height + 22) - 22, canvas.y - front) < 11
    canvas.paint(soft & loop & (canvas.x < -25), Structure.DUODENUM)
    bend = front - 0.002 * (canvas.x - 20) ** 2 + 0.12 * np.maximum(canvas.x, 0)
    rise = height + 0.22 * (canvas.x + 20)
    thick = random.uniform(8, 12) - 0.03 * np.abs(canvas.x)
    gland = np.hypot(canvas.y - bend, canvas.z - rise) + 1.5 * canvas.noise(15) < thick
    canvas.paint(soft & gland & (canvas.x > -38) & (canvas.x < 85), Structure.PANCREAS)
    start, end = np.array([5.0, front + 6, height]), np.array([-38.0, front - 8, height + 28])
    tube(canvas, start, end, 6.5, soft, Structure.PORTAL_VEIN)
    for x, structure in ((-42.0, Structure.ADRENAL_RIGHT), (38.0, Structure.ADRENAL_LEFT)):
        centre = (x, 0.34 * trunk.half_depth, random.uniform(-88, -78))
        limbs = ellipsoid(canvas, centre, (4, 9, 13)) < 1
        canvas.paint(belly & ~liver & limbs & (canvas.structure != Structure.SPLEEN), structure)


def _kidney(canvas: Canvas, side: Side, belly: Array, trunk: Trunk, drawn: dict[str, Any]) -> None:
    """A bean with sinus and pyramids in a shell of fat; its upper pole leans to the spine and to the back."""
    random = canvas.random
    sign = -1.0 if side == "right" else 1.0
    names = ("KIDNEY", "SINUS", "PYRAMID")
    kidney, sinus, pyramid = (Structure[f"{name}_{side.upper()}"] for name in names)
    length, width, thick = random.uniform(96, 130), random.uniform(52, 66), random.uniform(45, 57)
    centre = (
        sign * random.uniform(62, 76),
        0.34 * trunk.half_depth + random.uniform(-6, 8),
        random.uniform(-150, -130) - (12 if side == "right" else 0),
    )
    lean, tip = random.uniform(0.15, 0.3), random.uniform(0.05, 0.2)
    box = canvas.box(centre, 0.75 * length)
    dx, dy, dz = canvas.offsets(centre, box)
    rough, fine = canvas.noise(28)[box], canvas.noise(12)[box]
    u, v = dx + sign * lean * dz, dy - tip * dz  # the upper pole (dz > 0) lies nearer to the spine
    round_ = np.sqrt((2 * u / width) ** 2 + (2 * v / thick) ** 2 + (2 * dz / length) ** 2)
    hilum = ((u + sign * 0.55 * width) / 17) ** 2 + (v / 13) ** 2 + (dz / 20) ** 2
    bean = round_ + 0.04 * rough + 0.9 * np.exp(-hilum)
    part, room = canvas.structure[box], belly[box]
    part[room & (bean < 1.22)] = Structure.VISCERAL_FAT
    inside = room & (bean < 1)
    part[inside] = kidney
    drawn[f"{side}_kidney_ml"] = float(inside.sum() * VOXEL**3 / 1000)
    core = (2 * (u + sign * 0.12 * width) / (0.48 * width)) ** 2 + (2 * v / (0.4 * thick)) ** 2
    core = np.sqrt(core + (2 * dz / (0.58 * length)) ** 2) + 0.18 * fine
    part[inside & (core < 1)] = sinus
    for _ in range(9):
        angle, height = random.uniform(-1.9, 1.9), random.uniform(-0.3, 0.3)
        cone = ((u - sign * 0.30 * width * np.cos(angle)) / 6) ** 2 + ((dz - height * length) / 6) ** 2
        cone = cone + ((v - 0.30 * thick * np.sin(angle)) / 6) ** 2
        part[inside & (cone < 1) & (core > 1)] = pyramid
