"""Decoding with a cache: rows of text that are read once and go on a few slots at a time.

A slot's index in the cache is its rotary position. A thought is fed like text that follows and
taken back by forgetting its slots, which the next text overwrites: while it is there it sees the
text up to its anchor and itself, the rule of `qs/quietstar/masks.py`. Rows are of different
lengths; each goes on at its own end. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qs.model.mistral import Attend, Mistral
from qs.quietstar.attention import Prefill, new_cache
from qs.quietstar.masks import TEXT, Slots, dense_mask


def folded_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`attention.masked_attention` without a copy of the cache for each query head.

    The H / G query heads that share a key head stand in line as queries of that head: right for
    few slots over long text, where repeating keys and values would cost most of the time.

    Args:
        q: (B, Q, H, d).
        k, v: (B, S, G, d).
        mask: (B, Q, S) True where seen.

    Returns:
        (B, Q, H, d)
    """
    (B, Q, H, d), groups = q.shape, k.shape[2]
    shared = H // groups
    line = q.unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, G, H/G Q, d)
    seen = mask[:, None, None].expand(B, 1, shared, Q, -1).flatten(2, 3)
    out = F.scaled_dot_product_attention(line, k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
    return out.view(B, groups, shared, Q, d).permute(0, 3, 1, 2, 4).reshape(B, Q, H, d)


@dataclass(frozen=True)
class Continue:
    """A few slots of each row, kept in the cache at their positions (B, Q); mask (B, Q, S)."""

    positions: Tensor
    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        assert cache is not None
        rows = torch.arange(len(q), device=q.device)[:, None]
        seen = self.mask.shape[2]
        for kept, new in zip(cache, (k, v), strict=True):
            kept[rows, self.positions] = new
        return folded_attention(q, *(kept[:, :seen] for kept in cache), self.mask)


def text_slots(positions: Tensor) -> Slots:
    """Slots of one document at positions of any shape."""
    zero = torch.zeros_like(positions)
    return Slots(anchor=positions, branch=zero + TEXT, depth=zero, document=zero)


class Rows:
    """R rows in a model's cache, each going on at its own end.

    Attributes:
        lengths: slots that each row holds.
        ends: (R,) the same on the device.
        limit: slots that a row will ever hold.
    """

    def __init__(self, model: Mistral, cache: list, lengths: Sequence[int], limit: int):
        self.model = model
        self.cache = cache
        self.lengths = list(lengths)
        self.ends = torch.tensor(self.lengths, device=cache[0][0].device)
        self.limit = limit

    @staticmethod
    def read(model: Mistral, prompts: Sequence[Sequence[int]], limit: int) -> tuple[Rows, Tensor]:
        """Read prompts of any lengths in one pass.

        Returns:
            the rows, and the outputs (R, D) at each prompt's last token.
        """
        config, device = model.config, model.norm.weight.device
        T = max(map(len, prompts))
        # shorter rows end in some token, which nobody sees and what follows the prompt overwrites
        tokens = torch.tensor([[*p, *[0] * (T - len(p))] for p in prompts], device=device)
        x, positions = model.embed(tokens), torch.arange(T, device=device)[None]
        room = (len(prompts), min(limit, 2 * T))
        cache = new_cache(config.layers, room, config.kv_heads, config.head_dim, x)
        rows = Rows(model, cache, list(map(len, prompts)), limit)
        slots = text_slots(positions)
        attend = Prefill(dense_mask(slots, slots, config.window))
        outputs = rows._run(x, positions, attend, [(k[:, :T], v[:, :T]) for k, v in cache])
        return rows, outputs[torch.arange(len(prompts), device=device), rows.ends - 1]

    def feed(self, x: Tensor) -> Tensor:
        """Go on by the same number of slots in each row: x (R, Q, D) -> outputs (R, Q, D)."""
        seen = max(self.lengths) + x.shape[1]
        self._reserve(seen)
        positions = self.ends[:, None] + torch.arange(x.shape[1], device=x.device)
        keys = torch.arange(seen, device=x.device)[None]
        mask = dense_mask(text_slots(positions), text_slots(keys), self.model.config.window)
        outputs = self._run(x, positions, Continue(positions, mask), self.cache)
        self._move(x.shape[1])
        return outputs

    def forget(self, slots: int) -> None:
        """Take back the last slots of every row."""
        self._move(-slots)

    def keep(self, index: Sequence[int]) -> None:
        """Drop all rows but these."""
        at = torch.tensor(index, device=self.ends.device)
        self.cache = [(k[at], v[at]) for k, v in self.cache]
        self.lengths = [self.lengths[i] for i in index]
        self.ends = self.ends[at]

    def some(self, index: Sequence[int], room: int) -> Rows:
        """A copy of some rows, with room for a few slots more."""
        lengths = [self.lengths[i] for i in index]
        at, seen = torch.tensor(index, device=self.ends.device), max(lengths)
        cache = [
            tuple(F.pad(x[:, :seen][at], (0, 0, 0, 0, 0, room)) for x in entry)
            for entry in self.cache
        ]
        return Rows(self.model, cache, lengths, seen + room)

    def _run(self, x: Tensor, positions: Tensor, attend: Attend, cache: list) -> Tensor:
        # every length is another shape: layers that are compiled would be compiled for each
        with torch.compiler.set_stance("force_eager"):
            return self.model(x, positions, attend, cache)

    def _move(self, slots: int) -> None:
        self.lengths = [length + slots for length in self.lengths]
        self.ends = self.ends + slots

    def _reserve(self, slots: int) -> None:
        """Make the cache hold this many slots; it grows by doubling, up to the limit."""
        held = self.cache[0][0].shape[1]
        if slots > held:
            assert slots <= self.limit
            more = min(self.limit, max(slots, 2 * held)) - held
            self.cache = [
                tuple(F.pad(x, (0, 0, 0, 0, 0, more)) for x in entry) for entry in self.cache
            ]
