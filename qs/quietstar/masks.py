"""The packed row and the one rule of who sees whom.

A row of text and every thought that branches off it are laid out side by side as *slots*:

    text slots          x_0 x_1 ... x_{T-1}                        depth 0
    branch (t, k)       <start> z_1 .. z_n <end> x_{t+1} .. x_{t+m-1}    depth 1, 2, ..., n + m + 1

(a thought of fewer tokens leaves over the last slots of its branch, see `ends`).

A slot is `(anchor, branch, depth)`: the text position it hangs from, which thought it belongs to,
and how far along that thought it is. Text slots are their own anchor. The rule (`sees`):

    a slot sees the text up to its anchor, and its own branch up to itself.

Rotary position is `anchor + depth`; a sliding window limits by rotary distance, as in a plain
causal run of the branch; nobody sees another document of the row. Sampling, scoring and generation
all use this rule; the dense mask, the structured masks and the FlexAttention block mask below are
three ways of writing it down. A rule of one's own (`Visibility`) hides more of what it shows.

Source: Quiet-STaR (arXiv:2403.09629), section 4.2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from qs.quietstar.checks import check_visible

TEXT = -1  # the branch number of text slots


class Place(NamedTuple):
    """Where slots stand, as far as a rule of one's own may know: all K thoughts look alike.

    Attributes:
        anchor: text position.
        depth: 0 for text; on a thought's branch 1 at `<start>`, and l + 2 at
            `<end>` of a thought of l tokens (l is n unless it ended itself).
    """

    anchor: Tensor
    depth: Tensor

    @property
    def position(self) -> Tensor:
        """Rotary position of each slot, in tokens."""
        return self.anchor + self.depth


Visibility = Callable[[Place, Place], Tensor]
"""(query, key), int64 tensors that broadcast -> boolean: which keys stay visible.

It is asked about pairs in a document, text among text too, and can only hide: nobody sees the
future or another thought, whatever it says, and every slot sees itself. Elementwise operations of
PyTorch alone: FlexAttention asks about scalars.
"""


class Slots(NamedTuple):
    """Where slots stand: four int64 tensors that broadcast against each other."""

    anchor: Tensor
    branch: Tensor
    depth: Tensor
    document: Tensor

    @property
    def position(self) -> Tensor:
        """Rotary position of each slot, in tokens."""
        return self.place.position

    @property
    def place(self) -> Place:
        """What a rule of one's own is told."""
        return Place(self.anchor, self.depth)

    def map(self, function) -> Slots:
        """Apply one function (a reshape, an index) to all four tensors."""
        return Slots(*map(function, self))


def sees(
    query: Slots, key: Slots, window: int | None = None, visibility: Visibility | None = None
) -> Tensor:
    """The rule: may `query` attend to `key`? Boolean, of the broadcast shape.

    Args:
        query: slots that look.
        key: slots that are looked at.
        window: sliding window in tokens (a slot sees `window` positions, itself included), or None.
        visibility: hides more; None: nothing.
    """
    text = (key.depth == 0) & (key.anchor <= query.anchor)
    own = (key.depth > 0) & (key.branch == query.branch) & (key.depth <= query.depth)
    seen = (text | own) & (key.document == query.document)
    if window is not None:
        seen = seen & (query.position - key.position < window)
    if visibility is not None:
        itself = (query.branch == key.branch) & (query.position == key.position)
        shown = visibility(query.place, key.place)
        seen = seen & (check_visible(shown, *query.place, *key.place) | itself)
    return seen


@dataclass(frozen=True)
class Layout:
    """A batch of packed rows: T text slots, then A * K branches of `length` slots each.

    Attributes:
        documents: (B, T) number of the document each text position belongs to; PADDING for padding.
        anchors: (B, A) text positions that think.
        samples: K, thoughts per anchor.
        length: slots of one branch; `n + m + 1` when scoring.
        visibility: hides more than the rule does; None: nothing.
    """

    documents: Tensor
    anchors: Tensor
    samples: int
    length: int
    visibility: Visibility | None = None

    @property
    def text(self) -> Slots:
        """(B, T) text slots."""
        return text_slots(self.documents)

    @property
    def branches(self) -> Slots:
        """(B, A, K, length) branch slots."""
        rows, count = self.anchors.shape
        shape = (rows, count, self.samples, self.length)
        device = self.anchors.device
        number = torch.arange(count * self.samples, device=device)
        return Slots(
            anchor=self.anchors[:, :, None, None].expand(shape),
            branch=number.view(1, count, self.samples, 1).expand(shape),
            depth=torch.arange(1, self.length + 1, device=device).expand(shape),
            document=self.documents.gather(1, self.anchors)[:, :, None, None].expand(shape),
        )

    @property
    def packed(self) -> Slots:
        """(B, S) all slots of a row, text first; the slots of one branch are neighbours."""
        text, branches = self.text, self.branches.map(lambda x: x.flatten(1))
        return Slots(*(torch.cat(both, 1) for both in zip(text, branches, strict=True)))


