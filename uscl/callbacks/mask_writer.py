"""The callback that writes predicted masks on the grid of the image they belong to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from uscl.data.volume import write_volume

log = logging.getLogger(__name__)


class MaskWriter(Callback):
    """Writes ``masks/NAME.nii.gz`` into the run folder, with the names of :func:`~uscl.data.prompts.mask_names`."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one mask."""
        path = Path(trainer.default_root_dir) / "masks" / f"{batch.mask_name}.nii.gz"
        write_volume(path, batch.volume.with_array(outputs.mask))
        if outputs.cut_short:
            log.warning("%s: the mask reaches the border of its patch; the object may go on beyond it", path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the masks are."""
        if trainer.is_global_zero:
            log.info("Masks: %s (research software, not a medical device)", Path(trainer.default_root_dir) / "masks")
