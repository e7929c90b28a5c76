"""The callback that says how long a training will take, and how to go on with one that was interrupted."""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
_STEPS = 5
"""Steps that the estimate rests on, after the first, which warms up."""


class Pace(Callback):
    """Logs an estimate of the whole training's time after its first steps, and the command that resumes it."""

    def __init__(self) -> None:
        self._steps = 0
        self._since = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self._steps = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says it once."""
        self._steps += 1
        if self._steps == 1:
            self._since = perf_counter()
        elif self._steps == 1 + _STEPS and trainer.is_global_zero:
            seconds = (perf_counter() - self._since) / _STEPS
            if left := _steps_left(trainer, batch_idx):
                took = timedelta(seconds=round(seconds * left))
                log.info("About %s for the %d steps left (%.2g s each; validations are not in it)", took, left, seconds)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on after Ctrl-C."""
        folder = Path(trainer.default_root_dir)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and checkpoint.is_file():
            log.info("Interrupted. To go on: uscl fit --config %s --ckpt_path %s", folder / "config.yaml", checkpoint)


def _steps_left(trainer: Trainer, batch_idx: int) -> int | None:
    """Batches until the end of the training; None where it has none, or where epochs have no length."""
    ends = []
    if trainer.max_epochs not in (None, -1) and math.isfinite(trainer.num_training_batches):
        epochs = int(trainer.max_epochs or 0) - trainer.current_epoch
        ends.append(epochs * int(trainer.num_training_batches) - batch_idx - 1)
    if trainer.max_steps != -1:
        ends.append((trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
    return min(ends, default=None)
