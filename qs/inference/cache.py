"""Decoding with a cache: rows of text that are read once and go on a few slots at a time.

A slot's index in the cache is its rotary position. A thought is fed like text that follows and
taken back by forgetting its slots, which the next text overwrites: while it is there it sees the
text up to its anchor and itself, the rule of `qs/quietstar/masks.py` (a rule of one's own is told
which slots are a thought's). Rows are of different lengths; each goes on at its own end. Nothing
here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qs.model.mistral import Angles, Attend, Mistral
from qs.quietstar.attention import CachedText, new_cache
from qs.quietstar.masks import Place, Visibility, dense_mask, one_document, text_slots


def folded_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention.masked_attention` without a copy of the cache for each query head.

    The H / G query heads that share a key head stand in line as queries of that head: right for
    few slots over long text, where repeating keys and values would cost most of the time.

    Args:
        q: (B, Q, H, d).
        k, v: (B, S, G, d).
        mask: (1 or B, Q, S) True where seen; None: everywhere.

    Returns:
        (B, Q, H, d)
    """
    (B, Q, H, d), G = q.shape, k.shape[2]
    g = H // G  # query heads that share a key head
    line = q.unflatten(2, (G, g)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, G, g Q, d)
    if mask is not None:
        mask = mask[:, None, None].expand(B, 1, g, Q, -1).flatten(2, 3)  # (B, 1, g Q, S)
    out = F.scaled_dot_product_attention(line, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.view(B, G, g, Q, d).permute(0, 3, 1, 2, 4).reshape(B, Q, H, d)


def places(positions: Tensor, ends: Tensor) -> Place:
    """Where the slots at some positions stand, if those from `ends` on are of a thought."""
    anchor = positions.minimum(ends - 1)
    return Place(anchor, positions - anchor)


class Following(NamedTuple):
    """Q slots that follow what R rows hold, over a cache (R, S or more, G, d).

    Attributes:
        at: where their keys and values go in the cache.
        seen: S, slots that the longest row then holds.
        mask: (1 or R, Q, S) True where seen; None: everywhere.
    """

    at: tuple[slice | Tensor, slice | Tensor]
    seen: int
    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...] | None) -> Tensor:
        assert cache is not None
        for kept, new in zip(cache, (k, v), strict=True):
            kept[self.at] = new
        keys, values = (kept[:, : self.seen] for kept in cache)
        return folded_attention(q, keys, values, self.mask)


class Rows:
    """R rows in a model's cache, each going on at its own end.

    Attributes:
        cache: keys and values (R, S, G, d) of each layer; S grows when it has to.
        lengths: slots that each row holds.
        ends: (R,) the same on the device.
        thought: how many of them, the last ones, are of a thought.
        limit: slots that a row will ever hold.
        visibility: of one's own, or None.
    """

    def __init__(
        self,
        model: Mistral,
        cache: list,
        lengths: Sequence[int],
        limit: int,
        visibility: Visibility | None = None,
    ):
        self.model = model
        self.cache = cache
        self.visibility = visibility
        self.thought = 0
        self.lengths = list(lengths)
        self.ends = torch.tensor(self.lengths, device=cache[0][0].device)
        self.limit = limit
        self._measure()

    def _measure(self) -> None:
        """Positions of all slots that there is room for, and their angles, once for all passes."""
        keys = self.cache[0][0]
        self.slots = torch.arange(keys.shape[1], device=keys.device)
        self.angles = self.model.angles(self.slots[None], keys.dtype)  # (1, S, 1, d) each

    def feed(self, x: Tensor, thought: int = 0) -> Tensor:
        """Go on by the same number of slots in each row: x (R, Q, D) -> outputs (R, Q, D).

        The last `thought` of them are of a thought.
        """
        Q, held = x.shape[1], len(self.slots)
        seen = max(self.lengths) + Q
        if seen > held:
            assert seen <= self.limit
            self.cache = _longer(self.cache, min(self.limit, max(seen, 2 * held)) - held)
            self._measure()
        if min(self.lengths) + Q == seen:  # all end together: views instead of indices
            new = slice(seen - Q, seen)
            positions, at = self.slots[None, new], (slice(None), new)
            angles = tuple(x[:, new] for x in self.angles)
        else:
            positions = self.ends[:, None] + self.slots[:Q]
            at = torch.arange(len(x), device=x.device)[:, None], positions
            angles = tuple(x[0, positions] for x in self.angles)
        self.lengths = [length + Q for length in self.lengths]
        self.ends, self.thought = self.ends + Q, self.thought + thought
        return self._run(x, positions, Following(at, seen, self._mask(positions, seen)), angles)

    def _mask(self, positions: Tensor, seen: int) -> Tensor | None:
        """(1 or R, Q, S) which slots are seen from (1 or R, Q) positions; None: all are."""
        window = self.model.config.window
        if window is not None and window >= seen:
            window = None
        if positions.numel() == 1 and window is None and self.visibility is None:
            return None
        behind = positions[..., None] - self.slots[:seen]
        mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        if self.visibility is None:
            return mask
        ends = (self.ends - self.thought)[:, None, None]  # of the text
        query, key = places(positions[..., None], ends), places(self.slots[:seen], ends)
        return mask & (self.visibility(query, key) | (behind == 0))

    def forget(self, slots: int) -> None:
        """Take back the last slots of every row."""
        self.lengths = [length - slots for length in self.lengths]
        self.ends, self.thought = self.ends - slots, max(0, self.thought - slots)

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
        return Rows(self.model, _longer(cache, room), lengths, seen + room, self.visibility)

    def read(self, x: Tensor) -> Tensor:
        """Read the first slots of every row at once: x (R, T, D) -> outputs (R, T, D)."""
        positions = self.slots[None, : x.shape[1]]
        slots = text_slots(one_document(positions))
        mask = dense_mask(slots, slots, self.model.config.window, self.visibility)
        angles = tuple(each[:, : x.shape[1]] for each in self.angles)
        return self._run(x, positions, CachedText(mask), angles)

    def _run(self, x: Tensor, positions: Tensor, attend: Attend, angles: Angles) -> Tensor:
        # every length is another shape: layers that are compiled would be compiled for each
        with torch.compiler.set_stance("force_eager"):
            return self.model(x, positions, attend, self.cache, angles)


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
        rows = self.rows
        first = Rows(rows.model, rows.cache, lengths, rows.limit, rows.visibility)
        return self._replace(rows=first.copy(range(len(lengths)), room))


def read_texts(
    model: Mistral,
    texts: Sequence[Sequence[int]],
    limit: int = 0,
    visibility: Visibility | None = None,
) -> Reading:
    """Read texts of any lengths, at least one token in each, in one pass.

    `limit` is the number of slots that a row will ever hold, if more than its text; `visibility` a
    rule of one's own.
    """
    config, device = model.config, model.norm.weight.device
    lengths = [len(text) for text in texts]
    T = max(lengths)
    # shorter rows end in some token, which nobody sees and what follows the text overwrites
    tokens = torch.tensor([[*text, *[0] * (T - len(text))] for text in texts], device=device)
    x = model.embed(tokens)  # (R, T, D)
    held = (len(texts), max(T, min(limit, 2 * T)))
    cache = new_cache(config.layers, held, config.kv_heads, config.head_dim, x)
    rows = Rows(model, cache, lengths, max(T, limit), visibility)
    return Reading(tokens, rows, rows.read(x))


def _longer(cache: list, slots: int) -> list:
    return [tuple(F.pad(x, (0, 0, 0, 0, 0, slots)) for x in entry) for entry in cache]
