"""FastSAM3D's recipe: a smaller encoder learns to give a backbone's image embeddings."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone import SamMed3D, SamMed3DConfig, Trunk, announce_trunk, load_trunk
from uscl.data.batches import RenderedObject, RenderedPatch
from uscl.errors import InputError
from uscl.optim import configure_optimizers
from uscl.stages.checkpoints import check_checkpoint
from uscl.stages.preprocessing import data_preprocessing

log = logging.getLogger(__name__)


class DistillModule(LightningModule):
    """Trains a student's image encoder on the embeddings of a teacher; prompt encoder and decoder are the teacher's.

    What it leaves, ``weights.safetensors``, is a whole backbone: test it as ``model.weights`` with ``model.backbone``
    set to the student, or go on with its mask decoder in stage 2 (``FullTuning`` with ``modules: decoder``), which is
    what FastSAM3D does next. Logged: ``train/mse`` and ``val/mse``, mean squared differences of the embeddings.
    Source: https://github.com/arcadelab/FastSAM3D as released, where the last embedding alone is learnt.

    Args:
        backbone: the student's configuration or variant name.
        weights: checkpoint of a student to go on from; null starts from random weights.
        teacher: the teacher's configuration or variant name.
        teacher_weights: its checkpoint, ``hf://owner/repo/file`` or ``embedded``.
        optimizer: null is AdamW with learning rate 8e-4 and weight decay 0.1, as published.
        lr_scheduler: stepped once per epoch.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "fastsam3d",
        weights: str | None = None,
        teacher: SamMed3DConfig | str = "vit_b_ori",
        teacher_weights: str | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.weights = backbone, weights
        self.teacher, self.teacher_weights = teacher, teacher_weights
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        # In a tuple, so that Lightning neither saves it with every checkpoint nor optimises it.
        self._teacher: tuple[Trunk, ...] = ()

    net: SamMed3D

    def configure_model(self) -> None:
        """Builds both and gives the student the teacher's prompt encoder and decoder."""
        if self._teacher:
            return
        if self.teacher_weights is None:
            raise InputError("model.teacher_weights is null, and random embeddings teach nothing; give a checkpoint")
        teacher, student = load_trunk(self.teacher, self.teacher_weights), load_trunk(self.backbone, self.weights).model
        for what in ("image_size", "patch_size", "prompt_dim"):
            theirs, own = (getattr(model.config, what) for model in (teacher.model, student))
            if theirs != own:
                raise InputError(f"model.backbone has {what} {own}, the teacher {theirs}; a student needs the same")
        announce_trunk(teacher)
        self._teacher = (teacher,)
        if self.weights is None:
            try:
                student.prompt_encoder.load_state_dict(teacher.model.prompt_encoder.state_dict())
                student.mask_decoder.load_state_dict(teacher.model.mask_decoder.state_dict())
            except RuntimeError as error:
                raise InputError(
                    "model.backbone has another decoder than the teacher; a student needs the same"
                ) from error
        self.net = student.train().requires_grad_(False)
        self.net.image_encoder.requires_grad_(True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that it is this model's before anything of it is loaded."""
        check_checkpoint(self, checkpoint)

    def on_fit_start(self) -> None:
        """Checks the data against the model before the first step."""
        data_preprocessing(self, self.net.config.image_size)
        self._teacher[0].model.to(self.device)

    on_validation_start = on_fit_start  # `uscl validate` has not trained before

    def training_step(self, batch: RenderedPatch | RenderedObject, batch_idx: int) -> Tensor:
        """One step on patches [B, 1, S, S, S]."""
        loss = self._difference(batch.image)
        self.log("train/mse", loss.detach(), prog_bar=True, on_epoch=True, batch_size=len(batch.image), sync_dist=True)
        return loss

    def validation_step(self, batch: RenderedPatch | RenderedObject, batch_idx: int) -> None:
        """The same on patches never trained on."""
        self.log("val/mse", self._difference(batch.image), prog_bar=True, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Over the student's encoder."""
        return configure_optimizers(self, self.optimizer, self.lr_scheduler)

    def _difference(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._teacher[0].model.encode_image(image)
        return F.mse_loss(self.net.encode_image(image), wanted)
