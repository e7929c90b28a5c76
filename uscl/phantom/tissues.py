"""The tissues of the phantom, what they do to ultrasound, and which of them the sweeps are labelled with.

Impedance, attenuation and echogenicity follow published values where there are any (Diagnostics 2023;13:855, table 4;
the scenes of Burger et al. 2013 and LOTUS 2023); water 1.48 MRayl bounds serous fluid from below. Echogenicity is in
dB of the envelope relative to liver; its order is textbook radiology (spleen >= liver > renal cortex, bright sinus and
diaphragm, black fluid), the numbers are ours and are varied per sweep.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Tissue(IntEnum):
    """Ids in an anatomy volume. 0 is what lies outside the body: air, and coupling gel under the probe."""

    OUTSIDE = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    LUNG = 5
    SOFT = 6
    LIVER = 7
    SPLEEN = 8
    KIDNEY = 9
    SINUS = 10
    BLOOD = 11
    GALLBLADDER = 12
    BOWEL = 13
    EFFUSION = 14
    ASCITES = 15
    ATELECTASIS = 16
    DIAPHRAGM = 17
    GAS = 18
    PYRAMID = 19


class Acoustics(NamedTuple):
    """Impedance in MRayl, attenuation in dB / cm / MHz (one way), echogenicity in dB relative to liver."""

    impedance: float
    attenuation: float
    echogenicity: float


ACOUSTICS: dict[Tissue, Acoustics] = {
    Tissue.OUTSIDE: Acoustics(1.60, 0.0, -80.0),
    Tissue.SKIN: Acoustics(1.99, 1.0, 3.0),
    Tissue.FAT: Acoustics(1.38, 0.63, -3.0),
    Tissue.MUSCLE: Acoustics(1.70, 1.09, -4.0),
    Tissue.BONE: Acoustics(7.8, 10.0, -8.0),
    Tissue.LUNG: Acoustics(0.26, 40.0, -6.0),
    Tissue.SOFT: Acoustics(1.60, 0.7, 1.0),
    Tissue.LIVER: Acoustics(1.65, 0.5, 0.0),
    Tissue.SPLEEN: Acoustics(1.66, 0.4, 1.5),
    Tissue.KIDNEY: Acoustics(1.62, 0.8, -4.5),
    Tissue.SINUS: Acoustics(1.50, 0.9, 6.0),
    Tissue.BLOOD: Acoustics(1.61, 0.18, -30.0),
    Tissue.GALLBLADDER: Acoustics(1.52, 0.02, -45.0),
    Tissue.BOWEL: Acoustics(1.55, 1.2, 2.0),
    Tissue.EFFUSION: Acoustics(1.52, 0.005, -45.0),
    Tissue.ASCITES: Acoustics(1.52, 0.005, -42.0),
    Tissue.ATELECTASIS: Acoustics(1.60, 0.7, 0.5),
    Tissue.DIAPHRAGM: Acoustics(1.75, 1.2, 9.0),
    Tissue.GAS: Acoustics(0.0004, 12.0, -60.0),
    Tissue.PYRAMID: Acoustics(1.61, 0.7, -10.0),
}

GASES = (Tissue.LUNG, Tissue.GAS)
FLUIDS = (Tissue.EFFUSION, Tissue.ASCITES)

# The five targets of the paper (section 3.1, table 1), under the names its tables use.
LABEL_NAMES: dict[int, str] = {1: "pleural effusion", 2: "seroperitoneum", 3: "liver", 4: "spleen", 5: "kidney"}
