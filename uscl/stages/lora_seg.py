"""Stage 2: fine-tuning for segmentation from clicks, with LoRA or another method; also testing and prediction."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from monai.losses.dice import DiceCELoss
from torch import Tensor

import uscl
from uscl.backbone import SamMed3D, SamMed3DConfig, Trunk, announce_trunk, load_trunk
from uscl.backbone.small_patches import on_small_patches
from uscl.errors import InputError
from uscl.optim import configure_optimizers
from uscl.prompting import (
    Click,
    ClickProtocol,
    RolloutStep,
    SamMed3DSegmenter,
    Shifts,
    TrainingClicks,
    evaluation_rollout,
    training_rollout,
)
from uscl.prompting.objects import ObjectClicks, objects_rollout, soft_dice_bce
from uscl.seeds import derive_seed, run_seed, seeded_draw
from uscl.stages.checkpoints import check_checkpoint, remember_trunk
from uscl.stages.preprocessing import data_preprocessing, warn_of_other_preprocessing
from uscl.tuning import Adapter, LoRA, TuningMethod, load_adapter, train_only, trainable_parameters
from uscl.tuning.method import Part

log = logging.getLogger(__name__)


class LoRASegModule(LightningModule):
    """Tunes encoder and mask decoder, by LoRA or otherwise, with simulated clicks; tests with any adapter, or none.

    Loss and clicks are SAM-Med3D's: the sum over the clicks of Dice with squared denominator plus binary
    cross-entropy; with ``object_clicks`` they are those of stage 0. Logged: ``train/loss`` (per click), ``val/dice_N``
    at every N of ``val_clicks`` and ``val/dice``, the last of them.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint of the trunk, a file or ``hf://owner/repo/file``; ``embedded``: what comes with the package
            for ``mini`` and ``mini_fine``; null leaves random weights, which is said.
        adapter: adapter file to test, predict or go on training with; it brings its own tuning method.
        vcl_adapter: adapter file of stage 1, whose encoder LoRA training starts from; goes with LoRA alone. Where
            ``tuning.modules`` is ``decoder`` that encoder LoRA stays frozen. ``{rank}`` and ``{seed}`` in it are filled
            in, so that every cell of a sweep finds its own; empty is null.
        tuning: what to train: :class:`~uscl.tuning.LoRA`, :class:`~uscl.tuning.AdaptFormer` or
            :class:`~uscl.tuning.FullTuning`; null for the untouched backbone, which can be tested but not trained.
        clicks: how clicks are simulated in training, on one object per patch.
        object_clicks: how they are simulated on all objects of a patch at once (``data.objects``), on the decoder's own
            grid: many more clicks in the same time; ``clicks`` is not used then. Null goes by ``clicks``.
        val_clicks: numbers of clicks after which validation looks at Dice.
        test_clicks: numbers of clicks after which a test scores; the paper's are 1, 3, 5 and 10.
        protocol: where a test's clicks go, what the model is shown of them, and which mask is scored.
        shifts: positions of the token grid that the masks of a test or prediction are averaged over: 1 as published, or
            2, 4 or 8, which takes about as many times as long and follows borders better (see
            :class:`~uscl.prompting.SamMed3DSegmenter`). Result rows say so in the method's name.
        guided_filter: let the masks of a test or prediction follow the edges of the image (see
            :class:`~uscl.prompting.guided_filter.GuidedFilter`), told in the method's name likewise.
        first_twice: decode the first click of a test or prediction twice, the second time with its own mask as the mask
            prompt, told in the method's name likewise. Null does so with ``mini_fine`` alone, untuned or tuned.
        optimizer: null is AdamW with SAM-Med3D's settings.
        lr_scheduler: stepped once per epoch.
        activation_checkpointing: recompute encoder blocks in the backward pass: less memory, more time.
        seed: of the training clicks; null takes ``seed_everything``.
        method: name in the result rows; null derives it from the adapter.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "vit_b_ori",
        weights: str | None = None,
        adapter: str | None = None,
        vcl_adapter: str | None = None,
        tuning: TuningMethod | None = LoRA(),
        clicks: TrainingClicks = TrainingClicks(),
        object_clicks: ObjectClicks | None = None,
        val_clicks: tuple[int, ...] = (1, 5),
        test_clicks: tuple[int, ...] = (1, 3, 5, 10),
        protocol: ClickProtocol = ClickProtocol(),
        shifts: Shifts = 1,
        guided_filter: bool = False,
        first_twice: bool | None = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        activation_checkpointing: bool = False,
        seed: int | None = None,
        method: str | None = None,
    ) -> None:
        super().__init__()
        for name, numbers in (("val_clicks", val_clicks), ("test_clicks", test_clicks)):
            if min(numbers, default=0) < 1:
                raise InputError(f"model.{name} takes numbers from 1 on; found {list(numbers)}")
        if object_clicks is not None and clicks != TrainingClicks():
            log.warning("model.clicks is not used: model.object_clicks is; set that, or model.object_clicks null")
        if adapter and vcl_adapter:
            raise InputError("give model.adapter (a finished stage 2) or model.vcl_adapter (a stage 1), not both")
        self.backbone = backbone
        self.weights = weights
        self.adapter_file = adapter
        self.vcl_adapter_file: str | None = None
        self.tuning = tuning
        self.clicks, self.object_clicks = clicks, object_clicks
        self.val_clicks = tuple(sorted(val_clicks))
        self.test_clicks = tuple(sorted(test_clicks))
        self.protocol = protocol
        self.shifts: Shifts = shifts
        self.guided_filter, self.first_twice = guided_filter, first_twice
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.activation_checkpointing = activation_checkpointing
        self.seed = run_seed(seed)
        self.method = method or ""
        self.loss = DiceCELoss(sigmoid=True, squared_pred=True, reduction="mean")
        if vcl_adapter:
            rank = tuning.rank if isinstance(tuning, LoRA) else ""
            self.vcl_adapter_file = vcl_adapter.replace("{rank}", str(rank)).replace("{seed}", str(self.seed))
        self.trunk: Trunk | None = None
        self._inserted: dict[Part, TuningMethod] = {}
        self._trained_preprocessing: dict[str, Any] | None = None
        self._has_trained = False

    net: SamMed3D

    def configure_model(self) -> None:
        """Builds the trunk and inserts a tuning method: the adapter's, or the one to train."""
        if self.trunk is not None:
            return
        adapter = load_adapter(self.adapter_file) if self.adapter_file else None
        self.trunk = load_trunk(adapter.backbone if adapter else self.backbone, self.weights)
        announce_trunk(self.trunk)
        self.net = self.trunk.model.train()  # Lightning keeps the mode it finds; nothing but dropout depends on it
        self.net.requires_grad_(False)
        if adapter is not None:
            self._start_from(adapter)
        elif self.tuning is not None:
            self._start_fresh(self.tuning)
        else:
            self.method = self.method or "SAM-Med3D"
        self.net.image_encoder.activation_checkpointing = self.activation_checkpointing

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the trunk."""
        remember_trunk(checkpoint, self.trunk)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that it is this model's before anything of it is loaded."""
        check_checkpoint(self, checkpoint)
        self._has_trained = True

    def on_fit_start(self) -> None:
        """Checks the data against the model before the first step."""
        self._has_trained = True
        data_preprocessing(self, self.net.config.image_size)
        counts = trainable_parameters(self.net)
        total = sum(parameter.numel() for parameter in self.net.parameters())
        told = ", ".join(f"{count:,} in the {part.replace('_', ' ')}" for part, count in counts.items() if count)
        if self.trainer.is_global_zero:
            log.info("Trainable: %s parameters of %s (%s)", f"{sum(counts.values()):,}", f"{total:,}", told)

    def on_test_start(self) -> None:
        """Checks the data against the model and the adapter.

        Raises:
            InputError: the patches have another size than the model takes, or a tuning method was inserted that nobody
                has trained, and the untouched backbone would be tested under its name.
        """
        if self.tuning is not None and not (self.adapter_file or self.vcl_adapter_file or self._has_trained):
            raise InputError(
                "model.tuning is set, but nothing tuned is given to test: add --model.adapter "
                "RUN/adapter.safetensors, or --model.tuning null for the untouched backbone"
            )
        data = data_preprocessing(self, self.net.config.image_size)
        warn_of_other_preprocessing(self._trained_preprocessing, data)

    on_predict_start = on_test_start

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step on patches [B, 1, s, s, s] and targets [B, K, s, s, s]; s is S or smaller.

        Raises:
            InputError: there are several objects per patch, and nothing says how to click on them.
        """
        image, target = batch["image"], batch["target"]
        net = self.net if image.shape[-1] == self.net.config.image_size else on_small_patches(self.net, image.shape[-1])
        key = ("training", self.seed, self.current_epoch, batch_idx, self.global_rank)
        if self.object_clicks is not None:
            generator = torch.Generator().manual_seed(derive_seed(*key))
            loss, _ = objects_rollout(
                net, net.encode_image(image), target > 0, soft_dice_bce, self.object_clicks, generator
            )
            per_click = loss.detach()
        elif target.shape[1] > 1:
            raise InputError(
                f"data.objects is {target.shape[1]}: set model.object_clicks, which clicks on all of "
                "them, or data.objects 1"
            )
        else:
            loss, _ = training_rollout(net, image, target, self.loss, self.clicks, seeded_draw(*key))
            per_click = loss.detach() / self.clicks.count
        self.log("train/loss", per_click, prog_bar=True, on_epoch=True, batch_size=len(image), sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Dice within the patch of one object, after each number of clicks in ``val_clicks``."""
        target = batch["target"]
        for step in self._roll(batch, self.val_clicks, SamMed3DSegmenter(self.net, self.protocol.accumulate)):
            predicted = step.logits > 0
            total = predicted.sum() + target.sum()
            dice = 2 * (predicted & target).sum() / total
            count = step.number
            names = [f"val/dice_{count}"] + ["val/dice"] * (count == self.val_clicks[-1])
            for name in names:
                self.log(name, dice, prog_bar=name == "val/dice", batch_size=1, sync_dist=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Sets clicks on one object; the evaluation callback scores what comes out.

        Returns:
            ``steps``, one :class:`~uscl.prompting.rollout.RolloutStep` per number in ``test_clicks``; ``method`` and
            ``weights`` for the result rows.
        """
        assert self.trunk is not None
        segmenter = self._segmenter(self.protocol.accumulate)
        method = self.method if self.shifts == 1 else f"{self.method}, {self.shifts} shifts"
        method += ", guided filter" * self.guided_filter + ", first click twice" * segmenter.first_twice
        steps = self._roll(batch, self.test_clicks, segmenter)
        return {"steps": steps, "method": method, "weights": self.trunk.weights}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Logits [S, S, S] for somebody's clicks on one object."""
        segmenter = self._segmenter()
        segmenter.set_image(batch["image"])
        return segmenter.segment([Click(index, foreground) for index, foreground in batch["points"]])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Over what the tuning method trains."""
        return configure_optimizers(self, self.optimizer, self.lr_scheduler)

    def adapter(self) -> Adapter:
        """What this stage leaves behind: all tensors of the methods, those that stayed frozen included."""
        assert self.trunk is not None
        return Adapter(
            stage="lora_seg",
            method=self.method,
            backbone=self.net.config,
            trunk_weights=self.trunk.weights,
            trunk_fingerprint=self.trunk.fingerprint,
            tuning=self._inserted,
            preprocessing=data_preprocessing(self, self.net.config.image_size),
            tensors={k: v for part, own in self._inserted.items() for k, v in own.tensors(self.net, part).items()},
            version=uscl.__version__,
        )

    def _roll(self, batch: dict[str, Any], wanted: tuple[int, ...], segmenter: SamMed3DSegmenter) -> list[RolloutStep]:
        first = batch.get("first_click")
        steps = evaluation_rollout(
            segmenter,
            batch["image"],
            batch["target"],
            max(wanted),
            partial(seeded_draw, "click", batch["data_set"], batch["case"], batch["class_name"]),
            self.protocol,
            None if first is None else Click(first),
        )
        return [step for step in steps if step.number in wanted]

    def _segmenter(self, accumulate: bool = True) -> SamMed3DSegmenter:
        return SamMed3DSegmenter(self.net, accumulate, self.shifts, self.guided_filter, self.first_twice)

    def _start_from(self, adapter: Adapter) -> None:
        assert self.trunk is not None
        if adapter.stage != "lora_seg":
            raise InputError(
                f"{self.adapter_file}: is what stage {adapter.stage!r} left; start from it with --model.vcl_adapter"
            )
        adapter.apply(self.trunk)
        self._inserted = dict(adapter.tuning)
        self._trained_preprocessing = adapter.preprocessing
        self.method = self.method or adapter.method
        wanted = self.tuning.parts if self.tuning else ()
        train_only(self.net, {part: own for part, own in adapter.tuning.items() if part in wanted})

    def _start_fresh(self, tuning: TuningMethod) -> None:
        assert self.trunk is not None
        self.method = self.method or (tuning.title if self.vcl_adapter_file is None else "USCL-Med3D")
        if self.vcl_adapter_file is not None:
            self._inserted["encoder"] = _take_vcl(self.trunk, self.vcl_adapter_file, tuning)
        for part in tuning.parts:
            if part not in self._inserted:
                tuning.insert(self.net, part)
                self._inserted[part] = tuning
        train_only(self.net, dict.fromkeys(tuning.parts, tuning))


def _take_vcl(trunk: Trunk, file: str, tuning: TuningMethod) -> LoRA:
    """Puts the encoder LoRA of stage 1 into the trunk."""
    vcl = load_adapter(file)
    theirs = vcl.tuning.get("encoder")
    if not isinstance(theirs, LoRA) or vcl.stage != "vcl":
        raise InputError(f"{file}: is what stage {vcl.stage!r} left, expected stage 1's")
    if not isinstance(tuning, LoRA):
        raise InputError(
            f"{file}: holds LoRA, which {type(tuning).__name__} cannot go on with; set model.tuning to "
            "LoRA, or leave model.vcl_adapter out"
        )
    have, want = ((own.rank, own.scale_of("encoder"), own.projections) for own in (theirs, tuning))
    if "encoder" in tuning.parts and have != want:
        told, asked = (f"rank {rank}, scale {scale:g} and {'+'.join(names)}" for rank, scale, names in (have, want))
        raise InputError(f"{file}: was trained with {told}, but model.tuning has {asked}; make them equal")
    vcl.apply(trunk, ("encoder",))
    return theirs
