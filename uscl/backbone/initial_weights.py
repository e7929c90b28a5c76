"""Random weights of a SAM-Med3D that already segment: what is near a click and looks like it belongs to its object.

With independent random weights a model must first find out where clicks lie, then what lies there, and then compare it
with the rest of the image; small models on small machines spend their whole training on that. All of it can be written
down instead. Two places, or two intensities, agree by a sum of cosines, and the softmax of an attention makes a
Gaussian of their difference:

    exp(s cos(w d)) ~ exp(s) exp(-s w^2 d^2 / 2),   width = 1 / (w sqrt(s))

So three slow waves, one along each axis, and two waves of the intensity are set aside in channels that nothing else
writes to. Tokens of clicks look where they are and take over the intensity; every image token then looks at the clicks
and is marked with

    (P - N - k) / (P + N + k),   P, N = sum over the clicks on, beside the object of
                                        exp(-|distance|^2 / 2 NEAR^2) exp(-(difference of intensity)^2 / 2 ALIKE^2)

whose sign is the mask: the classifier by kernel density (Parzen window) of the clicks, over place and intensity. Where
the decoder has room (prompt_dim of 80 or more), cells finer than a token begin compared with levels of intensity. All
weights stay free: training may undo any of this, and does at once at learning rates that suit random weights.
How near the model comes to the formula: tests/backbone/test_initial_weights.py.
"""

from __future__ import annotations

import logging
from itertools import product
from math import pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uscl.backbone.initial_decoder import CODE, CONSTANT, Channels, alternating, pass_on, set_aside, start_decoder

if TYPE_CHECKING:
    from uscl.backbone import SamMed3D

log = logging.getLogger(__name__)
INTENSITY_PERIODS = (8.0, 4.0)
"""Of the waves of intensity, standard deviations of the image."""
BRIGHTEST = 3.6
"""Beyond this many standard deviations from the mean, intensities count as the same."""
ENCODED = 20.0
"""Four channels of the encoder begin as plus or minus this: beside them its norms over channels change little."""
UNITS = 64
"""Hidden units of the first MLP that code the intensity."""


def has_room(model: SamMed3D) -> bool:
    """Whether a model is wide enough, and codes the places of clicks and of tokens alike."""
    config = model.config
    return (
        not config.published_positions
        and config.prompt_dim // 2 // config.decoder_heads >= 12
        and config.prompt_dim >= 48
        and config.embed_dim >= 16
        and config.patch_size % 4 == 0
    )


@torch.no_grad()
def start_at_clicks(model: SamMed3D) -> None:
    """Starts a model so that masks are what is near the clicks and looks like them (see the module).

    Args:
        model: with random weights; one without room for it (:func:`has_room`) is left alone, which is said.
    """
    if not has_room(model):
        log.warning(
            "start_at_clicks: this backbone keeps its random weights; it needs published_positions=False, "
            "prompt_dim of 48 or more, 24 per decoder head, embed_dim of 16 or more, and patch_size a "
            "multiple of 4"
        )
        return
    channels = set_aside(model)
    start_decoder(model, channels, INTENSITY_PERIODS, _start_encoder(model, channels))


def _start_encoder(model: SamMed3D, channels: Channels) -> Tensor:
    """A bank of filters: constants, the code of the intensity, and the slowest cosines of every token.

    Returns:
        How to read the mean intensities of a token's 4^3 cells off the channels of detail [4, 4, 4, channels].
    """
    encoder: Any = model.image_encoder
    edge, width = model.config.patch_size, model.config.embed_dim
    code = 2 * len(INTENSITY_PERIODS)
    projection = encoder.patch_embed.proj
    filters, frequencies = cosines(edge, width - 4 - code)
    gains = (1 + frequencies) ** 0.5 / edge**1.5  # in images the faster a wave, the weaker
    gains[1:] /= 4
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    projection.weight[4 + code : 4 + code + len(filters), 0] = gains[:, None, None, None] * filters
    projection.bias[:4] = ENCODED * alternating(4)
    for block in encoder.blocks:
        for norm in ([block.norm1] if block.attn is not None else []) + [block.norm2]:
            norm.weight.fill_((4 * ENCODED**2 / width) ** 0.5)
            if not model.config.residual_after_norm:
                norm.weight[:4] /= ENCODED
        for layer in (*([block.attn.proj] if block.attn is not None else []), block.mlp.lin2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    _code_intensity(encoder.blocks[0], slice(4, 4 + code), 4 + code)
    narrow, first, mix, second = encoder.neck
    nn.init.zeros_(narrow.weight)
    for number, pair in enumerate(channels.code):
        narrow.weight[list(pair), 4 + number, 0, 0, 0] = torch.tensor([1.0, -1.0])
    details = channels.detail[: len(filters)]
    narrow.weight[details, range(4 + code, 4 + code + len(details))] = 1
    narrow.weight[details[0]] /= 4  # its code says the same, and outliers are large
    constants = [channel for pair in channels.constant for channel in pair]
    narrow.weight[constants, range(4)] = CONSTANT / ENCODED
    mix.weight.mul_(0.05)
    mix.weight[:, :, 1, 1, 1] += torch.eye(len(mix.weight))
    mix.weight[[*channels.coded, *channels.place]] = 0
    mix.weight[channels.coded, channels.coded, 1, 1, 1] = 1
    for norm in (first, second):
        pass_on(norm, channels)
    gains[0] /= 4
    cells: Tensor = (
        F.avg_pool3d(filters[: len(details), None], edge // 4)[:, 0] / gains[: len(details), None, None, None]
    )
    return cells.permute(1, 2, 3, 0)


def _code_intensity(block: Any, to: slice, intensity: int) -> None:
    """Fits the first MLP so that it writes cosines and sines of a token's intensity to the channels ``to``."""
    values = torch.linspace(-12, 12, 2401)
    tokens = torch.zeros(len(values), block.mlp.lin1.weight.shape[1])
    tokens[:, :4], tokens[:, intensity] = ENCODED * alternating(4), values
    normed = block.norm2(tokens)
    steepness = 3 * float(values.diff().mean() / normed[:, intensity].diff().mean())
    layer, used = block.mlp.lin1, min(UNITS, len(block.mlp.lin1.weight))
    layer.weight[:used] = 0
    layer.weight[:used, intensity] = steepness
    layer.bias[:used] = -3 * torch.linspace(-4.5, 4.5, used)
    features = torch.cat([block.mlp.act(layer(normed))[:, :used], torch.ones(len(values), 1)], dim=1).double()
    ridge = 1e-7 * len(values) * torch.eye(used + 1)
    weights = torch.linalg.solve(features.T @ features + ridge, features.T @ intensity_code(values).double()).float()
    block.mlp.lin2.weight[to, :used] = weights[:-1].T
    block.mlp.lin2.bias[to] = weights[-1]


def intensity_code(values: Tensor) -> Tensor:
    """Cosine and sine of intensities [...] at each of the periods: [..., 4]."""
    angles = [2 * pi / period * values.clamp(-BRIGHTEST, BRIGHTEST) for period in INTENSITY_PERIODS]
    return CODE * torch.stack([wave for angle in angles for wave in (angle.cos(), angle.sin())], dim=-1)


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
