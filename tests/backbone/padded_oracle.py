"""The plain padded window attention of SAM-Med3D, as slow and large as the original: what the folded one must equal."""

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone.attention import WindowAttention
from uscl.backbone.image_encoder import ImageEncoder


def padded_attention(layer: WindowAttention, tokens: Tensor) -> Tensor:
    """Pads the grid with zero tokens to whole windows, attends over all of them, crops."""
    window = layer.window_size
    if window == 0:
        return attend(layer, tokens)
    batch, *extents, dim = tokens.shape
    missing = [-extent % window for extent in extents]
    padded = F.pad(tokens, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
    counts = [(extent + more) // window for extent, more in zip(extents, missing, strict=True)]
    shape = (batch, counts[0], window, counts[1], window, counts[2], window, dim)
    windows = padded.reshape(shape).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window, window, window, dim)
    out = attend(layer, windows).reshape(batch, *counts, window, window, window, dim)
    out = out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(padded.shape)
    return out[:, : extents[0], : extents[1], : extents[2]]


def attend(layer: WindowAttention, tokens: Tensor) -> Tensor:
    """Attention over all tokens of whole windows [B, e, e, e, C], every bias written out."""
    batch, e, _, _, dim = tokens.shape
    heads, n = layer.num_heads, e**3
    width = dim // heads
    q, k, v = layer.qkv(tokens).reshape(batch, n, 3, heads, width).permute(2, 0, 3, 1, 4)
    i, j = torch.arange(e)[:, None], torch.arange(e)[None]
    tables = [rel_pos[i - j + e - 1] for rel_pos in (layer.rel_pos_d, layer.rel_pos_h, layer.rel_pos_w)]
    grid = q.reshape(batch, heads, e, e, e, width)
    if layer.published_positions:
        # q[qd,qh,qw].Rd[qd,kw] + q[qd,qh,kd].Rh[qh,kw] + q[qd,qh,kh].Rw[kh,kw]
        first = torch.einsum("bndhwc,dkc->bndhwk", grid, tables[0])  # qd qh qw kw
        second = torch.einsum("bndhxc,hkc->bndhxk", grid, tables[1])  # qd qh kd kw
        third = torch.einsum("bndhyc,ykc->bndhyk", grid, tables[2])  # qd qh kh kw
        bias = first[..., None, None, :] + second[:, :, :, :, None, :, None] + third[:, :, :, :, None, None]
    else:
        first = torch.einsum("bndhwc,dkc->bndhwk", grid, tables[0])  # kd
        second = torch.einsum("bndhwc,hkc->bndhwk", grid, tables[1])  # kh
        third = torch.einsum("bndhwc,wkc->bndhwk", grid, tables[2])  # kw
        bias = first[..., :, None, None] + second[..., None, :, None] + third[..., None, None, :]
    logits = width**-0.5 * q @ k.transpose(-1, -2) + bias.reshape(batch, heads, n, n)
    out = logits.softmax(-1) @ v
    return layer.proj(out.transpose(1, 2).reshape(tokens.shape))


def padded_encoder(encoder: ImageEncoder, image: Tensor) -> Tensor:
    """The whole encoder with padded windows."""
    tokens = encoder.patch_embed(image) + encoder.pos_embed
    for block in encoder.blocks:
        tokens = tokens + padded_attention(block.attn, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return encoder.neck(tokens.permute(0, 4, 1, 2, 3))
