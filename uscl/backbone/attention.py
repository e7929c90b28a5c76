"""Encoder attention with relative positions, over windows that are computed exactly but never padded.

SAM-Med3D cuts the token grid into windows of 14^3 and fills what is missing with zero tokens *after* the first norm.
The padded tokens are not masked: they take part as keys. On the 8^3 grid of the published model that is 2232 of 2744
keys, about 80 % of the softmax mass at initialisation, so leaving them out would be another model. But every padded
token has the same key (the key part of the qkv bias) and the same value (the value part), and its positional logit
splits into terms per axis. All padded keys of one query therefore fold into ONE key whose value is the value bias and
whose logit is a log-sum-exp: 513 keys instead of 2744 for the same function up to rounding. Padded queries are thrown
away by the original and never made here.

Notation: a window has e tokens along each axis, of which (d, h, w) are real; R_d, R_h, R_w are the relative-position
tables with R[i, j] = rel_pos[i - j + e - 1]; c is the width of one head.

Published positions. The published code misses one axis when it broadcasts the three terms, and its weights were trained
that way (https://github.com/uni-medical/SAM-Med3D, every revision). With q unscaled it computes::

    bias[(qd,qh,qw), (kd,kh,kw)] = q[qd,qh,qw].R_d[qd,kw] + q[qd,qh,kd].R_h[qh,kw] + q[qd,qh,kh].R_w[kh,kw]

where the query at a padded w-position is the query bias. Textbook positions, for models trained from scratch::

    bias[(qd,qh,qw), (kd,kh,kw)] = q.R_d[qd,kd] + q.R_h[qh,kh] + q.R_w[qw,kw]        (q at qd,qh,qw)

Both sum over the padded keys as three disjoint boxes of keys, each a product of sums over single axes; only positive
terms are added, in the log domain, so nothing cancels.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from uscl.types import TokenGrid

Bias = tuple[Tensor, Tensor | None]
"""Positional logits of the real keys [B, heads, n, n], and of the folded key [B, heads, n] where there is one."""


class WindowAttention(nn.Module):
    """Multi-head self-attention over windows of a cubic token grid, with relative positions.

    Args:
        dim: token width C.
        num_heads: attention heads.
        edge: tokens along one axis of a window, or of the whole grid where ``window_size`` is 0.
        window_size: edge of a window, or 0 for attention over the whole grid.
        published_positions: which of the two positional terms of the module docstring to compute.
    """

    def __init__(self, dim: int, num_heads: int, edge: int, window_size: int, published_positions: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.published_positions = published_positions
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * edge - 1, dim // num_heads))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * edge - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * edge - 1, dim // num_heads))

    def forward(self, tokens: TokenGrid) -> TokenGrid:
        """Attends within each window.

        Args:
            tokens: [B, D, H, W, C], e.g. [2, 8, 8, 8, 768].

        Returns:
            Tokens of the same shape.
        """
        if self.window_size == 0:
            return self._attend(tokens)
        spans = [_window_spans(extent, self.window_size) for extent in tokens.shape[1:4]]
        return _join(tokens, spans, self._attend)

    def _attend(self, tokens: TokenGrid) -> TokenGrid:
        """Attention within windows [B, d, h, w, C] whose missing tokens (up to the window edge) are folded."""
        batch, d, h, w, dim = tokens.shape
        n, heads, width = d * h * w, self.num_heads, dim // self.num_heads
        # Linear layers get two axes: with more, torch picks its matrix product by requires_grad, so that freezing a
        # weight would change the last bit of the output.
        qkv = self.qkv(tokens.reshape(-1, dim)).reshape(batch, n, 3, heads, width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias_q, bias_k, bias_v = self.qkv.bias.to(q.dtype).reshape(3, 1, heads, 1, width).unbind(0)
        grid = q.reshape(batch, heads, d, h, w, width)
        if self.published_positions:
            bias, padded = self._published_bias(grid, bias_q)
        else:
            bias, padded = self._textbook_bias(grid)
        if padded is not None:
            bias = torch.cat([bias, padded[..., None]], dim=-1)
            k = torch.cat([k, bias_k.expand(batch, heads, 1, width)], dim=2)
            v = torch.cat([v, bias_v.expand(batch, heads, 1, width)], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=width**-0.5)
        return cast("Tensor", self.proj(out.transpose(1, 2).reshape(-1, dim))).reshape(batch, d, h, w, dim)

    def _tables(self, d: int, h: int, w: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Window edge e and the three tables [real queries, e, c]."""
        edge = (self.rel_pos_d.shape[0] + 1) // 2
        rel_pos = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        tables = [_relative(table, extent, edge) for table, extent in zip(rel_pos, (d, h, w), strict=True)]
        return edge, tables[0], tables[1], tables[2]

    def _published_bias(self, q: Tensor, bias_q: Tensor) -> Bias:
        """The published positional logits; q is [B, heads, d, h, w, c]."""
        batch, heads, d, h, w, width = q.shape
        edge, table_d, table_h, _ = self._tables(d, h, w)
        table_w = _relative(self.rel_pos_w, edge, edge)  # its query axis plays kh, which runs over padding too
        filler = bias_q.reshape(1, heads, 1, 1, 1, width).expand(batch, heads, d, h, edge - w, width)
        row = torch.cat([q, filler], dim=4) if w < edge else q
        term_d = _einsum("bndhwc,dkc->bndhwk", q, table_d)  # [..., qw, kw]
        term_h = _einsum("bndhxc,hkc->bndhxk", row, table_h)  # [..., kd, kw]
        term_w = _einsum("bndhyc,ykc->bndhyk", row, table_w)  # [..., kh, kw]
        real = (term_h[..., :d, None, :w] + term_w[..., None, :h, :w])[:, :, :, :, None] + term_d[..., None, None, :w]
        boxes = []
        all_h, all_w = term_h.logsumexp(4), term_w.logsumexp(4)  # over every kd, over every kh: [..., kw]
        if w < edge:  # kw padded, any kd and kh
            boxes.append(term_d[..., w:] + (all_h + all_w)[..., None, w:])
        if d < edge:  # kw real, kd padded, any kh
            boxes.append(term_d[..., :w] + (term_h[..., d:, :].logsumexp(4) + all_w)[..., None, :w])
        if h < edge:  # kw and kd real, kh padded
            some_h = term_h[..., :d, :].logsumexp(4) + term_w[..., h:, :].logsumexp(4)
            boxes.append(term_d[..., :w] + some_h[..., None, :w])
        n = d * h * w
        padded = torch.cat(boxes, dim=-1).logsumexp(-1).reshape(batch, heads, n) if boxes else None
        return real.reshape(batch, heads, n, n), padded

    def _textbook_bias(self, q: Tensor) -> Bias:
        """The textbook positional logits; q is [B, heads, d, h, w, c]."""
        batch, heads, d, h, w, _ = q.shape
        edge, table_d, table_h, table_w = self._tables(d, h, w)
        term_d = _einsum("bndhwc,dkc->bndhwk", q, table_d)  # [..., kd]
        term_h = _einsum("bndhwc,hkc->bndhwk", q, table_h)  # [..., kh]
        term_w = _einsum("bndhwc,wkc->bndhwk", q, table_w)  # [..., kw]
        real = term_d[..., :d, None, None] + term_h[..., None, :h, None] + term_w[..., None, None, :w]
        boxes = []
        if d < edge:  # kd padded, any kh and kw
            boxes.append(term_d[..., d:].logsumexp(-1) + term_h.logsumexp(-1) + term_w.logsumexp(-1))
        if h < edge:  # kd real, kh padded, any kw
            boxes.append(term_d[..., :d].logsumexp(-1) + term_h[..., h:].logsumexp(-1) + term_w.logsumexp(-1))
        if w < edge:  # kd and kh real, kw padded
            some = term_d[..., :d].logsumexp(-1) + term_h[..., :h].logsumexp(-1)
            boxes.append(some + term_w[..., w:].logsumexp(-1))
        n = d * h * w
        padded = torch.stack(boxes).logsumexp(0).reshape(batch, heads, n) if boxes else None
        return real.reshape(batch, heads, n, n), padded


