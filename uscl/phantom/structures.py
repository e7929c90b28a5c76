"""What a phantom is made of, and what each structure does to ultrasound, X-rays and magnetic resonance.

One volume of structure ids carries the anatomy; everything else is looked up: acoustics here, Hounsfield units in
:mod:`uscl.phantom.ct`, relaxation times in :mod:`uscl.phantom.mr`, and label ids in the layout that is written.

Impedance, attenuation and echogenicity follow published values where there are any (Diagnostics 2023;13:855, table 4;
the scenes of Burger et al. 2013 and LOTUS 2023); water 1.48 MRayl bounds serous fluid from below. Echogenicity is in
dB of the envelope relative to liver; its order is textbook radiology (spleen >= liver > renal cortex, bright sinus and
diaphragm, black fluid), the numbers are ours and are varied per sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Structure(IntEnum):
    """Ids in an anatomy volume. 0 is what lies outside the body: air, and coupling gel under the probe."""

    OUTSIDE = 0
    # trunk
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    RIB = 4
    VERTEBRA = 5
    DISC = 6
    LUNG_RIGHT = 7
    LUNG_LEFT = 8
    MEDIASTINUM = 9
    HEART = 10
    VISCERAL_FAT = 11
    LIVER = 12
    LIVER_VESSEL = 13
    SPLEEN = 14
    KIDNEY_RIGHT = 15
    KIDNEY_LEFT = 16
    SINUS_RIGHT = 17
    SINUS_LEFT = 18
    PYRAMID_RIGHT = 19
    PYRAMID_LEFT = 20
    GALLBLADDER = 21
    STOMACH = 22
    STOMACH_GAS = 23
    DUODENUM = 24
    BOWEL = 25
    BOWEL_GAS = 26
    AORTA = 27
    VENA_CAVA = 28
    PORTAL_VEIN = 29
    PANCREAS = 30
    OESOPHAGUS = 31
    ADRENAL_RIGHT = 32
    ADRENAL_LEFT = 33
    DIAPHRAGM = 34
    EFFUSION = 35
    ATELECTASIS = 36
    SEPTUM = 37
    ASCITES = 38
    # head
    SCALP = 40
    SKULL = 41
    CSF = 42
    GREY_MATTER = 43
    WHITE_MATTER = 44
    DEEP_GREY_MATTER = 45
    VENTRICLE = 46
    OEDEMA = 47
    TUMOUR_CORE = 48
    TUMOUR_RIM = 49


STRUCTURES = max(Structure) + 1
"""Length of a look-up table over all ids."""


class Acoustics(NamedTuple):
    """Impedance in MRayl, attenuation in dB / cm / MHz (one way), echogenicity in dB relative to liver."""

    impedance: float
    attenuation: float
    echogenicity: float


_LUNG = Acoustics(0.26, 40.0, -6.0)
_GAS = Acoustics(0.0004, 12.0, -60.0)
_BLOOD = Acoustics(1.61, 0.18, -30.0)
_CORTEX = Acoustics(1.62, 0.8, -4.5)
_SINUS = Acoustics(1.50, 0.9, 6.0)
_PYRAMID = Acoustics(1.61, 0.7, -10.0)
_BONE = Acoustics(7.8, 10.0, -8.0)
_SOFT = Acoustics(1.60, 0.7, 1.0)
_BOWEL = Acoustics(1.55, 1.2, 2.0)

ACOUSTICS: dict[Structure, Acoustics] = {
    Structure.OUTSIDE: Acoustics(1.60, 0.0, -80.0),
    Structure.SKIN: Acoustics(1.99, 1.0, 3.0),
    Structure.FAT: Acoustics(1.38, 0.63, -3.0),
    Structure.MUSCLE: Acoustics(1.70, 1.09, -4.0),
    Structure.RIB: _BONE,
    Structure.VERTEBRA: _BONE,
    Structure.DISC: Acoustics(1.70, 1.2, -2.0),
    Structure.LUNG_RIGHT: _LUNG,
    Structure.LUNG_LEFT: _LUNG,
    Structure.MEDIASTINUM: _SOFT,
    Structure.HEART: Acoustics(1.66, 0.6, -8.0),
    Structure.VISCERAL_FAT: _SOFT,
    Structure.LIVER: Acoustics(1.65, 0.5, 0.0),
    Structure.LIVER_VESSEL: _BLOOD,
    Structure.SPLEEN: Acoustics(1.66, 0.4, 1.5),
    Structure.KIDNEY_RIGHT: _CORTEX,
    Structure.KIDNEY_LEFT: _CORTEX,
    Structure.SINUS_RIGHT: _SINUS,
    Structure.SINUS_LEFT: _SINUS,
    Structure.PYRAMID_RIGHT: _PYRAMID,
    Structure.PYRAMID_LEFT: _PYRAMID,
    Structure.GALLBLADDER: Acoustics(1.52, 0.02, -45.0),
    Structure.STOMACH: _BOWEL,
    Structure.STOMACH_GAS: _GAS,
    Structure.DUODENUM: _BOWEL,
    Structure.BOWEL: _BOWEL,
    Structure.BOWEL_GAS: _GAS,
    Structure.AORTA: _BLOOD,
    Structure.VENA_CAVA: _BLOOD,
    Structure.PORTAL_VEIN: _BLOOD,
    Structure.PANCREAS: Acoustics(1.63, 0.6, 2.0),
    Structure.OESOPHAGUS: _SOFT,
    Structure.ADRENAL_RIGHT: Acoustics(1.62, 0.7, -2.0),
    Structure.ADRENAL_LEFT: Acoustics(1.62, 0.7, -2.0),
    Structure.DIAPHRAGM: Acoustics(1.90, 1.2, 11.0),
    Structure.EFFUSION: Acoustics(1.52, 0.005, -45.0),
    Structure.ATELECTASIS: Acoustics(1.60, 0.7, 0.5),
    Structure.SEPTUM: Acoustics(1.62, 0.7, 4.0),
    Structure.ASCITES: Acoustics(1.52, 0.005, -45.0),
}

GASES = (Structure.LUNG_RIGHT, Structure.LUNG_LEFT, Structure.STOMACH_GAS, Structure.BOWEL_GAS)
FLUIDS = (Structure.EFFUSION, Structure.ASCITES)
WALL = (Structure.SKIN, Structure.FAT, Structure.MUSCLE)
KIDNEYS = (
    Structure.KIDNEY_RIGHT,
    Structure.KIDNEY_LEFT,
    Structure.SINUS_RIGHT,
    Structure.SINUS_LEFT,
    Structure.PYRAMID_RIGHT,
    Structure.PYRAMID_LEFT,
)

# The five targets of the paper (section 3.1, table 1), under the names its tables use. Septa belong to the fluid they
# cross, vessels to the liver, sinus and pyramids to the kidney, as an annotator would outline them.
SWEEP_LABELS: dict[int, str] = {1: "pleural effusion", 2: "seroperitoneum", 3: "liver", 4: "spleen", 5: "kidney"}
SWEEP_LABEL_OF: dict[Structure, int] = {
    Structure.EFFUSION: 1,
    Structure.SEPTUM: 1,
    Structure.ASCITES: 2,
    Structure.LIVER: 3,
    Structure.LIVER_VESSEL: 3,
    Structure.SPLEEN: 4,
} | dict.fromkeys(KIDNEYS, 5)


def lookup_table(values: Mapping[Structure, Any], default: Any = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    """An array that maps structure ids to values; ids that are not listed get the default."""
    table = np.full(STRUCTURES, default, dtype)
    for structure, value in values.items():
        table[structure] = value
    return table
