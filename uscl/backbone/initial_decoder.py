"""A mask decoder that begins as a kernel density of the clicks (see :mod:`uscl.backbone.initial_weights`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from uscl.backbone import SamMed3D
    from uscl.backbone.mask_decoder import DecoderAttention

Pair = tuple[int, int]

PERIOD = 256
"""Of the waves of place, voxels; twice a patch of 128, so that no two voxels of one share a code."""
LOOK = 1.0
"""Width of where a click takes over what the image holds, voxels."""
CODE = 1.0
"""Amplitude of the code of intensity and of the labels of clicks."""
CONSTANT = 4.0
"""Four channels of every token begin as plus or minus this: beside them the norms over channels change little."""
OWN = 8.0
"""Amplitude of the decoder's own tokens in their two channels."""
MARKED = 2.0
"""How strongly clicks mark the image."""

CELL = 0.35
"""Of the intensities of cells, between the layers that draw the mask."""
LEVELS = (0.0, -0.5, 0.5, -1.0, 1.0, -1.7, 1.7, 2.5)
"""Intensities, standard deviations of the image, that cells are compared with at the start."""
STEEP = 2.0
"""Of that comparison, per standard deviation."""


class Neighbourhood(NamedTuple):
    """What an attention head counts as a neighbour of a click.

    Attributes:
        near: width of where it lies, voxels.
        alike: width of its difference of intensity, standard deviations of the image.
        none: k, the density of clicks beneath which a token is near none.
    """

    near: float
    alike: float
    none: float


NEIGHBOURHOODS = (
    Neighbourhood(14, 0.25, 0.1),
    Neighbourhood(10, 0.35, 0.3),
    Neighbourhood(20, 0.2, 0.2),
    Neighbourhood(8, 0.5, 0.3),
)
"""Heads take them in turn, block by block."""


@dataclass(frozen=True)
class Channels:
    """How the width E of the decoder is used at the start.

    Most quantities are held by two channels, one the negative of the other: a norm over channels subtracts their mean,
    which the difference of the two does not see.

    Attributes:
        place: channels that carry the codes of places and nothing else.
        waves: rows that read the waves of place [6, E].
        ones: channels in which the code of every place is 1.
        own: pair that marks the decoder's own tokens.
        constant: pairs that hold the length of every token.
        code: pairs of the code of the intensity.
        label: pair of clicks, plus on the object, minus beside it.
        marks: pairs of what clicks leave in the image, one per block of the decoder.
        detail: channels left for waves of the image, the slowest first.
    """

    place: list[int]
    waves: Tensor
    ones: list[int]
    own: Pair
    constant: list[Pair]
    code: list[Pair]
    label: Pair
    marks: list[Pair]
    detail: list[int]

    @property
    def coded(self) -> list[int]:
        """Channels of the pairs that image tokens use."""
        return _flat([*self.constant, *self.code, self.label, *self.marks])


def _flat(pairs: Sequence[Pair]) -> list[int]:
    return [channel for pair in pairs for channel in pair]


def set_aside(model: SamMed3D) -> Channels:
    """Gives the frequencies of the positional code their tasks, and channels theirs.

    The code holds the sine, the cosine and again the sine of every frequency. All but three frequencies are set to 0:
    their sines leave two channels in which no place ever shows.
    """
    frequencies = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    count, dim = frequencies.shape[1], model.config.prompt_dim
    # Positions lie in [-1, 1], whatever the size of the patch.
    frequencies[:, :3], frequencies[:, 3:] = model.config.image_size / (2 * PERIOD) * torch.eye(3), 0
    waves = torch.zeros(6, dim)
    for axis in range(3):
        waves[axis, [axis, 2 * count + axis]], waves[3 + axis, count + axis] = 0.5, 1
    ones = list(range(count + 3, 2 * count))
    pairs = [(channel, 2 * count + channel) for channel in range(3, count)]
    return Channels(
        place=[channel for channel in range(dim) if channel % count < 3],
        waves=waves,
        ones=ones,
        own=pairs[0],
        constant=pairs[1:3],
        code=pairs[3:7],
        label=pairs[7],
        marks=pairs[8:10],
        detail=[*_flat(pairs[10:]), *ones],
    )


