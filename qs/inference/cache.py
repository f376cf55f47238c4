"""Decoding with a cache: rows of text that are read once and go on a few slots at a time.

A slot's index in the cache is its rotary position. A thought is fed like text that follows and
taken back by forgetting its slots, which the next text overwrites: while it is there it sees the
text up to its anchor and itself, the rule of `qs/quietstar/masks.py`. Rows are of different
lengths; each goes on at its own end. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qs.model.mistral import Mistral
from qs.quietstar.attention import CachedText, masked_attention, new_cache
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
    (B, Q, H, d), G = q.shape, k.shape[2]
    g = H // G  # query heads that share a key head
    line = q.unflatten(2, (G, g)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, G, g Q, d)
    seen = mask[:, None, None].expand(B, 1, g, Q, -1).flatten(2, 3)  # (B, 1, g Q, S)
    out = F.scaled_dot_product_attention(line, k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
    return out.view(B, G, g, Q, d).permute(0, 3, 1, 2, 4).reshape(B, Q, H, d)


def text_slots(positions: Tensor) -> Slots:
    """Slots of one document at positions of any shape."""
    zero = torch.zeros_like(positions)
    return Slots(anchor=positions, branch=zero + TEXT, depth=zero, document=zero)


class Rows:
    """R rows in a model's cache, each going on at its own end.

    Attributes:
        cache: keys and values (R, S, G, d) of each layer; S grows when it has to.
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

    def feed(self, x: Tensor) -> Tensor:
        """Go on by the same number of slots in each row: x (R, Q, D) -> outputs (R, Q, D)."""
        held, seen = self.cache[0][0].shape[1], max(self.lengths) + x.shape[1]
        if seen > held:
            assert seen <= self.limit
            self.cache = _longer(self.cache, min(self.limit, max(seen, 2 * held)) - held)
        positions = self.ends[:, None] + torch.arange(x.shape[1], device=x.device)
        outputs = self._run(x, positions, seen, folded_attention)
        self.forget(-x.shape[1])
        return outputs

    def forget(self, slots: int) -> None:
        """Take back the last slots of every row."""
        self.lengths = [length - slots for length in self.lengths]
        self.ends = self.ends - slots

    def keep(self, index: Sequence[int]) -> None:
        """Drop all rows but these."""
        at = torch.tensor(index, device=self.ends.device)
        self.cache = [(k[at], v[at]) for k, v in self.cache]
        self.lengths = [self.lengths[i] for i in index]
        self.ends = self.ends[at]

    def copy(self, index: Sequence[int], room: int) -> Rows:
        """A copy of a part of the rows, with room for a few slots more."""
        lengths = [self.lengths[i] for i in index]
        at, seen = torch.tensor(index, device=self.ends.device), max(lengths)
        cache = [(k[:, :seen][at], v[:, :seen][at]) for k, v in self.cache]
        return Rows(self.model, _longer(cache, room), lengths, seen + room)

    def _run(self, x: Tensor, positions: Tensor, seen: int, attention: Callable) -> Tensor:
        keys = text_slots(torch.arange(seen, device=x.device)[None])
        mask = dense_mask(text_slots(positions), keys, self.model.config.window)
        # every length is another shape: layers that are compiled would be compiled for each
        with torch.compiler.set_stance("force_eager"):
            return self.model(x, positions, CachedText(positions, mask, attention), self.cache)


class Reading(NamedTuple):
    """Texts that were read."""

    tokens: Tensor  # (R, T) ids, the shorter rows filled up
    rows: Rows  # what is kept of them
    outputs: Tensor  # (R, T, D) of every token

    @property
    def last(self) -> Tensor:
        """(R, D) outputs at the last token of each row."""
        rows = torch.arange(len(self.outputs), device=self.outputs.device)
        return self.outputs[rows, self.rows.ends - 1]

    def until(self, lengths: Sequence[int], room: int) -> Reading:
        """A copy of which only the first tokens of each row were read, with room to go on."""
        first = Rows(self.rows.model, self.rows.cache, lengths, self.rows.limit)
        return self._replace(rows=first.copy(range(len(lengths)), room))


def read_texts(model: Mistral, texts: Sequence[Sequence[int]], limit: int = 0) -> Reading:
    """Read texts of any lengths, at least one token in each, in one pass.

    `limit` is the number of slots that a row will ever hold, if more than its text.
    """
    config, device = model.config, model.norm.weight.device
    lengths = [len(text) for text in texts]
    T = max(lengths)
    # shorter rows end in some token, which nobody sees and what follows the text overwrites
    tokens = torch.tensor([[*text, *[0] * (T - len(text))] for text in texts], device=device)
    x = model.embed(tokens)  # (R, T, D)
    held = (len(texts), max(T, min(limit, 2 * T)))
    cache = new_cache(config.layers, held, config.kv_heads, config.head_dim, x)
    rows = Rows(model, cache, lengths, max(T, limit))
    positions = torch.arange(T, device=device)[None]
    return Reading(tokens, rows, rows._run(x, positions, T, masked_attention))


def _longer(cache: list, slots: int) -> list:
    return [tuple(F.pad(x, (0, 0, 0, 0, 0, slots)) for x in entry) for entry in cache]
