"""The callback that writes a stage's adapter file."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from uscl.tuning import save_adapter

log = logging.getLogger(__name__)


class AdapterExport(Callback):
    """Writes ``adapter.safetensors`` into the run folder after every epoch, so that a killed run leaves one too."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the adapter as it stands."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_adapter(self._file(trainer), pl_module.adapter())  # type: ignore[operator]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where it is."""
        file = self._file(trainer)
        if trainer.is_global_zero and file.is_file():
            log.info("Adapter: %s (%.2f MB)", file, file.stat().st_size / 1e6)

    @staticmethod
    def _file(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "adapter.safetensors"