def start_decoder(model: SamMed3D, channels: Channels, periods: Sequence[float], cells: Tensor) -> None:
    """Starts prompt encoder and mask decoder.

    Args:
        model: with random weights, its frequencies set aside.
        channels: what :func:`set_aside` returned.
        periods: of the two waves of intensity, standard deviations.
        cells: reads the intensities of cells off the first channels of detail [4, 4, 4, channels].
    """
    decoder: Any = model.mask_decoder
    _start_tokens(model, channels)
    own_tokens = len(decoder.mask_tokens.weight) + 2  # and the one of the IoU and the padding point
    for number, layer in enumerate(decoder.transformer.layers):
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            pass_on(norm, channels)
        if number == 0:
            # What the own tokens read of the image next, a mean over all of it, is little beside this.
            layer.norm1.weight[list(channels.own)] *= 20
            _stay(layer.self_attn, channels)
        else:
            nn.init.zeros_(layer.self_attn.out_proj.weight)
        _look(layer.cross_attn_token_to_image, channels, 1.0 if number == 0 else 0.1)
        layer.mlp.lin1.weight[:, _flat([*channels.constant, channels.own])] /= CONSTANT
        nn.init.zeros_(layer.mlp.lin2.weight)
        nn.init.zeros_(layer.mlp.lin2.bias)
        heads = layer.cross_attn_image_to_token.num_heads
        kernels = [NEIGHBOURHOODS[(number * heads + head) % len(NEIGHBOURHOODS)] for head in range(heads)]
        _mark(layer.cross_attn_image_to_token, channels, channels.marks[min(number, 1)], kernels, periods, own_tokens)
    _look(decoder.transformer.final_attn_token_to_image, channels, 0.1)
    dense: Any = model.prompt_encoder.mask_downscaling[-1]
    nn.init.zeros_(dense.weight)
    nn.init.zeros_(dense.bias)
    _start_upscaling(decoder, channels)
    if model.config.prompt_dim >= 80:
        _show_cells(decoder, channels, cells)


def _start_tokens(model: SamMed3D, channels: Channels) -> None:
    """Clicks are marked by their label, the decoder's own tokens by a direction of theirs."""
    click = torch.zeros(model.config.prompt_dim)
    click[_flat(channels.constant)] = CONSTANT * alternating(4)
    click[channels.ones] = -1  # takes off what the code of every place adds
    background, foreground = (cast(nn.Embedding, one).weight for one in model.prompt_encoder.point_embeddings)
    for label, weight in ((-CODE, background), (CODE, foreground)):
        weight.copy_(click[None])
        weight[:, list(channels.label)] = torch.tensor([label, -label])
    prompts, decoder = model.prompt_encoder, model.mask_decoder
    for own in (prompts.not_a_point_embed, decoder.iou_token, decoder.mask_tokens):
        own.weight[:, [*channels.place, *channels.coded]] = 0
        own.weight[:, list(channels.own)] = torch.tensor([OWN, -OWN])


def _stay(attention: DecoderAttention, channels: Channels) -> None:
    """An attention whose values replace the tokens: each begins as itself."""
    inner, dim = attention.q_proj.weight.shape
    turn = torch.linalg.qr(torch.randn(dim, dim))[0]
    _set(attention.v_proj, turn)
    _set(attention.out_proj, turn.T)
    width = inner // attention.num_heads
    rows = torch.zeros(attention.num_heads, width, dim)
    rows[:, :6] = (_sharpness(2) * width**0.5) ** 0.5 * channels.waves
    rows[:, 6] = (20 * width**0.5) ** 0.5 / OWN * _read(channels.own, dim)
    _set(attention.q_proj, rows.flatten(0, 1))
    _set(attention.k_proj, rows.flatten(0, 1))


def _look(attention: DecoderAttention, channels: Channels, share: float) -> None:
    """Tokens take over what the image holds where they are."""
    inner, dim = attention.q_proj.weight.shape
    width = inner // attention.num_heads
    rows = torch.zeros(attention.num_heads, width, dim)
    rows[:, :6] = (_sharpness(LOOK) * width**0.5) ** 0.5 * channels.waves
    _set(attention.q_proj, rows.flatten(0, 1))
    _set(attention.k_proj, rows.flatten(0, 1))
    read = torch.zeros(inner, dim)
    chosen = [*_flat(channels.code), *channels.detail][:inner]
    read[range(len(chosen)), chosen] = 1
    _set(attention.v_proj, read)
    _set(attention.out_proj, share * read.T)


def _mark(
    attention: DecoderAttention,
    channels: Channels,
    mark: Pair,
    kernels: Sequence[Neighbourhood],
    periods: Sequence[float],
    own_tokens: int,
) -> None:
    """The image is marked by the density of clicks: every head a kernel, the own tokens what stands for none."""
    inner, dim = attention.q_proj.weight.shape
    heads = len(kernels)
    width = inner // heads
    rows = torch.zeros(heads, width, dim)
    keys, bias = rows.clone(), torch.zeros(heads, width)
    # An own token is nothing but this after its norm, in either of its channels; its key is that plus itself.
    normed = _norm_scale(dim) * (dim / 2) ** 0.5
    # Of the sum of the waves of intensity where two agree.
    curvature = sum((2 * pi / period) ** 2 for period in periods)
    for head, (near, alike, none) in enumerate(kernels):
        agreement = 1 / (alike**2 * curvature)
        rows[head, :6] = keys[head, :6] = (_sharpness(near) * width**0.5) ** 0.5 * channels.waves
        for number, pair in enumerate(channels.code):
            code = (agreement * width**0.5) ** 0.5 / CODE * _read(pair, dim)
            rows[head, 7 + number] = keys[head, 7 + number] = code
        peak = 3 * _sharpness(near) + len(periods) * agreement
        keys[head, 6] = _read(channels.own, dim) / (normed + OWN)
        bias[head, 6] = (peak + log(none / own_tokens)) * width**0.5
    _set(attention.q_proj, rows.flatten(0, 1), bias.flatten())
    _set(attention.k_proj, keys.flatten(0, 1))
    read, write = 0.1 * torch.randn(inner, dim) / dim**0.5, 0.1 * torch.randn(dim, inner) / inner**0.5
    write[_flat([*channels.constant, *channels.code, *channels.marks])] = 0
    first = list(range(0, inner, width))
    read[first] = _read(channels.label, dim) / CODE - _read(channels.own, dim) / normed
    write[:, first] = 0
    write[mark[0], first], write[mark[1], first] = MARKED / heads, -MARKED / heads
    _set(attention.v_proj, read)
    _set(attention.out_proj, write)


