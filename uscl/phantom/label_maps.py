"""Torsos around the organs of a real label map: its organs, our wall, ribs, diaphragm, lung and fluid.

Known maps: BTCV / Learn2Reg (13 organs), AMOS22 (15) and TotalSegmentator v2 (117). Whatever orientation and spacing
a map has is brought to 2 mm LPS, stair steps are smoothed, and a map that is mirrored (liver on the left) is turned
round.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from uscl.data.patches import Preprocessing
from uscl.data.volume import read_label
from uscl.errors import InputError
from uscl.phantom.canvas import VOXEL, Array, Canvas
from uscl.phantom.structures import Structure
from uscl.phantom.torso import (
    Pathology,
    TorsoAnatomy,
    Trunk,
    ascites_rim,
    find_kidneys,
    paint_bowel,
    paint_chest,
    paint_skeleton,
    paint_wall,
)

LabelMap = Literal["btcv", "amos", "totalsegmentator"]

_COMMON = {
    1: Structure.SPLEEN,
    2: Structure.KIDNEY_RIGHT,
    3: Structure.KIDNEY_LEFT,
    4: Structure.GALLBLADDER,
}
LABEL_MAPS: dict[LabelMap, dict[int, Structure]] = {
    "btcv": _COMMON
    | {
        5: Structure.OESOPHAGUS,
        6: Structure.LIVER,
        7: Structure.STOMACH,
        8: Structure.AORTA,
        9: Structure.VENA_CAVA,
        10: Structure.PORTAL_VEIN,
        11: Structure.PANCREAS,
        12: Structure.ADRENAL_RIGHT,
        13: Structure.ADRENAL_LEFT,
    },
    "amos": _COMMON
    | {
        5: Structure.OESOPHAGUS,
        6: Structure.LIVER,
        7: Structure.STOMACH,
        8: Structure.AORTA,
        9: Structure.VENA_CAVA,
        10: Structure.PANCREAS,
        11: Structure.ADRENAL_RIGHT,
        12: Structure.ADRENAL_LEFT,
        13: Structure.DUODENUM,
    },
    "totalsegmentator": _COMMON
    | {
        5: Structure.LIVER,
        6: Structure.STOMACH,
        7: Structure.PANCREAS,
        8: Structure.ADRENAL_RIGHT,
        9: Structure.ADRENAL_LEFT,
        15: Structure.OESOPHAGUS,
        19: Structure.DUODENUM,
        52: Structure.AORTA,
        63: Structure.VENA_CAVA,
        64: Structure.PORTAL_VEIN,
    },
}
"""Organs that are taken over, by the ids of each map; everything else in a map is left out."""

_NEEDED = (Structure.LIVER, Structure.SPLEEN)


def torso_from_labels(path: str | Path, label_map: LabelMap, seed: int, pathology: Pathology) -> TorsoAnatomy:
    """Builds a torso around the organs of a label map.

    Args:
        path: label file.
        label_map: which ids it uses.
        seed: of everything that is added.
        pathology: fluids.

    Raises:
        InputError: the file cannot be used, or has neither liver nor spleen under the ids of this map.
    """
    random = np.random.default_rng(seed)
    organs = _read_organs(Path(path), label_map)
    shape = (organs.shape[0], organs.shape[1])
    middle = np.array([(hit.min() + hit.max()) / 2 for hit in np.nonzero(organs.any(2))])
    extent = np.array([np.ptp(hit) for hit in np.nonzero(organs.any(2))]) / 2 * VOXEL
    top = int(np.nonzero(np.isin(organs, _NEEDED).any((0, 1)))[0].max())
    # The body's axis goes through the middle of the organs, the top of liver or spleen lies at z = 0.
    wall = 26.0
    trunk = Trunk(extent[0] + 8 + wall, max(extent[1] + 8 + wall, 0.62 * (extent[0] + wall)), random.uniform(2.2, 2.6))
    size = (int(2 * trunk.half_width / VOXEL) + 8, int(2 * trunk.half_depth / VOXEL) + 8, 170)
    origin = (-(size[0] - 1) / 2 * VOXEL, -(size[1] - 1) / 2 * VOXEL, -260.0)
    canvas = Canvas(size, origin, random)
    placed = _place(organs, size, middle, top)
    drawn: dict[str, Any] = {"seed": seed, "labels": Path(path).name, "label_map": label_map, "shape": shape}
    depth = paint_wall(canvas, trunk, drawn)
    inside = (depth > 0) | (placed > 0)
    dome = _dome(canvas, placed, trunk)
    belly = inside & (canvas.z < dome - 2)
    canvas.paint(belly, Structure.VISCERAL_FAT)
    paint_bowel(canvas, belly & (depth > 0))
    soft_organs = np.isin(placed, _NEEDED)
    rim = ascites_rim(canvas, soft_organs, belly, pathology.ascites_mm)
    canvas.structure[placed > 0] = placed[placed > 0]
    canvas.paint(rim & (soft_organs | (placed == 0)), Structure.ASCITES)
    _add_sinus(canvas)
    paint_chest(canvas, (depth > 0) & ~belly & (placed == 0), dome, depth, pathology, trunk)
    paint_skeleton(canvas, depth, trunk)
    return TorsoAnatomy(canvas.structure, origin, VOXEL, drawn, trunk, find_kidneys(canvas))


def _read_organs(path: Path, label_map: LabelMap) -> Array:
    """Structure ids of a map's organs, smoothed, at 2 mm in LPS, the liver on the right."""
    label = read_label(path)
    # Preprocessing brings to RAS; LPS is that with x and y reversed.
    prepared = Preprocessing(spacing=(VOXEL,) * 3).prepare_label(label)[::-1, ::-1]
    organs = _smooth(prepared, LABEL_MAPS[label_map])
    found = {structure: np.argwhere(organs == structure) for structure in _NEEDED}
    if not any(len(voxels) for voxels in found.values()):
        named = {label_id: s.name.lower() for label_id, s in LABEL_MAPS[label_map].items() if s in _NEEDED}
        raise InputError(
            f"{path}: no liver and no spleen under the ids of {label_map} ({named}); give another --label-map"
        )
    liver, spleen = (found[structure][:, 0].mean() if len(found[structure]) else None for structure in _NEEDED)
    if liver is not None and spleen is not None and liver > spleen:
        organs = organs[::-1]
    return np.ascontiguousarray(organs)


