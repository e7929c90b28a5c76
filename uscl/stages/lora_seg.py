"""Stage 2: fine-tuning for segmentation from clicks, with LoRA or another method; also testing and prediction."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

import uscl
from uscl.backbone import VARIANTS, SamMed3D, SamMed3DConfig, Trunk, announce_trunk, load_trunk
from uscl.backbone.small_patches import on_small_patches
from uscl.data.batches import LabelledPatch
from uscl.errors import InputError
from uscl.evaluation.promptable import Evaluation, PromptableModule
from uscl.optim import configure_optimizers
from uscl.prompting import (
    PUBLISHED,
    ClickTraining,
    Inference,
    Preset,
    SamMed3DSegmenter,
    TrainingClicks,
    resolve_inference,
)
from uscl.seeds import run_seed
from uscl.stages.checkpoints import check_checkpoint, remember_trunk
from uscl.stages.preprocessing import data_preprocessing, warn_of_other_preprocessing
from uscl.tuning import (
    Adapter,
    LoRA,
    TuningMethod,
    check_method,
    is_own,
    load_adapter,
    train_only,
    trainable_parameters,
)
from uscl.tuning.method import Part

log = logging.getLogger(__name__)
OURS = "USCL-Med3D"
"""What LoRA after stage 1 is called in result rows."""
UNTOUCHED = "SAM-Med3D"


class LoRASegModule(PromptableModule):
    """Tunes encoder and mask decoder, by LoRA or otherwise, with simulated clicks; tests with any adapter, or none.

    Logged: ``train/loss`` (per click), and what every :class:`~uscl.evaluation.promptable.PromptableModule` logs.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint of the trunk, a file or ``hf://owner/repo/file``; ``embedded``: what comes with the package
            for ``mini`` and ``mini_fine``; null leaves random weights, with a warning.
        adapter: adapter file to test, predict or go on training with; it brings its own tuning method. One that was
            made with a method outside ``uscl`` is read where ``tuning`` names the class of that method.
        vcl_adapter: adapter file of stage 1, whose encoder LoRA training starts from; goes with LoRA alone. Where
            ``tuning.modules`` is ``decoder`` that encoder LoRA stays frozen. ``{rank}`` and ``{seed}`` in it are filled
            in, so that every cell of a sweep finds its own; empty is null.
        tuning: what to train: :class:`~uscl.tuning.LoRA`, :class:`~uscl.tuning.AdaptFormer`,
            :class:`~uscl.tuning.FullTuning` or a class of your own; null for the untouched backbone, which can be
            tested but not trained.
        clicks: how clicks are simulated in training: :class:`~uscl.prompting.TrainingClicks` on one object per patch,
            as SAM-Med3D trains, or :class:`~uscl.prompting.ObjectClicks` on all of them (``data.sampling.objects``).
        evaluation: how validations and tests click and score.
        inference: how masks are made in tests and predictions: ``published``, ``refined``, or its settings, of which
            those not named are as published. Null is published in tests, and in predictions refined for the backbones
            that this was measured on.
        optimizer: null is AdamW with SAM-Med3D's settings.
        lr_scheduler: stepped once per epoch.
        activation_checkpointing: recompute encoder blocks in the backward pass: less memory, more time.
        seed: of the training clicks; null takes ``seed_everything``.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "vit_b_ori",
        weights: str | None = None,
        adapter: str | None = None,
        vcl_adapter: str | None = None,
        tuning: TuningMethod | None = LoRA(),
        clicks: ClickTraining = TrainingClicks(),
        evaluation: Evaluation = Evaluation(),
        inference: Inference | Preset | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        activation_checkpointing: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(evaluation)
        if adapter and vcl_adapter:
            raise InputError("give model.adapter (a finished stage 2) or model.vcl_adapter (a stage 1), not both")
        if tuning is not None:
            check_method(tuning)
        self.backbone = backbone
        self.weights = weights
        self.adapter_file = adapter
        self.vcl_adapter_file: str | None = None
        self.tuning = tuning
        self.clicks = clicks
        resolve_inference(inference, VARIANTS["mini"])  # one that is none is refused now
        self.inference = inference
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.activation_checkpointing = activation_checkpointing
        self.seed = run_seed(seed)
        if vcl_adapter:
            rank = tuning.rank if tuning is not None and tuning.rank else ""
            self.vcl_adapter_file = vcl_adapter.replace("{rank}", str(rank)).replace("{seed}", str(self.seed))
        self.trunk: Trunk | None = None
        self._inserted: dict[Part, TuningMethod] = {}
        self._after_vcl = bool(vcl_adapter)
        self._trained_preprocessing: dict[str, Any] | None = None
        self._has_trained = False

    net: SamMed3D

    def configure_model(self) -> None:
        """Builds the trunk and inserts a tuning method: the adapter's, or the one to train."""
        if self.trunk is not None:
            return
        adapter = load_adapter(self.adapter_file, self._named_methods()) if self.adapter_file else None
        self.trunk = load_trunk(adapter.backbone if adapter else self.backbone, self.weights)
        announce_trunk(self.trunk)
        self.net = self.trunk.model.train()  # Lightning keeps the mode it finds; nothing but dropout depends on it
        self.net.requires_grad_(False)
        if adapter is not None:
            self._start_from(adapter)
        elif self.tuning is not None:
            self._start_fresh(self.tuning)
        else:
            self.method = self.method or UNTOUCHED
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
        shares = ", ".join(f"{count:,} in the {part.replace('_', ' ')}" for part, count in counts.items() if count)
        if self.trainer.is_global_zero:
            log.info("Trainable: %s parameters of %s (%s)", f"{sum(counts.values()):,}", f"{total:,}", shares)

    def on_test_start(self) -> None:
        """Checks the data against the model and the adapter.

        Raises:
            InputError: the patches have another size than the model takes, or a tuning method was inserted that nobody
                has trained, and the untouched backbone, or stage 1 alone, would be tested under its name.
        """
        named = self.vcl_adapter_file is not None and self.evaluation.method is not None
        if self.tuning is not None and not (self.adapter_file or self._has_trained or named):
            if self.vcl_adapter_file is not None:
                raise InputError(
                    "model.vcl_adapter alone has nothing of stage 2: test with --model.adapter "
                    "RUN/adapter.safetensors, or name what is tested with --model.evaluation.method"
                )
            raise InputError(
                "model.tuning is set, but nothing tuned is given to test: add --model.adapter "
                "RUN/adapter.safetensors, or --model.tuning null for the untouched backbone"
            )
        data = data_preprocessing(self, self.net.config.image_size)
        warn_of_other_preprocessing(self._trained_preprocessing, data)
        if self.trainer.is_global_zero:
            self._announce_inference()

    on_predict_start = on_test_start

    def on_validation_start(self) -> None:
        """Checks a validation by itself as a test."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start()

    def _announce_inference(self) -> None:
        stage = "predict" if self.trainer.predicting else "test"
        used, usual = (self.inference_of(stage), resolve_inference(None, self.net.config))
        if stage == "test" and used != usual:
            log.info(
                "Inference: %s. `uscl segment` and `uscl predict` use another with this backbone: %s "
                "(--model.inference %s tests that)",
                used.in_words,
                usual.in_words,
                "published" if usual == PUBLISHED else "refined",
            )
        else:
            log.info("Inference: %s", used.in_words)

    def training_step(self, batch: LabelledPatch, batch_idx: int) -> Tensor:
        """One step on small or whole patches; ``model.clicks`` says how they are clicked on."""
        image = batch.image
        net = self.net if image.shape[-1] == self.net.config.image_size else on_small_patches(self.net, image.shape[-1])
        key = ("training", self.seed, self.current_epoch, batch_idx, self.global_rank)
        loss, per_click = self.clicks.loss(net, image, batch.target, key)
        self.log("train/loss", per_click, prog_bar=True, on_epoch=True, batch_size=len(image), sync_dist=True)
        return loss

    def inference_of(self, stage: str) -> Inference:
        """Published in a validation; in tests and predictions as ``inference`` says."""
        if stage == "validate" or (stage == "test" and self.inference is None):
            return PUBLISHED
        return resolve_inference(self.inference, self.net.config)

    def segmenter(self, stage: str) -> SamMed3DSegmenter:
        """The backbone as it is tuned."""
        accumulate = stage == "predict" or self.evaluation.protocol.accumulate
        return SamMed3DSegmenter(self.net, self.inference_of(stage), accumulate)

    @property
    def weights_in_words(self) -> str:
        """The trunk's weights."""
        assert self.trunk is not None
        return self.trunk.weights

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
            vcl=self._after_vcl,
            version=uscl.__version__,
        )

    def described(self) -> dict[str, Any]:
        """How the backbone was tuned, for reports."""
        if not self._inserted:
            return {"family": "Baseline" if self.method == UNTOUCHED else self.method}
        # Beside a tuned decoder the encoder may hold the LoRA of stage 1, frozen.
        method = self._inserted.get("decoder") or self._inserted["encoder"]
        usual = self._name_of(method)
        return {
            "family": type(method).__name__,
            "modules": method.modules if len(self._inserted) > 1 else next(iter(self._inserted)),
            "rank": method.rank,
            "vcl": self._after_vcl,
            "label": self.method if self.method != usual else "" if is_own(type(method)) else method.title,
        }

    def _name_of(self, tuning: TuningMethod) -> str:
        """What a tuned backbone is called in result rows, unless it is given a name."""
        if not self._after_vcl:
            return tuning.title
        return OURS if is_own(type(tuning)) else f"{tuning.title} after VCL"

    def _start_from(self, adapter: Adapter) -> None:
        assert self.trunk is not None
        if adapter.stage != "lora_seg":
            raise InputError(
                f"{self.adapter_file}: is what stage {adapter.stage!r} left; start from it with --model.vcl_adapter"
            )
        adapter.apply(self.trunk)
        self._inserted = dict(adapter.tuning)
        self._after_vcl = adapter.vcl
        self._trained_preprocessing = adapter.preprocessing
        self.method = self.method or adapter.method
        wanted = self.tuning.parts if self.tuning else ()
        train_only(self.net, {part: own for part, own in adapter.tuning.items() if part in wanted})

    def _named_methods(self) -> tuple[type[TuningMethod], ...]:
        """Classes that the user named, so that an adapter may ask for them."""
        return () if self.tuning is None else (type(self.tuning),)

    def _start_fresh(self, tuning: TuningMethod) -> None:
        assert self.trunk is not None
        self.method = self.method or self._name_of(tuning)
        if self.vcl_adapter_file is not None:
            self._inserted["encoder"] = _take_vcl(self.trunk, self.vcl_adapter_file, tuning, self._named_methods())
        for part in tuning.parts:
            if part not in self._inserted:
                tuning.insert(self.net, part)
                self._inserted[part] = tuning
        train_only(self.net, dict.fromkeys(tuning.parts, tuning))


def _take_vcl(trunk: Trunk, file: str, tuning: TuningMethod, named: tuple[type[TuningMethod], ...]) -> LoRA:
    """Puts the encoder LoRA of stage 1 into the trunk."""
    vcl = load_adapter(file, named)
    theirs = vcl.tuning.get("encoder")
    if not isinstance(theirs, LoRA) or vcl.stage != "vcl":
        raise InputError(f"{file}: is what stage {vcl.stage!r} left, expected stage 1's")
    if not isinstance(tuning, LoRA) or type(tuning) is not type(theirs):
        raise InputError(
            f"{file}: holds {type(theirs).__name__}, which {type(tuning).__name__} cannot go on with; set model.tuning "
            f"to {type(theirs).__name__}, or leave model.vcl_adapter out"
        )
    have, want = ((own.rank, own.scale_of("encoder"), own.projections) for own in (theirs, tuning))
    if "encoder" in tuning.parts and have != want:
        found, asked = (f"rank {rank}, scale {scale:g} and {'+'.join(names)}" for rank, scale, names in (have, want))
        raise InputError(f"{file}: was trained with {found}, but model.tuning has {asked}; make them equal")
    vcl.apply(trunk, ("encoder",))
    return theirs
