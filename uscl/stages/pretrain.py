"""Stage 0: training the whole backbone from scratch on rendered phantoms."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from uscl.backbone import SamMed3D, SamMed3DConfig, load_trunk
from uscl.backbone.mask_decoder import DecoderAttention
from uscl.prompting import SamMed3DSegmenter, evaluation_rollout
from uscl.prompting.pretraining import PretrainingClicks, pretraining_rollout, soft_dice_bce
from uscl.seeds import derive_seed, seeded_draw
from uscl.stages.common import configure_optimizers, data_preprocessing


class SemanticHead(nn.Module):
    """Names the structure in every cell of 8^3 voxels; helps the encoder to learn and is thrown away afterwards.

    Args:
        dim: width of the image embedding.
        classes: number of structures.
        cells: cells per token and axis.
    """

    def __init__(self, dim: int, classes: int, cells: int) -> None:
        super().__init__()
        self.classes, self.cells = classes, cells
        self.proj = nn.Conv3d(dim, classes * cells**3, kernel_size=1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Maps embeddings [B, E, g, g, g] to logits [B, classes, c g, c g, c g]."""
        batch, _, *grid = embedding.shape
        cells = [self.cells] * 3
        split = self.proj(embedding).reshape(batch, self.classes, *cells, *grid)
        together = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cast("Tensor", together.reshape(batch, self.classes, *(self.cells * g for g in grid)))


@torch.no_grad()
def point_attention_at_clicks(model: SamMed3D, gain: float = 2.0) -> None:
    """Starts the decoder's cross-attention with keys equal to queries, so that clicks look at the places they name.

    With independent random projections a model from scratch spends its first thousand steps on finding out that equal
    positional codes belong together.

    Args:
        model: with random weights.
        gain: factor on both projections; sharpens the attention.
    """
    for name, attention in model.mask_decoder.transformer.named_modules():
        if isinstance(attention, DecoderAttention) and "self_attn" not in name:
            attention.q_proj.weight.mul_(gain)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


class PretrainModule(LightningModule):
    """Trains a SAM-Med3D, all of it, with clicks on several objects per encoded image.

    Logged: ``train/loss`` (mean over clicks), ``train/dice`` (low resolution, after the last click), ``train/semantic``
    and, on patches with one object each, ``val/dice_N`` at every N of ``val_clicks`` and ``val/dice``, the last.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint to go on from; null starts from random weights.
        clicks: how clicks are simulated.
        balanced_steps: over so many steps the cross-entropy goes from balanced to plain.
        semantic_weight: weight of the auxiliary loss; 0 leaves its head out.
        semantic_classes: structures it tells apart.
        val_clicks: numbers of clicks after which validation looks at Dice.
        optimizer: null is AdamW with SAM-Med3D's settings.
        lr_scheduler: stepped after every step, not every epoch.
        seed: of the clicks.
    """

    def __init__(
        self,
        backbone: SamMed3DConfig | str = "mini",
        weights: str | None = None,
        clicks: PretrainingClicks = PretrainingClicks(),  # noqa: B008 (frozen)
        balanced_steps: int = 1000,
        semantic_weight: float = 0.2,
        semantic_classes: int = 64,
        val_clicks: tuple[int, ...] = (1, 3, 5),
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clicks, self.balanced_steps, self.semantic_weight = clicks, balanced_steps, semantic_weight
        self.val_clicks = tuple(sorted(val_clicks))
        self.optimizer, self.lr_scheduler, self.seed = optimizer, lr_scheduler, seed
        # Built here, not in configure_model: Lightning's weight averaging copies the module before it calls that.
        self.net: SamMed3D = load_trunk(backbone, weights).model.train()
        if weights is None:
            point_attention_at_clicks(self.net)
        self.semantic: SemanticHead | None = None
        if semantic_weight:
            config = self.net.config
            self.semantic = SemanticHead(config.prompt_dim, semantic_classes, config.patch_size // 8)

    def on_fit_start(self) -> None:
        """Checks the data against the model before the first step."""
        data_preprocessing(self, self.net.config.image_size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step on images [B, 1, S, S, S] and K objects each, targets [B, K, S, S, S]."""
        seed = derive_seed("pretraining", self.seed, self.current_epoch, batch_idx, self.global_rank)
        generator = torch.Generator().manual_seed(seed)
        embedding = self.net.encode_image(batch["image"])
        balance = max(0.0, 1 - self.global_step / max(1, self.balanced_steps))
        loss_of = partial(soft_dice_bce, balance=balance)
        loss, dice = pretraining_rollout(self.net, embedding, batch["target"], loss_of, self.clicks, generator)
        size = len(batch["image"])
        self.log("train/loss", loss.detach(), prog_bar=True, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/dice", dice, on_epoch=True, batch_size=size, sync_dist=True)
        if self.semantic is not None and bool((batch["semantic"] >= 0).any()):
            named = F.cross_entropy(self.semantic(embedding), batch["semantic"])
            self.log("train/semantic", named.detach(), on_epoch=True, batch_size=size, sync_dist=True)
            loss = loss + self.semantic_weight * named
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Dice within the patch of one object, after each number of clicks in ``val_clicks``."""
        target = batch["target"][0, 0]
        steps = evaluation_rollout(SamMed3DSegmenter(self.net), batch["image"], target, self.val_clicks[-1],
                                   lambda number: seeded_draw("pretraining validation", batch_idx, number))  # fmt: skip
        for step in steps:
            count = len(step.clicks)
            if count in self.val_clicks:
                predicted = step.logits > 0
                dice = 2 * (predicted & target).sum() / (predicted.sum() + target.sum())
                for name in [f"val/dice_{count}"] + ["val/dice"] * (count == self.val_clicks[-1]):
                    self.log(name, dice, prog_bar=name == "val/dice", batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Over everything."""
        return configure_optimizers(self, self.optimizer, self.lr_scheduler, interval="step")
