"""Stage 0: training the whole backbone from scratch on rendered phantoms."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from uscl.backbone import SamMed3D, SamMed3DConfig, initial_weights, load_trunk
from uscl.data.batches import RenderedPatch
from uscl.errors import InputError
from uscl.evaluation.promptable import Evaluation, PromptableModule
from uscl.optim import MATRICES, configure_optimizers, is_hidden_matrix, learning_rate_factor
from uscl.prompting import PUBLISHED, Inference, ObjectClicks, SamMed3DSegmenter
from uscl.prompting.objects import objects_rollout, soft_dice_bce
from uscl.seeds import derive_seed, run_seed
from uscl.stages.checkpoints import check_checkpoint
from uscl.stages.preprocessing import data_preprocessing
from uscl.tuning.full import NEVER_USED

SEMANTIC_CLASSES = 64
"""Structure ids lie below this."""


class DenseHead(nn.Module):
    """Names the structure in every cell of 8^3 voxels and repeats the mean intensity of every cell of 4^3 voxels.

    Both help the encoder to learn, the first what things are, the second where in a token they end; the head is thrown
    away afterwards.

    Args:
        dim: width of the image embedding.
        classes: number of structures.
        patch_size: edge of a token, voxels.
    """

    def __init__(self, dim: int, classes: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.semantic = nn.Conv3d(dim, classes * (patch_size // 8) ** 3, kernel_size=1)
        self.intensity = nn.Conv3d(dim, (patch_size // 4) ** 3, kernel_size=1)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Maps embeddings [B, E, g, g, g] to logits [B, classes, S / 8, ...] and intensities [B, 1, S / 4, ...]."""
        return _in_place(self.semantic(embedding), self.patch_size // 8), _in_place(
            self.intensity(embedding), self.patch_size // 4
        )


def _in_place(values: Tensor, cells: int) -> Tensor:
    """Spreads channels [B, C cells^3, g, g, g] over the cells of their token: [B, C, cells g, cells g, cells g]."""
    batch, _, *grid = values.shape
    split = values.reshape(batch, -1, cells, cells, cells, *grid).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return split.reshape(batch, -1, *(cells * g for g in grid))


