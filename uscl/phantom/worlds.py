"""Label worlds to pre-train on: patches of torsos, of heads, and of random shapes, with the objects worth clicking on.

A world says what is where; :mod:`uscl.phantom.contrast` says how it looks. Every world is a cube on the grid that
models take, in the orientation that volumes are prepared to (RAS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from uscl.phantom.filters import interpolate
from uscl.phantom.structures import KIDNEYS, STRUCTURES, Structure

_S = Structure
TORSO_OBJECTS: dict[str, tuple[Structure, ...]] = {
    "liver": (_S.LIVER, _S.LIVER_VESSEL),
    "spleen": (_S.SPLEEN,),
    "right kidney": KIDNEYS[::2],
    "left kidney": KIDNEYS[1::2],
    "gallbladder": (_S.GALLBLADDER,),
    "stomach": (_S.STOMACH, _S.STOMACH_GAS),
    "duodenum": (_S.DUODENUM,),
    "aorta": (_S.AORTA,),
    "inferior vena cava": (_S.VENA_CAVA,),
    "pancreas": (_S.PANCREAS,),
    "oesophagus": (_S.OESOPHAGUS,),
    "heart": (_S.HEART,),
    "right lung": (_S.LUNG_RIGHT,),
    "left lung": (_S.LUNG_LEFT,),
    "spine": (_S.VERTEBRA, _S.DISC),
    "effusion": (_S.EFFUSION, _S.SEPTUM),
    "ascites": (_S.ASCITES,),
    "collapsed lung": (_S.ATELECTASIS,),
    "bowel": (_S.BOWEL, _S.BOWEL_GAS),
}
"""What is annotated in abdominal scans."""
_TUMOUR = (_S.OEDEMA, _S.TUMOUR_CORE, _S.TUMOUR_RIM)
HEAD_OBJECTS: dict[str, tuple[Structure, ...]] = {
    "whole tumour": _TUMOUR,
    "tumour core": _TUMOUR[1:],
    "enhancing tumour": _TUMOUR[2:],
    "necrosis": _TUMOUR[1:2],
    "oedema": _TUMOUR[:1],
    "ventricles": (_S.VENTRICLE,),
    "white matter": (_S.WHITE_MATTER,),
    "deep grey matter": (_S.DEEP_GREY_MATTER,),
    "brain": (_S.GREY_MATTER, _S.WHITE_MATTER, _S.DEEP_GREY_MATTER, _S.VENTRICLE, *_TUMOUR),
}
"""What is annotated in scans of heads."""


@dataclass(frozen=True)
class World:
    """A cube of structures and its objects.

    Attributes:
        structure: ids, uint8 [S, S, S], x to the right, y to the front, z to the head; on any device.
        objects: for each object the ids that it is made of, bool [ids].
        anatomical: whether the ids are those of :class:`Structure`.
        middle: the object that the patch was placed around, if it was.
    """

    structure: Tensor
    objects: dict[str, NDArray[np.bool_]]
    anatomical: bool
    middle: str | None = None

    def masks(self, names: Sequence[str]) -> Tensor:
        """Where objects are, bool [K, S, S, S]."""
        tables = torch.from_numpy(np.stack([self.objects[name] for name in names])).to(self.structure.device)
        return tables[:, self.structure.int()]


def members(objects: Mapping[str, tuple[Structure, ...]]) -> dict[str, NDArray[np.bool_]]:
    """Objects as tables over structure ids."""
    tables = {name: np.zeros(STRUCTURES, bool) for name in objects}
    for name, structures in objects.items():
        tables[name][list(structures)] = True
    return tables


def body_world(
    ids: Tensor,
    voxel: float,
    objects: dict[str, NDArray[np.bool_]],
    random: np.random.Generator,
    size: int = 128,
    spacing: float = 1.5,
) -> World:
    """A deformed patch of a torso or head.

    Half of the patches are centred on an object, the others on any voxel of the body: a model must not learn that
    what is meant lies in the middle.

    Args:
        ids: structures of the patient, uint8 [x, y, z], LPS; the world comes on its device.
        voxel: of the patient, mm.
        objects: tables over structure ids.
        random: source of everything drawn.
        size: edge S of the patch, voxels.
        spacing: of the patch, mm.
    """
    kept = np.arange(256, dtype=np.uint8)
    if random.random() < 0.4:  # many brain scans are published without the skull
        kept[[_S.SCALP, _S.SKULL]] = 0
    coarse = kept[ids[::4, ::4, ::4].cpu().numpy()]
    middle = None
    if random.random() < 0.5:
        counts = np.bincount(coarse.ravel(), minlength=256)
        present = [name for name, table in objects.items() if counts[: len(table)][table].any()]
        middle = present[int(random.integers(len(present)))]
        chosen = np.argwhere(objects[middle][coarse]) * 4
        centre = (chosen.min(0) + chosen.max(0)) / 2 + random.uniform(-8, 8, 3)
    else:
        inside = np.argwhere(coarse > 0) * 4
        centre = inside[int(random.integers(len(inside)))].astype(float)
    structure = _deformed(ids, centre, spacing / voxel, size, random)
    if not kept[1:].all():
        structure = torch.from_numpy(kept).to(ids.device)[structure.int()]
    return World(structure, objects, True, middle)


def _deformed(ids: Tensor, centre: NDArray[np.float64], step: float, size: int, random: np.random.Generator) -> Tensor:
    """A cube cut from an anatomy (LPS), turned, stretched and bent; RAS, 0 beyond the anatomy."""
    angles = random.normal(0, 0.12, 3)
    stretch = step * np.exp(random.normal(0, 0.10) + random.normal(0, 0.08, 3))
    matrix = _rotation(angles) * stretch * np.array([-1.0, -1.0, 1.0])
    line = (size - 1) * torch.linspace(-0.5, 0.5, 5)
    where = torch.from_numpy(random.normal(0, random.uniform(0, 5) * step, (3, 5, 5, 5)).astype(np.float32))
    for axis, at in enumerate(centre):
        for own in range(3):  # what is linear between the coarse points stays so between all
            where[axis] += (float(matrix[axis, own]) * line).reshape([-1 if a == own else 1 for a in range(3)])
        where[axis] = (where[axis] + float(at)) * 2 / (ids.shape[axis] - 1) - 1
    where = interpolate(where.flip(0).to(ids.device), size).permute(1, 2, 3, 0)[None]
    cut = F.grid_sample(ids.float()[None, None], where, mode="nearest", padding_mode="zeros", align_corners=True)
    return cut[0, 0].to(torch.uint8)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def shape_world(random: np.random.Generator, size: int = 128) -> World:
    """Random smooth regions with ellipsoids in them; every region is an object.

    Args:
        random: source of everything drawn.
        size: edge S of the patch, voxels; even.
    """
    half = size // 2
    regions, shapes = int(random.integers(3, 9)), int(random.integers(3, 12))
    coarse = torch.from_numpy(random.standard_normal((1, regions, *random.integers(3, 8, 3))).astype(np.float32))
    ids = interpolate(coarse[0], half).argmax(0)
    x, y, z = (torch.arange(half).reshape([-1 if a == axis else 1 for a in range(3)]) for axis in range(3))
    rough = torch.from_numpy(random.standard_normal((1, 1, 7, 7, 7)).astype(np.float32))
    rough = interpolate(rough[0, 0], half)
    for number in range(shapes):
        cx, cy, cz = random.uniform(0, half, 3)
        rx, ry, rz = np.exp(random.uniform(np.log(3), np.log(0.3 * half))) * random.uniform(0.6, 1.6, 3)
        away = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        ids[away.sqrt() + random.uniform(0, 0.3) * rough < 1] = regions + number
    if random.random() < 0.5:  # air around a body
        cx, cy, cz = random.uniform(0.35, 0.65, 3) * half
        rx, ry, rz = random.uniform(0.5, 0.9, 3) * half
        ids[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 > 1] = -1
    ids = (ids + 1).to(torch.uint8)
    structure = ids.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    objects = {f"shape {i}": np.arange(STRUCTURES) == i for i in range(1, regions + shapes + 1)}
    return World(structure, objects, anatomical=False)
