"""Magnetic resonance of an anatomy: T1, contrast-enhanced T1, T2 and FLAIR, with a bias field and Rician noise.

Signals follow the spin-echo and inversion-recovery equations from relaxation times at 1.5 T (Stanisz et al. 2005,
de Bazelaire et al. 2004 for abdominal organs; water-like fluids from textbooks); each patient's tissues vary around
them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uscl.phantom.canvas import Anatomy
from uscl.phantom.structures import STRUCTURES, Structure

Contrast = Literal["t1", "t1c", "t2", "flair"]
CONTRASTS: tuple[Contrast, ...] = ("t1", "t1c", "t2", "flair")

_S = Structure
_BLOOD, _WATER = (1440.0, 250.0, 0.9), (3500.0, 900.0, 1.0)
_KIDNEY, _LUNG, _GAS = (970.0, 87.0, 0.85), (800.0, 30.0, 0.08), (800.0, 30.0, 0.0)
# Structure: T1 ms, T2 ms, proton density relative to water.
RELAXATION: dict[Structure, tuple[float, float, float]] = {
    _S.OUTSIDE: _GAS,
    _S.SKIN: (600, 40, 0.5),
    _S.FAT: (290, 75, 0.95),
    _S.MUSCLE: (1010, 44, 0.8),
    _S.RIB: (550, 49, 0.2),
    _S.VERTEBRA: (550, 49, 0.6),
    _S.DISC: (1100, 60, 0.6),
    _S.LUNG_RIGHT: _LUNG,
    _S.LUNG_LEFT: _LUNG,
    _S.MEDIASTINUM: (500, 60, 0.8),
    _S.HEART: (1030, 50, 0.8),
    _S.VISCERAL_FAT: (300, 72, 0.9),
    _S.LIVER: (576, 46, 0.75),
    _S.LIVER_VESSEL: _BLOOD,
    _S.SPLEEN: (1050, 79, 0.8),
    _S.KIDNEY_RIGHT: _KIDNEY,
    _S.KIDNEY_LEFT: _KIDNEY,
    _S.SINUS_RIGHT: (320, 75, 0.9),
    _S.SINUS_LEFT: (320, 75, 0.9),
    _S.PYRAMID_RIGHT: (1410, 95, 0.9),
    _S.PYRAMID_LEFT: (1410, 95, 0.9),
    _S.GALLBLADDER: (2200, 600, 1.0),
    _S.STOMACH: (1500, 150, 0.85),
    _S.STOMACH_GAS: _GAS,
    _S.DUODENUM: (1100, 80, 0.8),
    _S.BOWEL: (1100, 90, 0.8),
    _S.BOWEL_GAS: _GAS,
    _S.AORTA: (1440, 40, 0.3),
    _S.VENA_CAVA: (1440, 60, 0.4),
    _S.PORTAL_VEIN: _BLOOD,
    _S.PANCREAS: (584, 46, 0.8),
    _S.OESOPHAGUS: (1000, 50, 0.8),
    _S.ADRENAL_RIGHT: (700, 55, 0.8),
    _S.ADRENAL_LEFT: (700, 55, 0.8),
    _S.DIAPHRAGM: (1000, 42, 0.7),
    _S.EFFUSION: _WATER,
    _S.ATELECTASIS: (1000, 60, 0.7),
    _S.SEPTUM: (1100, 60, 0.7),
    _S.ASCITES: _WATER,
    _S.SCALP: (350, 65, 0.85),
    _S.SKULL: (500, 20, 0.1),
    _S.CSF: (4200, 1900, 1.0),
    _S.GREY_MATTER: (1120, 95, 0.84),
    _S.WHITE_MATTER: (750, 75, 0.72),
    _S.DEEP_GREY_MATTER: (960, 82, 0.8),
    _S.VENTRICLE: (4200, 1900, 1.0),
    _S.OEDEMA: (1350, 150, 0.9),
    _S.TUMOUR_CORE: (2300, 350, 0.93),
    _S.TUMOUR_RIM: (1300, 120, 0.88),
}
# Repetition, echo and inversion time, ms.
_SEQUENCE: dict[Contrast, tuple[float, float, float | None]] = {
    "t1": (550, 12, None),
    "t1c": (550, 12, None),
    "t2": (4500, 95, None),
    "flair": (9000, 110, 2450),
}
# T1 after gadolinium, ms, of what takes it up.
_ENHANCED: dict[Structure, float] = {
    _S.TUMOUR_RIM: 330,
    _S.AORTA: 150,
    _S.VENA_CAVA: 200,
    _S.PORTAL_VEIN: 200,
    _S.LIVER_VESSEL: 220,
    _S.LIVER: 330,
    _S.SPLEEN: 380,
    _S.KIDNEY_RIGHT: 300,
    _S.KIDNEY_LEFT: 300,
    _S.PANCREAS: 330,
    _S.HEART: 300,
}


def tissue_signal(contrast: Contrast, random: np.random.Generator | None = None) -> NDArray[np.float32]:
    """Signal of every structure relative to the brightest possible.

    Args:
        contrast: which sequence.
        random: varies each tissue's relaxation by some per cent; None for the table's values.
    """
    repetition, echo, inversion = _SEQUENCE[contrast]
    signal = np.zeros(STRUCTURES, np.float32)
    for structure, (t1, t2, density) in RELAXATION.items():
        if contrast == "t1c":
            t1 = _ENHANCED.get(structure, t1)
        if random is not None:
            t1, t2, density = (value * random.lognormal(0, 0.06) for value in (t1, t2, density))
        recovered = 1 - np.exp(-repetition / t1)
        if inversion is not None:
            recovered = abs(1 - 2 * np.exp(-inversion / t1) + np.exp(-repetition / t1))
        signal[structure] = density * recovered * np.exp(-echo / t2)
    return signal


def render_mr(
    anatomy: Anatomy, contrast: Contrast, random: np.random.Generator
) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """Renders an anatomy as MR on its own grid.

    Args:
        anatomy: the patient.
        contrast: which sequence.
        random: source of everything drawn.

    Returns:
        Intensities [x, y, z], up to about 1000 for the brightest tissue, and what was drawn.
    """
    signal = tissue_signal(contrast, random)
    signal = 1000 * signal / signal.max()
    blur, noise, strength = random.uniform(0.35, 0.7), random.uniform(8, 35), random.uniform(0.05, 0.3)
    shape = anatomy.structure.shape
    image = ndimage.gaussian_filter(signal[anatomy.structure], blur) * _bias_field(shape, strength, random)
    real = image + noise * random.standard_normal(shape, dtype=np.float32)
    imaginary = noise * random.standard_normal(shape, dtype=np.float32)
    drawn = {"contrast": contrast, "noise": noise, "blur_voxels": blur, "bias": strength}
    return np.rint(np.hypot(real, imaginary)).astype(np.uint16), drawn


def _bias_field(shape: tuple[int, ...], strength: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A smooth field around 1, as receive coils make it: a random polynomial of second order."""
    x, y, z = (
        np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )
    a, b, c, d, e, f = random.normal(0, 1, 6)
    field: NDArray[np.float32] = a * x + b * y + c * z + d * x * y + e * y * z + f * (x * x - 0.5)
    gain: NDArray[np.float32] = np.exp(strength * field / np.abs(field).max()).astype(np.float32)
    return gain
