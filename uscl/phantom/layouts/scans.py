"""What the CT and MR layouts share: anatomies resampled to a scanner's grid, and patients at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from uscl.data.volume import Array, Volume
from uscl.errors import InputError
from uscl.phantom.canvas import Anatomy
from uscl.phantom.medium import Medium
from uscl.phantom.structures import Structure, lookup_table
from uscl.phantom.study import Patient
from uscl.phantom.torso import Pathology, TorsoAnatomy, build_torso, draw_pathology
from uscl.seeds import derive_seed


@dataclass(frozen=True)
class ScanStudy:
    """What a study of CT or MR scans is made of.

    Attributes:
        patients: over all splits, one scan each; as many as the experiments take.
        seed: of everything.
        coarsen: voxels are so many times as long along every axis, for studies that are made and read in seconds; 1 is
            the data set's own size.
    """

    patients: int = 8
    seed: int = 0
    coarsen: int = 1

    def __post_init__(self) -> None:
        if self.coarsen < 1:
            raise InputError(f"study.coarsen must be at least 1, found {self.coarsen}")


def is_mr(patient: Patient) -> bool:
    """Of three consecutive patients two get a CT and the third an MR."""
    return patient.position % 3 == 2


def scanned_torso(seed: int, spacing: tuple[float, float, float]) -> Anatomy:
    """A patient with or without fluid, on a scanner's grid.

    Args:
        seed: of the patient.
        spacing: of the scan, mm.
    """
    return resample(draw_torso(seed), spacing)


def draw_torso(seed: int) -> TorsoAnatomy:
    """A patient with or without fluid."""
    random = np.random.default_rng(derive_seed("scan pathology", seed))
    kind = random.integers(3)
    pathology = Pathology({}) if kind == 0 else draw_pathology(random, "pleural" if kind == 1 else "abdominal")
    return build_torso(seed, pathology)


def resample(anatomy: Anatomy, spacing: tuple[float, float, float]) -> Anatomy:
    """An anatomy on another grid with the same first voxel; its edges are interpolated, not stepped.

    The result's ``voxel`` is the mean spacing; the caller knows the exact one.
    """
    medium = Medium.of(anatomy, normals=False)
    shape = [int((n - 1) * anatomy.voxel / s) + 1 for n, s in zip(anatomy.structure.shape, spacing, strict=True)]
    axes = [torch.arange(n) * s + o for n, s, o in zip(shape, spacing, anatomy.origin, strict=True)]
    x, y = torch.meshgrid(axes[0], axes[1], indexing="ij")
    start = torch.stack([x, y, torch.full_like(x, float(axes[2][0]))], dim=-1)
    along = torch.tensor([0.0, 0.0, 1.0]).expand_as(start)
    slabs = []
    for slab_start, slab_along in zip(start.split(32), along.split(32), strict=True):
        ids, _ = medium.sample(slab_start, slab_along, torch.arange(shape[2]) * spacing[2])
        slabs.append(ids.to(torch.uint8))
    return replace(anatomy, structure=torch.cat(slabs).numpy(), voxel=float(np.mean(spacing)))


def as_stored(values: Array, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> Volume:
    """A volume stored with x to the right and y to the front (RAS), as most NIfTI converters leave scans."""
    far = [o + s * (n - 1) for o, s, n in zip(origin, spacing, values.shape, strict=True)]
    stored = np.ascontiguousarray(values[::-1, ::-1])
    return Volume(stored, spacing, (far[0], far[1], origin[2]), np.diag([-1.0, -1.0, 1.0]), distances="measured")


def labels_of(anatomy: Anatomy, ids: Mapping[Structure, int]) -> Array:
    """Label ids of an anatomy."""
    labels: Array = lookup_table(ids)[anatomy.structure]
    return labels
