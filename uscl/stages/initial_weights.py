"""Random weights of a SAM-Med3D that already do something: masks that begin as balls around clicks.

With independent random weights a mask knows nothing of where a click lies: what a ridge regression reads from the
decoder's image tokens explains 0 % of the variance of balls around the click, and training spends its first hundreds of
steps on changing that. Two reasons. A positional code of few random frequencies cannot tell near from far (its
similarity has side lobes all over the patch), and what image and click hold besides drowns the code in every attention.
So three slow frequencies, one along each axis, are set aside in channels that nothing else writes to. Two positions
then agree by the sum of three cosines, and the softmax of an attention makes a Gaussian of their distance:

    exp(s sum_a cos(w d_a)) ~ exp(3 s) exp(-s w^2 |d|^2 / 2),   w = 2 pi / PERIOD,   width = 1 / (w sqrt(s))

The tokens of clicks look at the image with a narrow Gaussian; the image looks back with wide ones, a width for every
head, and where it sees a click of the object it is marked. After that start the same regression explains
more than 30 % (tests/stages/test_initial_weights.py).
All weights stay free: training may undo any of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import pi
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from uscl.backbone import SamMed3D
    from uscl.backbone.mask_decoder import DecoderAttention

PERIOD = 256
"""Of the waves set aside, voxels; twice a patch of 128, so that no two voxels of one share a code."""
OTHERS = 0.8
"""Factor on the random frequencies of a patch of 128 voxels."""
LOOK = 8
"""Width of what a click reads of the image, voxels."""
MARK = (8, 13, 20, 30)
"""Widths of what a click marks in the image, voxels; heads take them in turn."""
CONSTANT = 8
"""Channels of a token that begin as +1 or -1: beside them a norm over channels keeps a uniform token's intensity."""


class _Channels(NamedTuple):
    """How the width E of the decoder is used at the start.

    Attributes:
        place: which channels carry the codes set aside [E].
        waves: rows that read their sines and cosines [6, E].
        own: direction of the decoder's own tokens [E].
        click: direction of clicks on the object, and against clicks beside it [E].
    """

    place: Tensor
    waves: Tensor
    own: Tensor
    click: Tensor


@torch.no_grad()
def start_at_clicks(model: SamMed3D) -> None:
    """Starts prompt encoder and mask decoder so that masks begin as balls around clicks (see the module).

    Heads of the decoder's cross-attention that are narrower than 8 have no room for that; such a model is left alone.

    Args:
        model: with random weights.
    """
    config, prompts, decoder = model.config, model.prompt_encoder, model.mask_decoder
    heads, width = config.decoder_heads, config.prompt_dim // 2 // config.decoder_heads
    if width < 8:
        return
    channels = _set_aside(model)
    norms: list[Any] = [model.image_encoder.neck[-1]]
    layers: Any = decoder.transformer.layers
    for number, layer in enumerate(layers):
        norms += [layer.norm1, layer.norm2, layer.norm3, layer.norm4]
        _look(layer.cross_attn_token_to_image, channels, heads)
        _mark(layer.cross_attn_image_to_token, channels, heads)
        layer.mlp.lin2.weight.mul_(0.1)
        layer.self_attn.out_proj.weight.mul_(0.1)
        if number == 0:  # what this attention returns replaces the tokens: each begins as itself
            turn = torch.linalg.qr(torch.randn(config.prompt_dim, config.prompt_dim))[0]
            _set(layer.self_attn.v_proj, turn)
            _set(layer.self_attn.out_proj, turn.T)
            layer.self_attn.q_proj.weight.mul_(2)
            layer.self_attn.k_proj.load_state_dict(layer.self_attn.q_proj.state_dict())
    _look(decoder.transformer.final_attn_token_to_image, channels, heads)
    for norm in norms:
        norm.weight[channels.place] = 0
    dense: Any = prompts.mask_downscaling[-1]
    dense.weight.mul_(0.1)
    dense.weight[channels.place] = 0
    dense.bias.zero_()
    transposed: list[Any] = [decoder.output_upscaling[0], decoder.output_upscaling[3]]
    for upscaling in transposed:
        # All cells of a token begin nearly alike (https://arxiv.org/abs/1707.02937).
        one = torch.randn(*upscaling.weight.shape[:2], 1, 1, 1) + 0.3 * torch.randn(upscaling.weight.shape)
        upscaling.weight.copy_(one / upscaling.weight.shape[0] ** 0.5)


def _set_aside(model: SamMed3D) -> _Channels:
    """Frees channels for three slow frequencies and gives clicks and the decoder's own tokens their directions."""
    prompts, dim = model.prompt_encoder, model.config.prompt_dim
    frequencies = prompts.pe_layer.positional_encoding_gaussian_matrix
    count = frequencies.shape[1]
    # Positions lie in [-1, 1], whatever the size of the patch.
    frequencies.mul_(OTHERS * model.config.image_size / 128)
    # The fourth is 0: its sines are 0 everywhere, which leaves a channel to tell the decoder's own tokens.
    frequencies[:, :3], frequencies[:, 3] = model.config.image_size / (2 * PERIOD) * torch.eye(3), 0
    place = (torch.arange(dim) % count) < 4
    waves = torch.zeros(6, dim)
    for axis in range(3):
        waves[axis, [axis, 2 * count + axis]], waves[3 + axis, count + axis] = 0.5, 1
    own, click = torch.zeros(dim), torch.randn(dim).masked_fill(place, 0)
    own[3], click = 1, click / click.norm()
    channels = _Channels(place, waves, own, click)
    background, foreground = (cast(nn.Embedding, embedding).weight for embedding in prompts.point_embeddings)
    foreground.copy_(dim**0.5 * click[None])
    background.copy_(-foreground)
    for embedding in (prompts.not_a_point_embed, model.mask_decoder.iou_token, model.mask_decoder.mask_tokens):
        embedding.weight.copy_(0.3 * _content(embedding.weight, channels) + dim**0.5 * own)
    return channels


