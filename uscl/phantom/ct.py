"""Computed tomography of an anatomy: Hounsfield units, contrast phase, beam texture and noise.

Hounsfield units are textbook values (unenhanced, arterial, portal venous); each patient's structures vary around them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uscl.phantom.canvas import Anatomy
from uscl.phantom.structures import STRUCTURES, Structure

Phase = Literal["plain", "arterial", "portal"]
PHASES: tuple[Phase, ...] = ("plain", "arterial", "portal")

_S = Structure
# Structure: unenhanced, arterial, portal venous.
HOUNSFIELD: dict[Structure, tuple[float, float, float]] = {
    _S.OUTSIDE: (-1000, -1000, -1000),
    _S.SKIN: (20, 25, 30),
    _S.FAT: (-105, -105, -105),
    _S.MUSCLE: (55, 58, 65),
    _S.RIB: (420, 425, 430),
    _S.VERTEBRA: (230, 235, 240),
    _S.DISC: (85, 85, 88),
    _S.LUNG_RIGHT: (-830, -825, -820),
    _S.LUNG_LEFT: (-830, -825, -820),
    _S.MEDIASTINUM: (-20, 0, 0),
    _S.HEART: (40, 190, 140),
    _S.VISCERAL_FAT: (-100, -98, -96),
    _S.LIVER: (57, 68, 108),
    _S.LIVER_VESSEL: (42, 80, 165),
    _S.SPLEEN: (47, 115, 118),
    _S.KIDNEY_RIGHT: (33, 165, 170),
    _S.KIDNEY_LEFT: (33, 165, 170),
    _S.SINUS_RIGHT: (-40, -35, -20),
    _S.SINUS_LEFT: (-40, -35, -20),
    _S.PYRAMID_RIGHT: (30, 75, 160),
    _S.PYRAMID_LEFT: (30, 75, 160),
    _S.GALLBLADDER: (10, 10, 12),
    _S.STOMACH: (25, 35, 40),
    _S.STOMACH_GAS: (-950, -950, -950),
    _S.DUODENUM: (35, 55, 75),
    _S.BOWEL: (32, 50, 70),
    _S.BOWEL_GAS: (-950, -950, -950),
    _S.AORTA: (40, 310, 155),
    _S.VENA_CAVA: (38, 70, 135),
    _S.PORTAL_VEIN: (40, 90, 175),
    _S.PANCREAS: (38, 100, 92),
    _S.OESOPHAGUS: (35, 45, 60),
    _S.ADRENAL_RIGHT: (25, 60, 70),
    _S.ADRENAL_LEFT: (25, 60, 70),
    _S.DIAPHRAGM: (50, 55, 60),
    _S.EFFUSION: (8, 8, 10),
    _S.ATELECTASIS: (40, 85, 85),
    _S.SEPTUM: (25, 35, 40),
    _S.ASCITES: (7, 7, 8),
    _S.SCALP: (10, 12, 15),
    _S.SKULL: (900, 900, 900),
    _S.CSF: (8, 8, 8),
    _S.GREY_MATTER: (38, 40, 43),
    _S.WHITE_MATTER: (29, 30, 32),
    _S.DEEP_GREY_MATTER: (38, 40, 43),
    _S.VENTRICLE: (7, 7, 7),
    _S.OEDEMA: (20, 20, 21),
    _S.TUMOUR_CORE: (22, 22, 24),
    _S.TUMOUR_RIM: (42, 60, 65),
}


def hounsfield_units(phase: Phase, random: np.random.Generator, spread: float = 6.0) -> NDArray[np.float32]:
    """One patient's Hounsfield units by structure id.

    Args:
        phase: of the contrast medium.
        random: varies each structure.
        spread: by so much, standard deviation in HU.
    """
    values = np.zeros(STRUCTURES, np.float32)
    for structure, units in HOUNSFIELD.items():
        values[structure] = units[PHASES.index(phase)] + (random.normal(0, spread) if structure else 0)
    return values


def render_ct(anatomy: Anatomy, phase: Phase, random: np.random.Generator) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Renders an anatomy as CT on its own grid.

    Args:
        anatomy: the patient.
        phase: of the contrast medium.
        random: source of everything drawn.

    Returns:
        Hounsfield units [x, y, z], and what was drawn.
    """
    values = hounsfield_units(phase, random)
    noise, blur, texture = random.uniform(6, 28), random.uniform(0.35, 0.8), random.uniform(2, 8)
    image = values[anatomy.structure]
    soft = (image > -200) & (image < 200)
    image = image + soft * texture * _rough(anatomy.structure.shape, random, 1.5)
    image = ndimage.gaussian_filter(image, blur)
    # Reconstruction correlates noise over about a voxel.
    image = image + noise * _rough(anatomy.structure.shape, random, random.uniform(0.4, 0.9))
    drawn = {"phase": phase, "noise_hu": noise, "blur_voxels": blur, "texture_hu": texture}
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), drawn


def _rough(shape: tuple[int, ...], random: np.random.Generator, sigma: float) -> NDArray[np.float32]:
    """Noise of unit variance, correlated over ``sigma`` voxels."""
    noise = ndimage.gaussian_filter(random.standard_normal(shape, dtype=np.float32), sigma)
    scaled: NDArray[np.float32] = (noise / noise.std()).astype(np.float32)
    return scaled
