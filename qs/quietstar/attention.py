"""Visibilities a Mistral can run under: callables (q, k, v, cache) -> attended values.

`Dense` takes any boolean mask; `Structured` joins attention over the shared text with attention
over a branch's own few slots in one softmax and never builds an S x S matrix; `Flex` is
FlexAttention with the same rule as a BlockMask. `CachedText` keeps text in a static cache, after
which `CachedBranches` go on, a slot of every branch at a time or all at once. All take grouped
queries: q (B, S, H, d), k and v (B, S, G, d).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from qs.model.mistral import at_least_float32
from qs.quietstar.kernels import Block, JoinedAttention, blocks_for
from qs.quietstar.masks import Layout, block_mask, dense_mask, over_own, over_text

FLEX_HEADS = range(16, 257)  # of fewer numbers: no Triton product; of more: tiles fit no GPU
FLEX_SHARED = 102_400  # bytes a block: the forward kernel of bfloat16 heads of 128, in three stages


def check_flex(size: int) -> None:
    """Refuse heads of so many numbers if FlexAttention has no kernel for them.

    Raises:
        ValueError: it has none.
    """
    if size not in FLEX_HEADS:
        raise ValueError(
            f"expected heads of {FLEX_HEADS[0]} to {FLEX_HEADS[-1]} numbers for FlexAttention, "
            f"found {size}: pass --no-compile"
        )


def short_of_shared(device: torch.device) -> bool:
    """Has a device too little shared memory for the stages that torch chooses for FlexAttention?

    Torch chooses them for every card of compute capability 8 as for an A100; consumer cards have
    99 KiB a block, an A100 163.
    """
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", FLEX_SHARED)  # ROCm tells none
    return shared < FLEX_SHARED


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of q (B, Q, H, d) over k, v (B, S, G, d) where mask (B, Q, S) is True."""
    shared = q.shape[2] // k.shape[2]
    # grouped heads are repeated here: no fused CUDA kernel takes both a mask and `enable_gqa`
    k, v = (x.transpose(1, 2).repeat_interleave(shared, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask[:, None])
    return out.transpose(1, 2)


def textbook_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What `masked_attention` computes, written out: the stock Mistral code's own arithmetic."""
    shared = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def joined_attention(
    q: Tensor,
    text: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    text_mask: Tensor,
    own_mask: Tensor,
) -> Tensor:
    """One softmax over the text that all branches share and over each branch's own slots.

    Args:
        q: (B, A, K, Q, H, d) queries of the branches.
        text: keys and values (B, G, T, d) of the text.
        own: keys and values (B, G, A, K, L, d) of the branches.
        text_mask: (B, A, Q, T), as of `masks.over_text`.
        own_mask: broadcasts to (B, A, K, Q, L), as of `masks.over_own`.

    Returns:
        (B, A, K, Q, H, d)
    """
    (B, A, K, Q, H, d), (G, T), L = q.shape, text[0].shape[1:3], own[0].shape[4]
    g = H // G  # query heads that share a key head
    # scores rounded to bfloat16 would move probabilities by percents: products in float32
    q = at_least_float32(q.unflatten(4, (G, g))) * d**-0.5  # (B, A, K, Q, G, g, d)

    # over the text: one large product, since every branch looks at the same keys
    rows = q.permute(0, 4, 5, 1, 2, 3, 6).reshape(B, G, g * A * K * Q, d)
    text_scores = (rows @ text[0].to(q.dtype).transpose(2, 3)).view(B, G, g, A, K, Q, T)
    text_scores = text_scores.masked_fill(~text_mask[:, None, None, :, None], -torch.inf)

    # over its own slots: a small product for each branch
    rows = q.permute(0, 4, 1, 2, 5, 3, 6).reshape(B, G, A, K, g * Q, d)
    own_scores = _own_scores(rows, own[0]).view(B, G, A, K, g, Q, L)
    own_scores = own_scores.permute(0, 1, 4, 2, 3, 5, 6)  # (B, G, g, A, K, Q, L)
    own_scores = own_scores.masked_fill(~own_mask[:, None, None], -torch.inf)

    weights = torch.cat([text_scores, own_scores], -1).softmax(-1)  # (B, G, g, A, K, Q, T + L)
    weights = weights.to(text[1].dtype)
    text_weights = weights[..., :T].reshape(B, G, g * A * K * Q, T)
    out = (text_weights @ text[1]).view(B, G, g, A, K, Q, d)
    own_weights = weights[..., T:].permute(0, 1, 3, 4, 2, 5, 6).flatten(4, 5)  # (B, G, A, K, gQ, L)
    mine = (own_weights @ own[1]).view(B, G, A, K, g, Q, d)
    out = out + mine.permute(0, 1, 4, 2, 3, 5, 6)  # (B, G, g, A, K, Q, d)
    return out.permute(0, 3, 4, 5, 1, 2, 6).flatten(4, 5)  # (B, A, K, Q, H, d)


def _own_scores(q: Tensor, k: Tensor) -> Tensor:
    """q (..., N, d) @ k (..., L, d) transposed, in the dtype of q."""
    if torch.compiler.is_compiling() and q.shape[-2] * k.shape[-2] < 128:
        # fused: millions of products this small take longer than reading what they multiply
        return (q[..., :, None, :] * k.to(q.dtype)[..., None, :, :]).sum(-1)
    return q @ k.to(q.dtype).transpose(-1, -2)


@dataclass(frozen=True)
class Dense:
    """Attention under a boolean mask (B, S, S): the oracle."""

    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        return textbook_attention(q, k, v, self.mask)


@dataclass(frozen=True)
class Structured:
    """Attention of packed rows: text over text, branches over text and over themselves."""

    branches: tuple[int, int, int]  # A, K, L
    text_text: Tensor
    branch_text: Tensor
    branch_own: Tensor
    blocks: list[Block] | None  # of the branches over the text, where kernels run

    @staticmethod
    def of(layout: Layout, window: int | None, shared: int, like: Tensor | None) -> Structured:
        """The structured masks of a layout.

        Args:
            layout: of the packed rows.
            window: sliding window in tokens, or None.
            shared: query heads that share a key head.
            like: the input, whose dtype and device decide who computes; None: compiled layers.
        """
        text, (branch_text, branch_own) = layout.text, _branch_masks(layout, window)
        return Structured(
            branches=(layout.anchors.shape[1], layout.samples, layout.length),
            text_text=dense_mask(text, text, window, layout.visibility),
            branch_text=branch_text,
            branch_own=branch_own,
            blocks=blocks_for(like, branch_text, layout.samples, shared),
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        T = self.text_text.shape[1]
        over_text = masked_attention(q[:, :T], k[:, :T], v[:, :T], self.text_text)
        branches = q[:, T:].unflatten(1, self.branches)  # (B, A, K, L, H, d)
        text = [x[:, :T].transpose(1, 2) for x in (k, v)]  # (B, G, T, d)
        own = [x[:, T:].unflatten(1, self.branches).permute(0, 4, 1, 2, 3, 5) for x in (k, v)]
        if self.blocks is None:
            over_both = joined_attention(branches, text, own, self.branch_text, self.branch_own)
        else:
            over_both = JoinedAttention.apply(branches, *text, *own, self.blocks, self.branch_own)
        return torch.cat([over_text, over_both.flatten(1, 3)], 1)


def _branch_masks(layout: Layout, window: int | None) -> tuple[Tensor, Tensor]:
    """(B, A, L, T) which text branches see, and (B, A, 1, L, L) which of their own slots."""
    branches, visibility = layout.branches, layout.visibility
    one = branches.map(lambda x: x[:, :, :1])  # all K thoughts of an anchor look alike
    text = over_text(branches, layout.text, window, visibility)
    return text, over_own(one, one, window, visibility)


@dataclass(frozen=True)
class Flex:
    """FlexAttention under a BlockMask; fast only inside `torch.compile`.

    Attributes:
        mask: of the slots.
        short: whether its device is `short_of_shared`.
    """

    mask: BlockMask
    short: bool = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        # the kernel for few queries, which AUTO takes below 128 slots, has no tiles for more than
        # 128 queries of a key head: 120 slots of 2 query heads cannot be compiled
        options: dict[str, str | int] = {"BACKEND": "TRITON"}
        if self.short:  # what fits 99 KiB beside tiles of heads of 256 bytes, and of 512
            options["fwd_num_stages"] = 2 if q.shape[-1] * q.element_size() <= 256 else 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = flex_attention(q, k, v, block_mask=self.mask, enable_gqa=True, kernel_options=options)
        return out.transpose(1, 2)


def packed_attention(
    kind: str, layout: Layout, window: int | None, shared: int, like: Tensor | None
) -> Dense | Structured | Flex:
    """A realisation of the one rule for packed rows: "dense", "structured" or "flex".

    Other arguments as of `Structured.of`.
    """
    if kind == "structured":
        return Structured.of(layout, window, shared, like)
    packed, visibility = layout.packed, layout.visibility
    if kind == "flex":
        mask = block_mask(packed, window, visibility=visibility)
        return Flex(mask, short_of_shared(packed.anchor.device))
    return Dense(dense_mask(packed, packed, window, visibility))


def new_cache(layers: int, rows: tuple[int, ...], heads: int, dim: int, like: Tensor) -> list:
    """Static key/value caches, one pair (*rows, heads, dim) for each layer, zero."""
    shape = (*rows, heads, dim)
    return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(layers)]


@dataclass(frozen=True)
class CachedText:
    """Text that is read at once; its keys and values are kept in a cache (B, T or more, G, d).

    Attributes:
        mask: (B, T, T) True where seen.
    """

    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        assert cache is not None
        for kept, new in zip(cache, (k, v), strict=True):
            kept[:, : new.shape[1]] = new
        return masked_attention(q, k, v, self.mask)


@dataclass(frozen=True)
class CachedBranches:
    """Q slots of every branch (B, A * K * Q) after text that was read, at depths given as data.

    Its cache is text keys and values (B, T, G, d), then own ones (B, G, A, K, L, d).

    Attributes:
        depths: (Q,) from 1 on.
        text_mask: (B, A, Q, T), as of `masks.over_text`.
        own_mask: (B, A, 1, Q, L), as of `masks.over_own`.
        blocks: of the branches over the text, where kernels run; else None.
    """

    depths: Tensor
    text_mask: Tensor
    own_mask: Tensor
    blocks: list[Block] | None

    @staticmethod
    def of(layout: Layout, window: int | None, shared: int, like: Tensor | None) -> CachedBranches:
        """All slots of the branches of a layout; other arguments as of `Structured.of`."""
        text_mask, own_mask = _branch_masks(layout, window)
        depths = torch.arange(1, layout.length + 1, device=layout.anchors.device)
        blocks = blocks_for(like, text_mask, layout.samples, shared)
        return CachedBranches(depths, text_mask, own_mask, blocks)

    @staticmethod
    def steps(
        layout: Layout, window: int | None, shared: int, like: Tensor | None
    ) -> Iterator[CachedBranches]:
        """The same one slot of every branch at a time."""
        every, blocks = CachedBranches.of(layout, window, shared, None), None
        for at in (slice(i, i + 1) for i in range(layout.length)):
            text_mask, own_mask = every.text_mask[:, :, at], every.own_mask[:, :, :, at]
            if blocks is None or window or layout.visibility:  # else each sees the same text
                blocks = blocks_for(like, text_mask, layout.samples, shared)
            yield CachedBranches(every.depths[at], text_mask, own_mask, blocks)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        assert cache is not None
        text = [x.transpose(1, 2) for x in cache[:2]]  # (B, G, T, d)
        own_k, own_v = cache[2:]
        branches = (*own_k.shape[2:4], len(self.depths))  # A, K, Q
        for kept, new in zip((own_k, own_v), (k, v), strict=True):
            new = new.unflatten(1, branches).permute(0, 4, 1, 2, 3, 5)
            kept.index_copy_(4, self.depths - 1, new)
        q = q.unflatten(1, branches)  # (B, A, K, Q, H, d)
        if self.blocks is None:
            out = joined_attention(q, text, (own_k, own_v), self.text_mask, self.own_mask)
        else:
            seen = slice(int(self.depths[-1]))  # slots that are there
            own = own_k[:, :, :, :, seen], own_v[:, :, :, :, seen]
            own_mask = self.own_mask[..., seen]
            out = JoinedAttention.apply(q, *text, *own, self.blocks, own_mask)
        return out.flatten(1, 3)