def _einsum(equation: str, q: Tensor, table: Tensor) -> Tensor:
    """A product whose exponentials are summed next: in float32 at least, whatever autocast computed it in."""
    term = torch.einsum(equation, q, table)
    return term.float() if term.dtype in (torch.float16, torch.bfloat16) else term


def _relative(rel_pos: Tensor, queries: int, edge: int) -> Tensor:
    """Rows R[i, j] = rel_pos[i - j + edge - 1]: [queries, edge, c]."""
    i = torch.arange(queries, device=rel_pos.device)[:, None]
    j = torch.arange(edge, device=rel_pos.device)[None, :]
    return rel_pos[i - j + edge - 1]


def _window_spans(extent: int, window: int) -> list[tuple[int, int, int]]:
    """Cuts one axis into (start, tokens per window, number of windows): the whole windows, then the remainder."""
    whole, rest = divmod(extent, window)
    spans = [(0, window, whole)] if whole else []
    return [*spans, (whole * window, rest, 1)] if rest else spans


def _join(tokens: Tensor, spans: list[list[tuple[int, int, int]]], attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies ``attend`` to all windows of equal size at once and puts the grid together again."""
    batch, dim = tokens.shape[0], tokens.shape[-1]
    parts: dict[tuple[int, ...], Tensor] = {}
    for corner in product(*(range(len(axis)) for axis in spans)):
        (d0, d, nd), (h0, h, nh), (w0, w, nw) = (axis[i] for axis, i in zip(spans, corner, strict=True))
        part = tokens[:, d0 : d0 + d * nd, h0 : h0 + h * nh, w0 : w0 + w * nw]
        windows = part.reshape(batch, nd, d, nh, h, nw, w, dim).permute(0, 1, 3, 5, 2, 4, 6, 7)
        out = attend(windows.reshape(-1, d, h, w, dim)).reshape(batch, nd, nh, nw, d, h, w, dim)
        parts[corner] = out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, nd * d, nh * h, nw * w, dim)
    planes = [
        torch.cat(
            [torch.cat([parts[i, j, k] for k in range(len(spans[2]))], dim=3) for j in range(len(spans[1]))], dim=2
        )
        for i in range(len(spans[0]))
    ]
    return torch.cat(planes, dim=1)
