"""The sizes of a SAM-Med3D and its named variants."""

from __future__ import annotations

from dataclasses import dataclass

from uscl.errors import InputError


@dataclass(frozen=True)
class SamMed3DConfig:
    """Architecture of a SAM-Med3D; the defaults are the published ``vit_b_ori``.

    Source of the sizes: the builder of https://github.com/uni-medical/SAM-Med3D (``vit_b_ori``).

    Attributes:
        image_size: edge S of the cubic input patch, voxels.
        patch_size: edge of one token, voxels; S / patch_size = g tokens along each axis, and the decoder draws 4 mask
            voxels per token and axis (m = 4 g).
        embed_dim: encoder width C.
        depth: number of encoder blocks.
        num_heads: encoder attention heads.
        mlp_ratio: hidden width of the encoder MLPs over C.
        window_size: edge of an attention window, tokens.
        global_attention_blocks: blocks that attend over the whole grid instead of windows.
        prompt_dim: width E of the image embedding, of all prompts and of the decoder.
        mask_in_channels: channels of the mask prompt before it is brought to E.
        decoder_depth: two-way blocks in the decoder.
        decoder_heads: attention heads in the decoder.
        decoder_mlp_dim: hidden width of the decoder MLPs.
        num_multimask_outputs: masks besides the first. The published weights never trained them.
        iou_head_depth: layers of the head that guesses the IoU. The published weights never trained it.
        iou_head_hidden_dim: hidden width of that head.
        published_positions: True repeats two slips of the published code that its weights were trained with: the
            relative-position terms meet the wrong axes (see :mod:`uscl.backbone.attention`) and the dense positional
            encoding exchanges its first two axes against the clicks'. False is the textbook form, for models trained
            from scratch.
        attention_free_blocks: first blocks that have no attention, as FastSAM3D's.
        residual_after_norm: the MLP of a block is added to its normalised input and not to the input itself, as in
            FastSAM3D.
    """

    image_size: int = 128
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attention_blocks: tuple[int, ...] = (2, 5, 8, 11)
    prompt_dim: int = 384
    mask_in_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    published_positions: bool = True
    attention_free_blocks: int = 0
    residual_after_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_attention_blocks", tuple(self.global_attention_blocks))
        rules = {
            "image_size must be a multiple of patch_size": self.image_size % self.patch_size == 0,
            "embed_dim must be a multiple of num_heads": self.embed_dim % self.num_heads == 0,
            "prompt_dim must be a multiple of 3 (positional code) and of 2 * decoder_heads": self.prompt_dim % 3 == 0
            and self.prompt_dim % (2 * self.decoder_heads) == 0,
            "prompt_dim must be a multiple of 8 (upscaling)": self.prompt_dim % 8 == 0,
            "mask_in_channels must be a multiple of 4": self.mask_in_channels % 4 == 0,
            "global_attention_blocks must lie in 0 .. depth - 1": all(
                0 <= block < self.depth for block in self.global_attention_blocks
            ),
            "attention_free_blocks must lie in 0 .. depth": 0 <= self.attention_free_blocks <= self.depth,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise InputError(f"SamMed3DConfig: {'; '.join(broken)}; found {self}")

    @property
    def grid_size(self) -> int:
        """Tokens along each axis, g."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Edge m of the low-resolution mask, voxels."""
        return 4 * self.grid_size


VARIANTS: dict[str, SamMed3DConfig] = {
    # The published model, 100.5 M parameters.
    "vit_b_ori": SamMed3DConfig(),
    # Small enough to train and run on two CPU cores, 4.7 M parameters; same input, same windowed blocks.
    "mini": SamMed3DConfig(
        embed_dim=192,
        depth=6,
        num_heads=3,
        global_attention_blocks=(2, 5),
        prompt_dim=120,
        decoder_heads=4,
        decoder_mlp_dim=480,
        iou_head_hidden_dim=120,
        published_positions=False,
    ),
    # Finer: tokens of 8 voxels and masks of cells of 2, wider windows, 4.3 M parameters.
    "mini_fine": SamMed3DConfig(
        patch_size=8,
        embed_dim=192,
        depth=6,
        num_heads=3,
        window_size=8,
        global_attention_blocks=(3,),
        prompt_dim=96,
        decoder_heads=4,
        decoder_mlp_dim=384,
        iou_head_hidden_dim=64,
        published_positions=False,
    ),
    # FastSAM3D's student of vit_b_ori (https://github.com/arcadelab/FastSAM3D): half the blocks, 53.2 M parameters.
    "fastsam3d": SamMed3DConfig(
        depth=6,
        num_heads=6,
        window_size=0,
        global_attention_blocks=(),
        attention_free_blocks=2,
        residual_after_norm=True,
    ),
    # The same of mini.
    "mini_fast": SamMed3DConfig(
        embed_dim=192,
        depth=3,
        num_heads=3,
        window_size=0,
        global_attention_blocks=(),
        prompt_dim=120,
        decoder_heads=4,
        decoder_mlp_dim=480,
        iou_head_hidden_dim=120,
        published_positions=False,
        attention_free_blocks=1,
        residual_after_norm=True,
    ),
    # For tests: the sizes of the parity fixtures, a window (3) that does not divide the grid (4).
    "tiny": SamMed3DConfig(
        image_size=64,
        embed_dim=48,
        depth=4,
        num_heads=4,
        window_size=3,
        global_attention_blocks=(1, 3),
        prompt_dim=48,
    ),
}


def resolve_config(config: SamMed3DConfig | str) -> SamMed3DConfig:
    """Turns a variant name into its configuration; a configuration passes through.

    Raises:
        InputError: the name is not one of :data:`VARIANTS`.
    """
    if isinstance(config, SamMed3DConfig):
        return config
    if config not in VARIANTS:
        raise InputError(f"no SAM-Med3D variant {config!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[config]
