"""Stage 1: contrastive pre-training of the encoder's LoRA weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

import uscl
from uscl.backbone import SamMed3D, SamMed3DConfig, Trunk, announce_trunk, load_trunk
from uscl.backbone.small_patches import on_small_patches
from uscl.data.batches import ImagePatch, LabelledPatch
from uscl.errors import InputError
from uscl.optim import configure_optimizers
from uscl.seeds import Draw, run_seed, seeded_draw
from uscl.stages.checkpoints import check_checkpoint, remember_trunk
from uscl.stages.preprocessing import data_preprocessing
from uscl.tuning import Adapter, LoRA
from uscl.vcl import EmaTeacher, SubVolumes, VCLHead, VCLStudent, cut, position_labels, vcl_losses
from uscl.vcl.losses import LossForm, VCLOutput


class VCLPretrainModule(LightningModule):
    """Predicts where in a patch a crop came from; trains the encoder's LoRA and the head, nothing else.

    Source: section 2.2.2 of the paper, equations 1 to 6. The teacher is updated once per optimiser step, before its
    forward pass. Logged for ``train`` and ``val``: ``loss``, ``prediction`` (L_p), ``regularisation`` (L_reg),
    ``region_accuracy`` (chance is 1 / n), ``dead_positives`` and ``base_similarity``.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint of the trunk, a file or ``hf://owner/repo/file``; ``embedded``: what comes with the package
            for ``mini`` and ``mini_fine``; null leaves random weights, which is said.
        lora: the LoRA to train; ``modules`` must be ``encoder``, the decoder takes no part in this stage.
        subvolumes: how a patch is cut into bases and crops.
        head_hidden_dim: width of the projector's hidden layers.
        head_out_dim: width of the features that are compared.
        head_norm: ``batch`` as VoCo, or ``layer`` for batches of few sub-volumes.
        loss: ``paper`` (equations 3 to 6) or ``voco``.
        regularisation_weight: lambda in L_p + lambda * L_reg.
        momentum: m of the teacher.
        optimizer: null is AdamW with SAM-Med3D's settings.
        lr_scheduler: stepped once per epoch.
        activation_checkpointing: recompute encoder blocks in the backward pass: less memory, more time.
        seed: of the crops; null takes ``seed_everything``.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "vit_b_ori",
        weights: str | None = None,
        lora: LoRA = LoRA(modules="encoder"),
        subvolumes: SubVolumes = SubVolumes(),
        head_hidden_dim: int = 2048,
        head_out_dim: int = 2048,
        head_norm: Literal["batch", "layer"] = "batch",
        loss: LossForm = "paper",
        regularisation_weight: float = 1.0,
        momentum: float = 0.9,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        activation_checkpointing: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if lora.modules != "encoder":
            raise InputError(f"stage 1 trains the encoder alone: lora.modules is {lora.modules!r}, set it to 'encoder'")
        self.backbone = backbone
        self.weights = weights
        self.lora = lora
        self.subvolumes = subvolumes
        self.head_options = (head_hidden_dim, head_out_dim, head_norm)
        self.loss_form: LossForm = loss
        self.regularisation_weight = regularisation_weight
        self.momentum = momentum
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.activation_checkpointing = activation_checkpointing
        self.seed = run_seed(seed)
        self.trunk: Trunk | None = None
        self.register_buffer("teacher_step", torch.zeros((), dtype=torch.long))

    teacher_step: Tensor
    net: SamMed3D
    student: VCLStudent
    teacher: EmaTeacher

    def configure_model(self) -> None:
        """Builds the trunk, inserts LoRA, and makes student and teacher."""
        if self.trunk is not None:
            return
        self.trunk = load_trunk(self.backbone, self.weights)
        announce_trunk(self.trunk)
        self.net = self.trunk.model.train()  # Lightning keeps the mode it finds; nothing but dropout depends on it
        self.subvolumes.edges(self.net.config.image_size)
        self.lora.apply(self.net)
        self.net.image_encoder.activation_checkpointing = self.activation_checkpointing
        self.student = VCLStudent(self.net.image_encoder, VCLHead(self.net.config.prompt_dim, *self.head_options))
        self.teacher = EmaTeacher(self.student, self.momentum)
        self._sized()  # a size that does not fit is refused before the first step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the trunk."""
        remember_trunk(checkpoint, self.trunk)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that it is this model's before anything of it is loaded."""
        check_checkpoint(self, checkpoint)

    def on_fit_start(self) -> None:
        """Checks the data against the model before the first step."""
        data_preprocessing(self, self.net.config.image_size)

    def training_step(self, batch: ImagePatch | LabelledPatch, batch_idx: int) -> Tensor:
        """One step on patches [B, 1, S, S, S]."""
        self._follow()
        draw = seeded_draw("vcl", self.seed, self.current_epoch, batch_idx, self.global_rank)
        return self._step("train", batch.image, draw)

    def validation_step(self, batch: ImagePatch | LabelledPatch, batch_idx: int) -> Tensor:
        """The same comparison on held-out patches, with the same crops every time."""
        return self._step("val", batch.image, seeded_draw("vcl-val", self.seed, batch_idx, self.global_rank))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Over LoRA and head."""
        return configure_optimizers(self, self.optimizer, self.lr_scheduler)

    def adapter(self) -> Adapter:
        """What this stage leaves behind: the encoder's LoRA, and the head under names of its own."""
        assert self.trunk is not None
        head = {f"vcl_head.{name}": tensor for name, tensor in self.student.head.state_dict().items()}
        return Adapter(
            stage="vcl",
            method="VCL",
            backbone=self.net.config,
            trunk_weights=self.trunk.weights,
            trunk_fingerprint=self.trunk.fingerprint,
            tuning={"encoder": self.lora},
            preprocessing=data_preprocessing(self, self.net.config.image_size),
            tensors=self.lora.tensors(self.net, "encoder") | head,
            vcl=True,
            version=uscl.__version__,
        )

    def compare(self, patches: Tensor, draw: Draw) -> VCLOutput:
        """Cuts patches [B, 1, S, S, S] into bases and crops, encodes them with both networks and compares."""
        size = patches.shape[-1]
        edges = self.subvolumes.edges(size)
        bases = self.subvolumes.base_corners(size)
        crops = [self.subvolumes.draw_crop_corners(size, draw) for _ in patches]
        labels = torch.stack([position_labels(corners, bases, edges) for corners in crops]).to(patches.device)
        encoded = self.subvolumes.size
        cubes = torch.cat(
            [cut(patch, corners, edges, encoded) for patch, corners in zip(patches, crops, strict=True)]
            + [cut(patch, bases, edges, encoded) for patch in patches]
        )
        shape = (len(patches), -1)
        split = (len(patches) * self.subvolumes.crops, len(patches) * self.subvolumes.number)
        network = self._sized()
        student = [part.unflatten(0, shape) for part in network(cubes).split(split)]
        teacher = [part.unflatten(0, shape) for part in self.teacher(network, cubes).split(split)]
        with torch.autocast(patches.device.type, enabled=False):
            return vcl_losses(student[0], teacher[0], student[1], teacher[1], labels, self.loss_form)

    def _sized(self) -> VCLStudent:
        """The student for sub-volumes of the size that is set, over the same weights."""
        size = self.subvolumes.size
        if size is None or size == self.net.config.image_size:
            return self.student
        small = on_small_patches(self.net, size, "model.subvolumes.size")
        return VCLStudent(small.image_encoder, self.student.head)

    def _follow(self) -> None:
        """Updates the teacher if the optimiser has stepped since it last was."""
        if self.global_step != int(self.teacher_step):
            self.teacher.update(self.student)
            self.teacher_step.fill_(self.global_step)

    def _step(self, stage: str, patches: Tensor, draw: Draw) -> Tensor:
        out = self.compare(patches, draw)
        loss = out.prediction + self.regularisation_weight * out.regularisation
        values = {
            "loss": loss,
            "prediction": out.prediction,
            "regularisation": out.regularisation,
            "region_accuracy": out.region_accuracy,
            "dead_positives": out.dead_positives,
            "base_similarity": out.base_similarity,
        }
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in values.items()},
            prog_bar=False,
            on_step=False,
            on_epoch=True,
            batch_size=len(patches),
            sync_dist=True,
        )
        return loss