def _start_upscaling(decoder: Any, channels: Channels) -> None:
    """Cells begin as what their token is marked with: a positive and a negative part, which the kernel subtracts."""
    first, norm, _, second, _ = decoder.output_upscaling
    for layer in (first, second):
        # All cells of a token begin nearly alike (https://arxiv.org/abs/1707.02937).
        one = torch.randn(*layer.weight.shape[:2], 1, 1, 1) + 0.3 * torch.randn(layer.weight.shape)
        layer.weight.copy_(0.3 * one / layer.weight.shape[0] ** 0.5)
        nn.init.zeros_(layer.bias)
    first.weight[[*channels.place, *_flat(channels.constant)]] = 0
    first.weight[:, :4] = 0
    first.bias[:2] = CONSTANT * alternating(2)
    for pair in channels.marks:
        for channel, sign in zip(pair, (0.5, -0.5), strict=True):
            first.weight[channel, 2], first.weight[channel, 3] = sign / MARKED, -sign / MARKED
    norm.weight.fill_((2 * CONSTANT**2 / len(norm.weight)) ** 0.5)
    second.weight[:2], second.weight[:, :2] = 0, 0
    second.weight[2, 0], second.weight[3, 0] = 1, -1
    second.weight[2, 1], second.weight[3, 1] = -1, 1
    for head in decoder.output_hypernetworks_mlps:
        head.layers[0].weight[:, _flat([*channels.constant, channels.own])] /= CONSTANT
        last = head.layers[-1]
        last.weight.mul_(0.1)
        nn.init.zeros_(last.bias)
        last.bias[:2] = torch.tensor([2.0, -2.0])


def _show_cells(decoder: Any, channels: Channels, cells: Tensor) -> None:
    """Every cell also begins with how far its own intensity exceeds each of :data:`LEVELS`.

    What is brighter or darker than the object within a token can then be left out of the mask by a linear kernel. The
    layers between see a cell of 2^3 cells: a pair of channels for the intensity of each.
    """
    first, _, _, second, _ = decoder.output_upscaling
    count = cells.shape[3]
    split = cells.reshape(2, 2, 2, 2, 2, 2, count).permute(6, 1, 3, 5, 0, 2, 4).reshape(count, 8, 2, 2, 2)
    first.weight[:, 4:20] = 0
    for number in range(8):
        first.weight[channels.detail[:count], 4 + 2 * number] = CELL * split[:, number]
        first.weight[channels.detail[:count], 5 + 2 * number] = -CELL * split[:, number]
    levels = torch.tensor(LEVELS[: second.weight.shape[1] - 4])
    shown = slice(4, 4 + len(levels))
    second.weight[:, shown] = 0
    for number in range(8):
        x, y, z = number // 4, number // 2 % 2, number % 2
        second.weight[4 + 2 * number, shown, x, y, z] = STEEP / CELL
        second.weight[5 + 2 * number, shown, x, y, z] = -STEEP / CELL
    second.bias[shown] = -STEEP * levels
    for head in decoder.output_hypernetworks_mlps:
        head.layers[-1].weight[shown] *= 0.1


def pass_on(norm: Any, channels: Channels) -> None:
    """Starts a norm over channels so that it changes little, except that it keeps the channels of places free."""
    norm.weight.fill_(_norm_scale(len(norm.weight)))
    norm.weight[channels.place] = 0
    nn.init.zeros_(norm.bias)


def alternating(count: int) -> Tensor:
    """1, -1, 1 ..., as many as asked for."""
    return 1 - 2.0 * (torch.arange(count) % 2)


def _norm_scale(dim: int) -> float:
    """Root mean square of a token of constants and the code of its intensity."""
    return float(((4 * CONSTANT**2 + 4 * CODE**2) / dim) ** 0.5)


def _sharpness(width: float) -> float:
    """Factor s of the cosines of place whose Gaussian has this width, voxels."""
    return float((2 * pi / PERIOD * width) ** -2)


def _read(pair: Pair, dim: int) -> Tensor:
    """Row [E] that reads what a pair of channels holds."""
    row = torch.zeros(dim)
    row[list(pair)] = torch.tensor([0.5, -0.5])
    return row


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
