"""The figures of USCL-Med3D's Tables 1 to 5 and of its paragraph on cost (Zhang & Li 2025, sections 3.1 and 3.3).

Dice in %, on the paper's own 3D ultrasound unless a data set is named. Tables 3 to 5 are at 10 clicks, for 46.53 and
69.67 are the means over the classes of Table 1's lines at 10 clicks.
"""

from __future__ import annotations

from typing import Final

POINTS: Final = (1, 3, 5, 10)
"""Numbers of clicks of Tables 1 and 2."""

CLASSES: Final = ("pleural effusion", "seroperitoneum", "liver", "spleen", "kidney")

BY_CLASS: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "FastSAM3D": {
        "pleural effusion": (12.19, 14.22, 17.38, 23.31),
        "seroperitoneum": (11.54, 13.17, 17.52, 22.62),
        "liver": (13.73, 15.71, 18.15, 24.15),
        "spleen": (12.51, 16.04, 17.28, 23.04),
        "kidney": (14.42, 16.53, 20.42, 25.72),
    },
    "SAM-Med3D": {
        "pleural effusion": (13.85, 19.3, 32.74, 38.24),
        "seroperitoneum": (14.54, 21.54, 33.28, 37.41),
        "liver": (16.5, 22.04, 39.64, 54.73),
        "spleen": (16.85, 22.66, 42.51, 47.58),
        "kidney": (17.41, 25.72, 46.31, 54.68),
    },
    "USCL-Med3D": {
        "pleural effusion": (21.03, 23.17, 66.22, 70.28),
        "seroperitoneum": (24.97, 26.43, 63.58, 66.08),
        "liver": (30.85, 32.94, 71.02, 74.2),
        "spleen": (25.46, 27.89, 63.38, 66.39),
        "kidney": (26.31, 29.53, 68.29, 71.41),
    },
}
"""Table 1, by method and class, at :data:`POINTS`."""

BY_DATA_SET: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "SAM": {
        "amos": (4.9, 9.3, 11.4, 14.5),
        "totalsegmentator": (20.2, 27.9, 31.1, 34.8),
        "brats": (10.8, 19.2, 21.7, 23.7),
    },
    "MobileSAM": {
        "amos": (4.1, 5.6, 6.3, 7.0),
        "totalsegmentator": (14.9, 17.0, 18.2, 21.2),
        "brats": (7.9, 13.2, 15.6, 18.6),
    },
    "TinySAM": {
        "amos": (4.9, 7.7, 8.9, 10.1),
        "totalsegmentator": (17.1, 22.5, 24.3, 26.2),
        "brats": (10.3, 16.5, 18.7, 21.2),
    },
    "SAM-Med2D": {
        "amos": (9.7, 12.7, 12.9, 13.2),
        "totalsegmentator": (8.3, 8.1, 10.0, 12.8),
        "brats": (10.3, 7.6, 8.2, 8.4),
    },
    "SAM-Med3D": {
        "amos": (31.9, 69.4, 71.1, 74.2),
        "totalsegmentator": (29.3, 70.8, 73.6, 75.9),
        "brats": (35.8, 70.3, 72.8, 75.5),
    },
    "FastSAM3D": {
        "amos": (27.3, 36.8, 40.2, 43.7),
        "totalsegmentator": (25.0, 37.8, 44.5, 51.9),
        "brats": (33.3, 40.1, 42.1, 44.5),
    },
    "USCL-Med3D": {
        "amos": (29.0, 67.7, 70.3, 71.6),
        "totalsegmentator": (27.2, 69.1, 72.4, 73.8),
        "brats": (33.1, 68.6, 70.3, 72.7),
    },
}
"""Table 2, by method and data set, at :data:`POINTS`."""

RANK: Final = 32
"""The rank of Tables 3 and 4."""

MODULES: Final[dict[tuple[str, bool], float]] = {
    ("encoder", True): 64.13,
    ("encoder", False): 62.47,
    ("decoder", True): 60.72,
    ("decoder", False): 61.29,
    ("both", True): 69.67,
    ("both", False): 66.51,
}
"""Table 3, by tuned module and whether VCL came first."""

METHODS: Final[dict[str, dict[str, float]]] = {
    "Baseline": {"ultrasound": 46.53, "amos": 74.2, "totalsegmentator": 75.9, "brats": 75.5},
    "LoRA": {"ultrasound": 69.67, "amos": 71.6, "totalsegmentator": 73.8, "brats": 72.7},
    "FullTuning": {"ultrasound": 88.63, "amos": 56.1, "totalsegmentator": 58.2, "brats": 57.8},
    "AdaptFormer": {"ultrasound": 61.94, "amos": 47.9, "totalsegmentator": 50.3, "brats": 52.4},
}
"""Table 4, by tuning method and data set."""

RANKS: Final[dict[tuple[int, str], float]] = {
    (8, "encoder"): 54.85,
    (8, "decoder"): 53.39,
    (8, "both"): 65.04,
    (16, "encoder"): 64.47,
    (16, "decoder"): 60.14,
    (16, "both"): 67.81,
    (32, "encoder"): 64.13,
    (32, "decoder"): 60.72,
    (32, "both"): 69.67,
    (64, "encoder"): 56.38,
    (64, "decoder"): 54.72,
    (64, "both"): 69.13,
}
"""Table 5, by rank and tuned module."""

HOURS: Final = {"LoRA": 2.7, "FullTuning": 38.2}
"""100 epochs."""

GIGABYTES: Final = {"LoRA": 9.6, "FullTuning": 68.1}
"""Device memory in training at batch 2."""


def scan_key(name: str) -> str | None:
    """Which of the paper's CT and MR sets a data set is; None for all others."""
    return next((key for key in ("amos", "totalsegmentator", "brats") if name.lower().startswith(key)), None)