def _smooth(label: Array, structures: Mapping[int, Structure]) -> Array:
    """Each voxel gets the organ whose smoothed mask is highest there, if that is above one half."""
    best = np.full(label.shape, 0.5, np.float32)
    out = np.zeros(label.shape, np.uint8)
    for label_id, structure in structures.items():
        mask = label == label_id
        if not mask.any():
            continue
        box = tuple(slice(max(0, h.min() - 4), h.max() + 5) for h in np.nonzero(mask))
        share = ndimage.gaussian_filter(mask[box].astype(np.float32), 1.0)
        wins = share > best[box]
        out[box][wins] = structure
        best[box][wins] = share[wins]
    return out


def _place(organs: Array, size: tuple[int, int, int], middle: Array, top: int) -> Array:
    """Organs on the canvas: their middle at x = y = 0, their top at z = 0."""
    out = np.zeros(size, np.uint8)
    shift = [round((size[0] - 1) / 2 - middle[0]), round((size[1] - 1) / 2 - middle[1]), 130 - top]
    spans = []
    for n, m, s in zip(organs.shape, size, shift, strict=True):
        begin, end = max(0, s), min(m, n + s)
        spans.append((slice(begin, end), slice(begin - s, end - s)))
    out[tuple(to for to, _ in spans)] = organs[tuple(source for _, source in spans)]
    return out


def _dome(canvas: Canvas, placed: Array, trunk: Trunk) -> Array:
    """Height of the diaphragm: on top of liver, spleen and stomach, and smoothly down to the wall around them."""
    z = canvas.z.ravel()
    upper = np.isin(placed, (Structure.LIVER, Structure.SPLEEN, Structure.STOMACH))
    covered = upper.any(2)
    top = np.where(covered, z[placed.shape[2] - 1 - np.argmax(upper[:, :, ::-1], axis=2)], 0.0)
    x, y = canvas.x[:, :, 0] / (trunk.half_width - 26), canvas.y[:, :, 0] / (trunk.half_depth - 26)
    rim = (np.abs(x) ** 2.4 + np.abs(y) ** 2.4) > 0.93
    edge = float(top[covered].max()) - canvas.random.uniform(80, 105)
    value = np.where(covered, top, edge)
    height = np.zeros(covered.shape)
    weight = np.zeros(covered.shape)
    known = covered * 1.0 + (rim & ~covered) * 0.6
    for sigma, trust in ((10, 1.0), (30, 0.1), (80, 0.001)):
        share = ndimage.gaussian_filter(known, sigma / VOXEL)
        height += trust * ndimage.gaussian_filter(known * value, sigma / VOXEL)
        weight += trust * share
    smooth = ndimage.gaussian_filter(height / np.maximum(weight, 1e-9), 2)
    smooth = np.where(covered, np.maximum(smooth, top + VOXEL), smooth)
    dome: Array = ndimage.gaussian_filter(smooth, 1)[:, :, None].astype(np.float32)
    return np.maximum(dome, np.where(covered, top + VOXEL, -1e3)[:, :, None]).astype(np.float32)


def _add_sinus(canvas: Canvas) -> None:
    """Gives each kidney a bright core, which label maps leave out or count as kidney."""
    for side in ("RIGHT", "LEFT"):
        kidney = canvas.structure == Structure[f"KIDNEY_{side}"]
        if not kidney.any():
            continue
        box = tuple(slice(max(0, h.min() - 2), h.max() + 3) for h in np.nonzero(kidney))
        depth = ndimage.distance_transform_edt(kidney[box])
        canvas.structure[box][depth > 0.62 * depth.max()] = Structure[f"SINUS_{side}"]
