"""What a training cost: time, memory, parameters, bytes, energy where the device reports it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

COST_FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What one ``uscl fit`` cost; all figures are those of the first process.

    Attributes:
        seconds_per_step: wall time of a training step, waiting for data included; mean over all steps but the run's
            first, which warms up. Validation and the writing of checkpoints are not in it. None with a single step.
        samples_per_second: patches of all processes; None with a single step.
        steps: training steps (batches, not optimiser steps) that this run made; a resumed one counts its own.
        batch_size: patches per step and process.
        processes: that trained together.
        device: its name.
        precision: of the trainer.
        peak_device_bytes: most that torch had allocated on the device; None on a CPU.
        peak_host_bytes: largest resident size of the process since it began, libraries included; None where the
            system does not report it.
        parameters: of the whole model.
        trainable: number of trainable parameters by component; components without any are left out.
        checkpoint_bytes: of ``last.ckpt``, which training can go on from; None if there is none.
        artefact_bytes: of the adapter or weights that the run leaves; None if there are none.
        joules: that the device used from the start of the fit to its end, validation and whatever else computed on the
            device at the time included; None where it reports none.
    """

    seconds_per_step: float | None
    samples_per_second: float | None
    steps: int
    batch_size: int
    processes: int
    device: str
    precision: str
    peak_device_bytes: int | None
    peak_host_bytes: int | None
    parameters: int
    trainable: dict[str, int]
    checkpoint_bytes: int | None
    artefact_bytes: int | None
    joules: float | None


def read_cost(run: Path) -> Cost | None:
    """The cost that a run folder records, or None."""
    file = run / COST_FILE
    return Cost(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
