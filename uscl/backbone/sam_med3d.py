"""SAM-Med3D behind the two calls that everything else uses: ``encode_image`` and ``decode``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from uscl.backbone.config import SamMed3DConfig, resolve_config
from uscl.backbone.image_encoder import ImageEncoder
from uscl.backbone.mask_decoder import MaskDecoder
from uscl.backbone.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from uscl.types import Embedding, LowResLogits, PatchBatch, PointCoords, PointLabels


class SamMed3D(nn.Module):
    """The shared backbone. Parameter names and shapes equal the published checkpoint's.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: SamMed3DConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def encode_image(self, image: PatchBatch) -> Embedding:
        """Encodes normalised patches; do it once per image, whatever the number of clicks.

        Args:
            image: [B, 1, S, S, S], e.g. [2, 1, 128, 128, 128].

        Returns:
            [B, E, g, g, g], e.g. [2, 384, 8, 8, 8].
        """
        return cast("Tensor", self.image_encoder(image))

    def decode(
        self,
        embedding: Embedding,
        points: tuple[PointCoords, PointLabels] | None = None,
        mask: LowResLogits | None = None,
        multimask: bool = False,
    ) -> tuple[LowResLogits, Tensor]:
        """Draws masks from prompts.

        Several objects of one image are decoded together: with B embeddings and k * B prompts, prompts j * k to
        (j + 1) * k - 1 belong to image j.

        Args:
            embedding: [B, E, g, g, g].
            points: None, or voxel indices [k * B, N, 3] in the patch (array axis order) with labels [k * B, N]:
                1 foreground, 0 background, -1 padding.
            mask: None, or the logits [k * B, 1, m, m, m] returned by the step before. Give zeros at the first click:
                that is what the published weights were trained with, and None is an embedding they never trained.
            multimask: return masks 1.. instead of mask 0. The published weights trained mask 0 alone.

        Returns:
            Logits [k * B, M, m, m, m] with m = S / 4, and predicted IoU [k * B, M] (untrained in published weights).

        Raises:
            ValueError: the number of prompts is not a multiple of the number of embeddings.
        """
        prompts = points[0].shape[0] if points is not None else mask.shape[0] if mask is not None else len(embedding)
        if prompts % len(embedding):
            raise ValueError(f"{prompts} prompts cannot be shared out over {len(embedding)} image embeddings")
        sparse, dense = self.prompt_encoder(points, mask, prompts)
        embedding = embedding.repeat_interleave(prompts // len(embedding), dim=0)
        positions = self.prompt_encoder.dense_positions()
        return cast("tuple[Tensor, Tensor]", self.mask_decoder(embedding, positions, sparse, dense, multimask))


def build_sam_med3d(config: SamMed3DConfig | str = "vit_b_ori") -> SamMed3D:
    """Builds a SAM-Med3D with random weights; :func:`uscl.load_checkpoint` fills in trained ones.

    Args:
        config: a configuration, or the name of one of :data:`uscl.backbone.config.VARIANTS`.

    Raises:
        InputError: no variant has this name.
    """
    return SamMed3D(resolve_config(config))
