"""``uscl simulate``: phantom studies on disk."""

from __future__ import annotations

import logging
from typing import Literal

from uscl.phantom.study import StudySettings, simulate_study

log = logging.getLogger(__name__)


def simulate(
    kind: Literal["ultrasound"],
    out: str,
    patients: int = 12,
    sweeps_per_patient: int = 2,
    seed: int = 0,
    frames: int = 64,
    size: int = 128,
    workers: int = 1,
) -> None:
    """Simulates patients and writes sweeps with exact labels in the plain folder layout, ready for training.

    Args:
        kind: what to simulate: ultrasound.
        out: folder to write to; a study that is already there in part is completed.
        patients: over all splits: 20 % test, 10 % validation, at least one each.
        sweeps_per_patient: from alternating flanks.
        seed: of everything.
        frames: per sweep.
        size: pixels of a frame along both sides.
        workers: processes.
    """
    folder = simulate_study(out, StudySettings(patients, sweeps_per_patient, seed, frames, size), workers)
    log.info("%s study: %s (contact_sheet.png shows it)", kind, folder)
