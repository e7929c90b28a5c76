"""Procedural heads: scalp, skull, brain with folded cortex and ventricles, and a tumour with core, rim and oedema.

Coordinates are millimetres, LPS, the middle of the brain at 0. Sizes are those of textbooks (brain 140 x 170 x 130
mm, cortex 2-5 mm, lateral ventricles 20-60 ml together); the tumour follows what BraTS annotates in gliomas: a
necrotic core, an enhancing rim around it and oedema that spreads through white matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uscl.phantom.canvas import Anatomy, Array, Canvas, Point, at_volume, ellipsoid
from uscl.phantom.structures import Structure

VOXEL = 1.0
"""Edge of a voxel, mm."""


def build_brain(seed: int, tumour: bool = True) -> Anatomy:
    """Builds a head from one seed.

    Args:
        seed: of everything that is drawn here.
        tumour: with a glioma, or healthy.

    Returns:
        The anatomy at 1 mm; the same seed gives the same voxels.
    """
    random = np.random.default_rng(seed)
    radii = (random.uniform(64, 72), random.uniform(80, 90), random.uniform(60, 68))
    shape = (176, 212, 180)
    origin = (-(shape[0] - 1) / 2 * VOXEL, -(shape[1] - 1) / 2 * VOXEL, -100.0)
    canvas = Canvas(shape, origin, random, VOXEL)
    drawn: dict[str, Any] = {"seed": seed, "radii_mm": radii}
    # Distance below the surface of the brain, mm: cerebrum and cerebellum together.
    scale = sum(radii) / 3
    cerebrum = (1 - ellipsoid(canvas, (0, 0, 0), radii)) * scale + 1.5 * canvas.noise(35)
    cerebellum = (1 - ellipsoid(canvas, (0, 48, -52), (50, 36, 28))) * 36
    stem = 11 - np.hypot(canvas.x, canvas.y - 18 + 0.2 * (canvas.z + 60)) + 0 * canvas.z
    depth = np.maximum(np.maximum(cerebrum, cerebellum), np.where(canvas.z < -30, stem, -99))
    _shells(canvas, depth, random)
    brain = depth > 0
    _cortex(canvas, brain, depth)
    _deep(canvas, brain, random)
    if tumour:
        drawn |= _tumour(canvas, brain, radii)
    return Anatomy(canvas.structure, origin, VOXEL, drawn)


def _shells(canvas: Canvas, depth: Array, random: np.random.Generator) -> None:
    """Scalp, skull and the fluid around the brain."""
    csf, skull, scalp = random.uniform(1.5, 4), random.uniform(5, 8), random.uniform(4, 8)
    outer = depth + csf
    canvas.paint(outer > -(skull + scalp), Structure.SCALP)
    canvas.paint(outer > -skull, Structure.SKULL)
    canvas.paint(outer > 0, Structure.CSF)


def _cortex(canvas: Canvas, brain: Array, depth: Array) -> None:
    """Grey matter along surface and sulci, white matter inside, fluid in the sulci and between the hemispheres."""
    fold = np.abs(canvas.noise(11))
    reach = 14 + 5 * canvas.noise(50)
    sulcus = fold * 9 + np.maximum(depth - reach, 0) * 1.2  # grows with the distance from the nearest sulcus
    fissure = np.where((canvas.z > -8) | (np.abs(canvas.y) > 45), np.abs(canvas.x + 1.2 * canvas.noise(30)), 99)
    from_surface = np.minimum(np.minimum(depth, sulcus), fissure)
    thickness = 3.2 + 0.5 * canvas.noise(40)
    canvas.paint(brain, Structure.WHITE_MATTER)
    canvas.paint(brain & (from_surface < thickness), Structure.GREY_MATTER)
    canvas.paint(brain & ((sulcus < 0.8) | (fissure < 1.0)), Structure.CSF)


def _deep(canvas: Canvas, brain: Array, random: np.random.Generator) -> None:
    """Basal ganglia and thalamus, and the ventricles with fronts, bodies and horns."""
    wide = random.uniform(0.8, 1.4)
    rough = 0.08 * canvas.noise(16)
    for sign in (-1.0, 1.0):
        nuclei: list[tuple[Point, Point]] = [((sign * 26, -6, 2), (9, 20, 12)), ((sign * 13, 12, 4), (10, 15, 10))]
        for centre, radii in nuclei:
            canvas.paint(brain & (ellipsoid(canvas, centre, radii) + rough < 1), Structure.DEEP_GREY_MATTER)
        bend = sign * (9 + 0.004 * (canvas.y + 5) ** 2)
        body = np.hypot((canvas.x - bend) / (5.5 * wide), (canvas.z - 18 + 0.006 * (canvas.y + 5) ** 2) / (8 * wide))
        canvas.paint(brain & (body + rough < 1) & (np.abs(canvas.y - 5) < 42), Structure.VENTRICLE)
    third = (np.abs(canvas.x) < 2.2 * wide) & (np.abs(canvas.y - 4) < 14) & (np.abs(canvas.z - 1) < 11)
    canvas.paint(brain & third, Structure.VENTRICLE)


def _tumour(canvas: Canvas, brain: Array, radii: Point) -> dict[str, Any]:
    """A glioma in one hemisphere: oedema through white matter, enhancing rim, core."""
    random = canvas.random
    place = random.uniform(0.25, 0.62, 3) * random.choice([-1, 1], 3) * radii
    centre = (float(place[0]), float(place[1]), float(max(place[2], -0.3 * radii[2])))
    size = float(random.uniform(5, 90))
    stretch = random.uniform(0.75, 1.3, 3)
    away = ellipsoid(canvas, centre, (float(stretch[0]), float(stretch[1]), float(stretch[2])))
    radius = 10 * (0.75 * size / np.pi) ** (1 / 3)  # mm, of a ball of this volume
    bumpy = away + radius * (0.16 * canvas.noise(14) + 0.06 * canvas.noise(7))
    room = brain & (canvas.structure != Structure.VENTRICLE)
    whole = at_volume(-bumpy, room, size, VOXEL)
    spread = float(random.uniform(0.3, 2.5)) * size
    ease = away + 0.45 * radius * canvas.noise(18) + 8 * (canvas.structure == Structure.GREY_MATTER)
    canvas.paint(at_volume(-ease, room, size + spread, VOXEL), Structure.OEDEMA)
    canvas.paint(whole, Structure.TUMOUR_RIM)
    core = float(random.uniform(0.1, 0.65)) * size
    canvas.paint(at_volume(-bumpy - 0.3 * radius * canvas.noise(12), whole, core, VOXEL), Structure.TUMOUR_CORE)
    return {"tumour_centre_mm": centre, "tumour_ml": size, "oedema_ml": spread, "core_ml": core}