def _content(rows: Tensor, channels: _Channels) -> Tensor:
    """Rows [n, E] without what they have of places, of clicks and of the decoder's own tokens."""
    rows = rows.masked_fill(channels.place, 0)
    return rows - (rows @ channels.click)[:, None] * channels.click


def _directions(count: int, channels: _Channels) -> Tensor:
    """Orthonormal rows [count, E] that read contents alone."""
    rows = _content(torch.randn(count, len(channels.place)), channels)
    return cast(Tensor, torch.linalg.qr(rows.T)[0]).T


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _attend_by_distance(
    attention: DecoderAttention, channels: _Channels, widths: Sequence[float], threshold: float | None = None
) -> None:
    """Queries and keys that agree by distance, and a little by content.

    Args:
        attention: to start.
        channels: what lies where.
        widths: of every head's Gaussian, voxels.
        threshold: None, or how far below a click's peak logit every token that is no click lies.
    """
    heads, inner = len(widths), len(attention.q_proj.weight)
    width = inner // heads
    rows = torch.zeros(heads, width, len(channels.place))
    keys, bias = rows.clone(), torch.zeros(heads, width)
    for head, sigma in enumerate(widths):
        sharpness = (2 * pi / PERIOD * sigma) ** -2
        rows[head, :6] = keys[head, :6] = (sharpness * width**0.5) ** 0.5 * channels.waves
        if threshold is None:
            continue
        keys[head, 6] = channels.own
        bias[head, 6] = (3 * sharpness - threshold) * width**0.5 / len(channels.place) ** 0.5
        rows[head, 7:] = keys[head, 7:] = (1.5 * width**0.5 / (width - 7)) ** 0.5 * _directions(width - 7, channels)
    _set(attention.q_proj, rows.flatten(0, 1), bias.flatten())
    _set(attention.k_proj, keys.flatten(0, 1))


def _look(attention: DecoderAttention, channels: _Channels, heads: int) -> None:
    """Tokens take over the image's content where they are."""
    _attend_by_distance(attention, channels, [LOOK] * heads)
    rows = _directions(len(attention.v_proj.weight), channels)
    _set(attention.v_proj, rows)
    _set(attention.out_proj, rows.T)


def _mark(attention: DecoderAttention, channels: _Channels, heads: int) -> None:
    """The image is marked near clicks, each head with a direction of its own, and against clicks beside the object."""
    _attend_by_distance(attention, channels, [MARK[head % len(MARK)] for head in range(heads)], threshold=3.0)
    inner = len(attention.v_proj.weight)
    read, write = 0.1 * _directions(inner, channels), 0.1 * _directions(inner, channels).T
    first = slice(0, inner, inner // heads)
    read[first], write[:, first] = channels.click, 4 * _directions(heads, channels).T
    _set(attention.v_proj, read)
    _set(attention.out_proj, write)


@torch.no_grad()
def start_as_filter_bank(model: SamMed3D) -> None:
    """Starts the encoder as a bank of filters: the slowest cosines of every token, blocks and neck passing them on.

    A random projection of a token's voxels followed by a norm over channels keeps neither its intensity nor its detail.

    Args:
        model: with random weights.
    """
    encoder, edge = model.image_encoder, model.config.patch_size
    projection: Any = encoder.patch_embed.proj
    filters, frequencies = cosines(edge, len(projection.weight) - CONSTANT)
    projection.weight.zero_()
    # In images the faster a wave, the weaker; the gain evens that out.
    gains = (1 + frequencies)[:, None, None, None, None] / edge**1.5
    projection.weight[CONSTANT : CONSTANT + len(filters)] = gains * filters[:, None]
    projection.bias.zero_()
    projection.bias[:CONSTANT] = 1 - 2.0 * (torch.arange(CONSTANT) % 2)
    blocks: Any = encoder.blocks
    for block in blocks:
        for layer in (*([block.attn.proj] if block.attn is not None else []), block.mlp.lin2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    neck: Any = encoder.neck
    narrow, _, mix, _ = neck
    narrow.weight.copy_(torch.eye(*narrow.weight.shape[:2])[..., None, None, None])
    mix.weight.mul_(0.3)
    mix.weight[:, :, 1, 1, 1] += torch.eye(len(mix.weight))


def cosines(edge: int, count: int) -> tuple[Tensor, Tensor]:
    """The slowest waves of a cube, an orthonormal set (discrete cosine transform, type 2).

    Args:
        edge: of the cube, voxels.
        count: waves; no more than edge^3 come back.

    Returns:
        Waves [count, edge, edge, edge] and their frequencies [count], in half periods per cube.
    """
    at = (torch.arange(edge) + 0.5) / edge
    waves = [torch.cos(pi * k * at) for k in range(edge)]
    waves = [wave / wave.norm() for wave in waves]
    numbers = sorted(product(range(edge), repeat=3), key=lambda k: (sum(i * i for i in k), k))[:count]
    cubes = torch.stack([torch.einsum("i,j,k->ijk", *(waves[k] for k in number)) for number in numbers])
    return cubes, torch.tensor([sum(i * i for i in number) ** 0.5 for number in numbers])