class PretrainModule(PromptableModule):
    """Trains a SAM-Med3D, all of it, with clicks on several objects per encoded image.

    Logged: ``train/loss`` (mean over clicks), ``train/dice`` (low resolution, after the last click),
    ``train/semantic``, ``train/intensity`` and what every :class:`~uscl.evaluation.promptable.PromptableModule` logs in
    a validation, on patches with one object each.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint to go on from; null starts from random weights.
        start_at_clicks: without weights: begin with masks of what is near the clicks and looks like them (see
            :mod:`uscl.backbone.initial_weights`). That asks for a tenth of the learning rates that suit random weights.
        clicks: how clicks are simulated.
        balance: how far the cross-entropy weighs inside and outside of each object alike, from 0 to 1 (see
            :func:`~uscl.prompting.objects.soft_dice_bce`).
        semantic_weight: weight of naming structures.
        intensity_weight: weight of repeating intensities. Both need tokens of 8 voxels or more; without either, tokens
            may have any size.
        evaluation: how validations click.
        transformer_rate: factor on the learning rates of the decoder's attention and MLPs. What starts at clicks is
            written down most exactly there, and the noise of few patches per step takes it apart.
        optimizer: null is AdamW with SAM-Med3D's settings; :class:`~uscl.optim.muon.MuonAdamW` gets further in
            as many steps.
        lr_scheduler: stepped after every step, not every epoch.
        seed: of the clicks; null takes ``seed_everything``.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "mini_fine",
        weights: str | None = None,
        start_at_clicks: bool = False,
        clicks: ObjectClicks = ObjectClicks(),
        balance: float = 0.0,
        semantic_weight: float = 0.2,
        intensity_weight: float = 0.1,
        evaluation: Evaluation = Evaluation(val_clicks=(1, 3, 5, 10)),
        transformer_rate: float = 0.08,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(evaluation)
        self.clicks, self.balance = clicks, balance
        self.semantic_weight, self.intensity_weight = semantic_weight, intensity_weight
        self.transformer_rate = transformer_rate
        self.optimizer, self.lr_scheduler, self.seed = optimizer, lr_scheduler, run_seed(seed)
        # Built here, not in configure_model: Lightning's weight averaging copies the module before it calls that.
        self.net: SamMed3D = load_trunk(backbone, weights).model.train()
        for name, parameter in self.net.named_parameters():
            # Several processes wait for the gradients of whatever is trainable.
            parameter.requires_grad_(not name.startswith(NEVER_USED))
        if weights is None and start_at_clicks:
            initial_weights.start_at_clicks(self.net)
        config = self.net.config
        self.dense: DenseHead | None = None
        if semantic_weight or intensity_weight:
            if config.patch_size < 8:
                raise InputError(
                    "model.semantic_weight and model.intensity_weight need tokens of 8 voxels or more, "
                    f"the backbone's have {config.patch_size}; set both to 0"
                )
            self.dense = DenseHead(config.prompt_dim, SEMANTIC_CLASSES, config.patch_size)

    def __deepcopy__(self, memo: dict[int, Any]) -> PretrainModule:
        """A copy, as weight averaging takes one, that shares the callables of the command line.

        Through these it would copy the trainer, which cannot be done once there are several processes.
        """
        memo |= {id(shared): shared for shared in (self.optimizer, self.lr_scheduler)}
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(deepcopy(self.__getstate__(), memo))
        return copied

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that it is this model's before anything of it is loaded."""
        check_checkpoint(self, checkpoint)

    def on_fit_start(self) -> None:
        """Checks the data against the model before the first step."""
        data_preprocessing(self, self.net.config.image_size)

    def training_step(self, batch: RenderedPatch, batch_idx: int) -> Tensor:
        """One step on images [B, 1, S, S, S] and K objects each, targets [B, K, S, S, S]."""
        seed = derive_seed("pretraining", self.seed, self.current_epoch, batch_idx, self.global_rank)
        generator = torch.Generator().manual_seed(seed)
        embedding = self.net.encode_image(batch.image)
        loss_of = partial(soft_dice_bce, balance=self.balance)
        loss, dice = objects_rollout(self.net, embedding, batch.target, loss_of, self.clicks, generator)
        size = len(batch.image)
        self.log("train/loss", loss.detach(), prog_bar=True, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/dice", dice, on_epoch=True, batch_size=size, sync_dist=True)
        if self.dense is None:
            return loss
        semantic, intensity = self.dense(embedding)
        cells = F.avg_pool3d(batch.image, 4).clamp(-4, 4)
        # The sum: a mean over no cell at all, where no world of the batch is an anatomy, would be NaN.
        named = F.cross_entropy(semantic, batch.semantic, reduction="sum")
        losses = {
            "intensity": self.intensity_weight * F.mse_loss(intensity, cells),
            "semantic": self.semantic_weight * named / (batch.semantic >= 0).sum().clamp_min(1),
        }
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), on_epoch=True, batch_size=size, sync_dist=True)
            loss = loss + value
        return loss

    def segmenter(self, stage: str) -> SamMed3DSegmenter:
        """The backbone as it is."""
        return SamMed3DSegmenter(self.net, PUBLISHED, self.evaluation.protocol.accumulate)

    def inference_of(self, stage: str) -> Inference:
        """Published: what is trained here is judged by itself."""
        return PUBLISHED

    def on_test_start(self) -> None:
        """Refuses: weights that are in no file have no name for the rows.

        Raises:
            InputError: always.
        """
        raise InputError("stage 0 is trained; test what it leaves with --model LoRASegModule --model.weights FILE")

    on_predict_start = on_test_start

    def described(self) -> dict[str, Any]:
        """Nothing: reports are of what tunes a backbone."""
        return {}

    @property
    def weights_in_words(self) -> str:
        """Trained here, and not yet in a file."""
        return "in training"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Over everything: hidden matrices apart; other layers with many inputs learn more slowly."""
        members: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, module in self.named_modules():
            rate = self.transformer_rate if name.startswith("net.mask_decoder.transformer") else 1.0
            for parameter in module.parameters(recurse=False):
                matrix = is_hidden_matrix(module, parameter)
                key = (matrix, rate if matrix else rate * learning_rate_factor(module, parameter))
                members.setdefault(key, []).append(parameter)
        groups = [
            {"params": parameters, MATRICES: matrix, "factor": factor}
            for (matrix, factor), parameters in members.items()
        ]
        return configure_optimizers(self, self.optimizer, self.lr_scheduler, "step", groups)
