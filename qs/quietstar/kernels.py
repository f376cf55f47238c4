"""Fast eager forms of what `attention` and `losses` write out: the same values and gradients.

Each is tested against the obvious form on drawn inputs in float64. They save what the obvious form
spends on the CPU beside its matrix products: temporaries of the size of all scores or logits, rows
whose gradient is zero, and text that a block of anchors does not see. `LinearNLL` runs everywhere,
`JoinedAttention` eagerly on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qs.model import kernels, products

ROWS_AT_ONCE = 1024  # queries of one call of the flash kernel: its masks and outputs stay in cache
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Block(NamedTuple):
    """Neighbouring anchors, and the text that any of their slots sees.

    Attributes:
        anchors: which of the A anchors.
        text: which of the T positions.
        hidden: (B, 1, rows, positions) 0 where a row sees a position, else -inf.
        blind: (B, 1, rows) rows that see none of them; None where there is no such row.
    """

    anchors: slice
    text: slice
    hidden: Tensor
    blind: Tensor | None


def blocks_of(text_mask: Tensor, K: int, shared: int, dtype: torch.dtype) -> list[Block]:
    """Cut (B, A, Q, T) visibility of the text into blocks of anchors.

    Args:
        text_mask: the same for the K thoughts of an anchor.
        K: thoughts of an anchor.
        shared: query heads that share a key head.
        dtype: of the scores.
    """
    B, A, Q, T = text_mask.shape
    size = max(1, ROWS_AT_ONCE // (K * shared * Q))
    columns = text_mask.any(2).any(0)  # (A, T)
    blocks = []
    for first in range(0, A, size):
        anchors = slice(first, min(first + size, A))
        seen = columns[anchors].any(0).nonzero().flatten().tolist()
        text = slice(seen[0], seen[-1] + 1) if seen else slice(0, 1)
        mask = text_mask[:, anchors, :, text]  # (B, a, Q, t)
        a, t = mask.shape[1], mask.shape[3]
        # rows stand in the order (anchor, thought, shared head, slot)
        mask = mask[:, :, None, None].expand(B, a, K, shared, Q, t).reshape(B, 1, -1, t)
        hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
        blind = ~mask.any(-1)
        blocks.append(Block(anchors, text, hidden, blind if blind.any() else None))
    return blocks


def blocks_for(like: Tensor | None, text_mask: Tensor, K: int, shared: int) -> list[Block] | None:
    """`blocks_of` where the kernels serve an eager input, and there are anchors; else None."""
    if like is None or not kernels.serves(like) or not text_mask.shape[1]:
        return None
    return blocks_of(text_mask, K, shared, like.dtype)


class JoinedAttention(torch.autograd.Function):
    """`attention.joined_attention` without its scores: flash attention over the text a block sees.

    Attention over the text and over a branch's own few slots are computed apart and joined by their
    log-sum-exp; backward, each is the softmax under the joined one.
    """

    @staticmethod
    def forward(ctx, q, text_k, text_v, own_k, own_v, blocks: list[Block], own_mask):
        """Arguments as of `attention.joined_attention`, but `blocks` for the mask of the text."""
        (B, A, K, Q, H, d), G, L = q.shape, text_k.shape[1], own_k.shape[4]
        g = H // G
        # the g query heads that share a key head stand in line as its queries
        x = _by_key_head(q, G)
        k, v = text_k.contiguous(), text_v.contiguous()  # (B, G, T, d)
        own_k, own_v = (y.reshape(-1, L, d) for y in (own_k, own_v))  # (B G A K, L, d)
        scale = d**-0.5
        out, lse = torch.empty_like(x), x.new_empty(x.shape[:3])
        for block, rows in _rows(blocks, K * g * Q):
            seen = x[:, :, rows], k[:, :, block.text], v[:, :, block.text]
            out[:, :, rows], lse[:, :, rows] = _flash(*seen, attn_mask=block.hidden, scale=scale)
            if block.blind is not None:
                lse[:, :, rows].masked_fill_(block.blind, -torch.inf)
        p = torch.bmm(x.view(-1, g * Q, d), own_k.transpose(1, 2)).mul_(scale)
        p.view(B, G, A, K, g, Q, L).masked_fill_(~own_mask[:, None, :, :, None], -torch.inf)
        p = p.view(*lse.shape, L)
        joined = torch.logaddexp(lse, p.logsumexp(-1))  # a slot sees itself: never -inf
        p.sub_(joined[..., None]).exp_()
        out.mul_((lse - joined).exp_()[..., None])
        out.view(-1, g * Q, d).baddbmm_(p.view(-1, g * Q, L), own_v)
        ctx.save_for_backward(x, k, v, own_k, own_v, p, out, joined)
        ctx.blocks, ctx.sizes = blocks, (B, A, K, Q, H, d, G, L, g)
        return out.view(B, G, A, K, g, Q, d).permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 5)

    @staticmethod
    def backward(ctx, gradient):
        x, k, v, own_k, own_v, p, out, joined = ctx.saved_tensors
        B, A, K, Q, H, d, G, L, g = ctx.sizes
        scale = d**-0.5
        dout = _by_key_head(gradient, G)
        near, near_p, near_dout = (y.view(-1, g * Q, y.shape[-1]) for y in (x, p, dout))
        delta = (dout * out).sum(-1).view(-1, g * Q, 1)
        ds = torch.bmm(near_dout, own_v.transpose(1, 2)).sub_(delta).mul_(near_p).mul_(scale)
        down_k = torch.bmm(ds.transpose(1, 2), near)
        down_v = torch.bmm(near_p.transpose(1, 2), near_dout)
        dx = torch.bmm(ds, own_k).view(x.shape)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for block, rows in _rows(ctx.blocks, K * g * Q):
            found = _flash_backward(
                dout[:, :, rows], x[:, :, rows], k[:, :, block.text], v[:, :, block.text],
                out[:, :, rows], joined[:, :, rows], 0.0, False,
                attn_mask=block.hidden, scale=scale,
            )  # fmt: skip
            dx[:, :, rows] += found[0]
            dk[:, :, block.text] += found[1]
            dv[:, :, block.text] += found[2]
        dq = dx.view(B, G, A, K, g, Q, d).permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 5)
        own = [y.view(B, G, A, K, L, d) for y in (down_k, down_v)]
        return dq, dk, dv, *own, None, None


def _by_key_head(q: Tensor, G: int) -> Tensor:
    """(B, A, K, Q, H, d) -> (B, G, A K H/G Q, d): query heads in line behind their key head."""
    B, _, _, _, H, d = q.shape
    grouped = q.unflatten(4, (G, H // G)).permute(0, 4, 1, 2, 5, 3, 6)
    return grouped.contiguous().view(B, G, -1, d)


def _rows(blocks: Sequence[Block], each: int):
    """Every block with the rows of its anchors, `each` of one anchor."""
    for block in blocks:
        yield block, slice(block.anchors.start * each, block.anchors.stop * each)


class LinearNLL(torch.autograd.Function):
    """`losses.linear_nll` that never holds all logits and skips rows without gradient."""

    @staticmethod
    def forward(ctx, outputs, head, targets, temperature: float, forbidden, chunk: int):
        """outputs (N, D), head (V, D), targets (N,), forbidden ids (W,) -> (N,) NLL in nats."""
        nll, lse = outputs.new_empty(len(targets)), outputs.new_empty(len(targets))
        for first in range(0, len(targets), chunk):
            at = slice(first, first + chunk)
            logits = _logits(outputs[at], head, temperature, forbidden)
            torch.logsumexp(logits, 1, out=lse[at])
            torch.sub(lse[at], logits.gather(1, targets[at, None]).squeeze(1), out=nll[at])
        ctx.save_for_backward(outputs, head, targets, forbidden, lse)
        ctx.temperature, ctx.chunk = temperature, chunk
        return nll

    @staticmethod
    def backward(ctx, gradient):
        outputs, head, targets, forbidden, lse = ctx.saved_tensors
        rows = gradient.nonzero().squeeze(1)  # dropped advantages and padding earn nothing
        doutputs = torch.zeros_like(outputs)
        dhead = torch.zeros_like(head)
        for at in rows.split(ctx.chunk):
            x = outputs[at]
            p = _logits(x, head, ctx.temperature, forbidden).sub_(lse[at, None]).exp_()
            p.scatter_add_(1, targets[at, None], p.new_full((len(p), 1), -1.0))
            p.mul_((gradient[at] / ctx.temperature)[:, None])
            doutputs[at] = products.multiply(p, head)
            products.add_outer(dhead, p, x)
        return doutputs, dhead, None, None, None, None


def _logits(outputs: Tensor, head: Tensor, temperature: float, forbidden: Tensor) -> Tensor:
    logits = products.product(outputs, head)
    if temperature != 1:
        logits.div_(temperature)
    return logits.index_fill_(1, forbidden, -torch.inf)
