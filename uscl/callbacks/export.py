"""The callbacks that write what a stage leaves behind: an adapter file, or the weights of a whole backbone."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from uscl.backbone import save_weights
from uscl.stages.distill import DistillModule
from uscl.stages.lora_seg import LoRASegModule
from uscl.stages.pretrain import PretrainModule
from uscl.stages.vcl_pretrain import VCLPretrainModule
from uscl.tuning import save_adapter

log = logging.getLogger(__name__)


class AdapterExport(Callback):
    """Writes ``adapter.safetensors`` into the run folder after every epoch, so that a killed run leaves one too."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the adapter as it stands."""
        if _writes(trainer) and isinstance(pl_module, VCLPretrainModule | LoRASegModule):
            save_adapter(_file(trainer, "adapter"), pl_module.adapter())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where it is."""
        _say("Adapter", trainer, _file(trainer, "adapter"))


class WeightsExport(Callback):
    """Writes ``weights.safetensors``, the whole backbone in half precision, when stage 0 or a distillation has ended.

    Where weights are averaged it holds the average. Checkpoints under ``checkpoints/`` can be loaded before the end.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the weights and says where they are."""
        if _writes(trainer) and isinstance(pl_module, PretrainModule | DistillModule):
            save_weights(pl_module.net, _file(trainer, "weights"))
            _say("Weights", trainer, _file(trainer, "weights"))


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)


def _file(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / f"{name}.safetensors"


def _say(what: str, trainer: Trainer, file: Path) -> None:
    if trainer.is_global_zero and file.is_file():
        log.info("%s: %s (%.2f MB)", what, file, file.stat().st_size / 1e6)