def text_slots(documents: Tensor) -> Slots:
    """(B, T) slots of text alone."""
    positions = every_position(documents)
    branch, depth = torch.full_like(positions, TEXT), torch.zeros_like(positions)
    return Slots(positions, branch, depth, documents)


def one_document(tokens: Tensor) -> Tensor:
    """(B, T) documents of rows that hold one document each and no padding."""
    return torch.zeros_like(tokens)


def every_position(tokens: Tensor) -> Tensor:
    """(B, T) anchors: every position thinks, A = T."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


# Realisation 1: the dense mask. The oracle; also what plain text passes use.


def dense_mask(
    query: Slots, key: Slots, window: int | None = None, visibility: Visibility | None = None
) -> Tensor:
    """(B, Q, S) boolean mask of (B, Q) queries over (B, S) keys, True where seen."""
    query, key = query.map(lambda x: x[:, :, None]), key.map(lambda x: x[:, None, :])
    return sees(query, key, window, visibility)


# Realisation 2: structured. No (S, S) matrix: branches over text, and branches over themselves.


def over_text(
    branches: Slots, text: Slots, window: int | None = None, visibility: Visibility | None = None
) -> Tensor:
    """(B, A, Q, T) which text each branch slot sees; the same for all K thoughts of an anchor.

    Args:
        branches: (B, A, K, Q) slots.
        text: (B, T) slots.
    """
    query = branches.map(lambda x: x[:, :, 0, :, None])
    return sees(query, text.map(lambda x: x[:, None, None, :]), window, visibility)


def over_own(
    query: Slots, key: Slots, window: int | None = None, visibility: Visibility | None = None
) -> Tensor:
    """(B, A, K, Q, L) which slots (B, A, K, L) of its own branch each slot (B, A, K, Q) sees."""
    query, key = query.map(lambda x: x[..., :, None]), key.map(lambda x: x[..., None, :])
    return sees(query, key, window, visibility)


# Realisation 3: FlexAttention.


def mask_mod(slots: Slots, window: int | None = None, visibility: Visibility | None = None):
    """FlexAttention's `mask_mod(b, h, q, kv)` for packed (B, S) slots."""

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        query, key = slots.map(lambda x: x[b, q]), slots.map(lambda x: x[b, kv])
        return sees(query, key, window, visibility)

    return visible


def block_mask(
    slots: Slots, window: int | None = None, block: int = 128, visibility: Visibility | None = None
) -> BlockMask:
    """BlockMask of packed (B, S) slots, built from the blocks' bounds, never from an S x S matrix.

    A block pair is skipped when its bounds rule out every pair of slots, computed without a mask
    when they admit every pair, and masked slot by slot otherwise: O((S / block)^2) work.

    Args:
        slots: (B, S) packed slots.
        window: sliding window in tokens, or None.
        block: slots of one block.
        visibility: hides more; then no block is computed without a mask.
    """
    size = slots.anchor.shape[1]
    pad = -size % block

    def bounds(x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        big = 2**53  # F.pad goes through float64, and differences of bounds must not overflow
        low, high = (x, x) if keep is None else (x.where(keep, big), x.where(keep, -big))
        low = torch.nn.functional.pad(low, (0, pad), value=big).unflatten(1, (-1, block))
        high = torch.nn.functional.pad(high, (0, pad), value=-big).unflatten(1, (-1, block))
        return low.amin(2), high.amax(2)  # (B, blocks) each

    def query(x: Tensor) -> Tensor:
        return x[:, :, None]

    def key(x: Tensor) -> Tensor:
        return x[:, None, :]

    is_text = slots.depth == 0
    anchor_low, anchor_high = bounds(slots.anchor)
    text_low, text_high = bounds(slots.anchor, is_text)
    branch_low, branch_high = bounds(slots.branch, ~is_text)
    document_low, document_high = bounds(slots.document)
    position_low, position_high = bounds(slots.position)
    _, deepest = bounds(slots.depth)

    some = key(text_low) <= query(anchor_high)
    some |= (key(branch_low) <= query(branch_high)) & (key(branch_high) >= query(branch_low))
    some &= key(document_low) <= query(document_high)
    some &= key(document_high) >= query(document_low)
    every = (key(deepest) == 0) & (key(text_high) <= query(anchor_low))
    every &= key(document_low == document_high) & query(document_low == document_high)
    every &= key(document_low) == query(document_low)
    if window is not None:
        some &= query(position_low) - key(position_high) < window
        every &= query(position_high) - key(position_low) < window
    if visibility is not None:
        every = torch.zeros_like(every)
    if pad:  # the last block is part empty: always mask it slot by slot
        every[:, -1, :] = False
        every[:, :, -1] = False
    return BlockMask.from_kv_blocks(
        *_indices(some & ~every),
        *_indices(some & every),
        BLOCK_SIZE=block,
        mask_mod=mask_mod(slots, window, visibility),
        seq_lengths=(size, size),
    )


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q, KV) booleans -> FlexAttention's (B, 1, Q) counts and (B, 1, Q, KV) indices."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
