"""Log-probability of given tokens: only the positions that predict one of them think.

The text is read once, in one plain causal pass, and shared by all that is thought about it.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qs.inference.cache import Reading, read_texts
from qs.inference.decoding import sayable_ids, think_above, uniforms
from qs.inference.generate import predict_next
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.attention import CachedBranches
from qs.quietstar.losses import entropy
from qs.quietstar.masks import Layout, one_document
from qs.quietstar.sampler import branch_cache

SLOTS_AT_ONCE = 1024  # of thoughts, for each row of a batch, or as many as its text if that is more
SCORED_AT_ONCE = 2**24  # logits: 64 MiB of float32; 1 GiB on a GPU, which small passes keep waiting


def scored_at_once(device: torch.device) -> int:
    """How many logits are held at a time."""
    return SCORED_AT_ONCE if device.type == "cpu" else 16 * SCORED_AT_ONCE


class ScoredText(NamedTuple):
    """Text of which some tokens are scored; the last one is only predicted."""

    ids: tuple[int, ...]  # two or more
    positions: tuple[int, ...]  # one or more rising t whose next token is scored
    among: tuple[int, ...] | None = None  # ids whose log_p is wanted; None: the scored one


class Thinking(NamedTuple):
    """How to think: where, K thoughts at a time, and how they are drawn."""

    when: str  # as `Decoding.think_when`
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


class TextScore(NamedTuple):
    """What was found for one text, on the CPU."""

    log_p: Tensor  # (K, L, W) float64 in nats, of W ids at L positions after K thoughts
    likeliest: Tensor  # (L,) ids that greedy decoding would say, by the mean over thoughts
    thoughts: int  # that were thought; where there were none, log_p is K times the same


class _Scored(NamedTuple):
    log_p: Tensor  # (B, A, K, W)
    likeliest: Tensor  # (B, A)


def seed_of(ids: Sequence[int]) -> int:
    """A number that stands for a text, to draw by; the next 2^32 are free for repetitions."""
    return int.from_bytes(hashlib.sha256(str(tuple(ids)).encode()).digest()[:8], "big") << 32


@torch.no_grad()
def score(
    quiet: QuietStar,
    texts: Sequence[ScoredText],
    ways: Sequence[Thinking],
    reading: Reading | None = None,
) -> list[list[TextScore]]:
    """Log-probabilities of the scored tokens of a batch, in several ways of thinking.

    Thoughts draw by numbers of their own text, so a result does not depend on the other texts.

    Args:
        quiet: the module; n is its config's, and n = 0 is no thought.
        texts: B of them, which fit in the positions that the model was made for.
        ways: how to think, each of them after the same reading; for each the scores are returned.
        reading: of their ids; None: they are read here, all but the last.
    """
    if reading is None:
        ids, own = [text.ids[:-1] for text in texts], quiet.visibility
        reading = read_texts(quiet.model, ids, visibility=own)
    batch = _Batch(quiet, texts, reading)
    results = []
    for thinking in ways:
        scored, thinks = batch.think(thinking)
        thoughts = (thinks.sum(1) * thinking.samples).tolist()
        log_p, likeliest = scored.log_p.transpose(1, 2).cpu(), scored.likeliest.cpu()
        results.append([])
        for i, text in enumerate(texts):
            L, W = len(text.positions), len(text.among or [0])
            results[-1].append(TextScore(log_p[i, :, :L, :W], likeliest[i, :L], thoughts[i]))
    return results


class _Batch:
    """B texts with A scored positions at most, and what is predicted there without thoughts."""

    def __init__(self, quiet: QuietStar, texts: Sequence[ScoredText], reading: Reading):
        self.quiet, self.reading, device = quiet, reading, reading.tokens.device
        B, A = len(texts), max(len(text.positions) for text in texts)
        W = max(len(text.among or [0]) for text in texts)
        wanted, valid = torch.zeros(B, A, W).long(), torch.zeros(B, A).bool()
        anchors = torch.zeros(B, A).long()
        for i, (ids, positions, among) in enumerate(texts):
            L = len(positions)
            anchors[i, :L], valid[i, :L] = torch.tensor(positions), True
            columns = [among or (ids[t + 1],) for t in positions]
            wanted[i, :L, : len(columns[0])] = torch.tensor(columns)
        self.anchors, self.valid, self.wanted = (x.to(device) for x in (anchors, valid, wanted))
        self.sayable = sayable_ids(quiet.model.config, device)
        self.seeds = [seed_of(text.ids) for text in texts]
        self.rows = torch.arange(B, device=device)[:, None]
        self.outputs = reading.outputs[self.rows, self.anchors]  # (B, A, D)
        parts, nats = [], []
        columns = max(1, scored_at_once(device) // (B * quiet.model.config.vocab_size))
        pieces = (x.split(columns, 1) for x in (self.outputs, self.wanted))
        for outputs, ids in zip(*pieces, strict=True):
            log_p = quiet.model.logits(outputs).double().log_softmax(-1)  # (B, a, V)
            parts.append(self._scored(log_p[:, :, None], ids))
            nats.append(entropy(log_p))
        self.plain = _Scored(*(torch.cat(x, 1) for x in zip(*parts, strict=True)))
        self.entropy = torch.cat(nats, 1)  # (B, A)

    def think(self, thinking: Thinking) -> tuple[_Scored, Tensor]:
        """Scores in one way of thinking, and (B, A) which positions thought."""
        (B, A), K, n = self.anchors.shape, thinking.samples, self.quiet.config.thoughts
        thinks = self.valid & (self.entropy > think_above(thinking.when)) & (n > 0)
        result = _Scored(self.plain.log_p.repeat(1, 1, K, 1), self.plain.likeliest.clone())
        numbers = uniforms(thinking.seed, self.seeds, A, K * n)[1].view(B, A, K, n)
        T, V = self.reading.tokens.shape[1], self.quiet.model.config.vocab_size
        held, slots = scored_at_once(self.valid.device), max(T, SLOTS_AT_ONCE)
        columns = max(1, min(held // (B * K * V), slots // (K * (n + 2))))
        order = thinks.int().argsort(dim=1, descending=True, stable=True)
        busy = int(thinks.sum(1).max())  # positions, those that think first
        for first in range(0, busy, columns):
            at = (self.rows, order[:, first : min(first + columns, busy)])
            drawn = numbers[tuple(x.cpu() for x in at)]  # (B, a, K, n)
            new, use = self._after_thoughts(at, drawn, thinking.temperature), thinks[at]
            result.log_p[at] = new.log_p.where(use[..., None, None], result.log_p[at])
            result.likeliest[at] = new.likeliest.where(use, result.likeliest[at])
        return result, thinks

    def _after_thoughts(
        self, at: tuple[Tensor, Tensor], numbers: Tensor, temperature: float
    ) -> _Scored:
        """Sample thoughts at some positions of each text, and mix the predictions after them."""
        quiet, model, anchors = self.quiet, self.quiet.model, self.anchors[at]
        tokens = self.reading.tokens[:, : int(anchors.max()) + 1]  # what comes later is not seen
        documents, T = one_document(tokens), tokens.shape[1]
        cache = [(k[:, :T], v[:, :T]) for k, v in self.reading.rows.cache]
        thoughts = quiet.sample(documents, anchors, cache, numbers, temperature)
        (B, a, K, n), shape = thoughts.shape, model.config
        layout = Layout(documents, anchors, K, n + 2, quiet.visibility)
        with quiet.with_settings(ahead=1):
            x = quiet.embed_branches(tokens, anchors, thoughts).flatten(1, 3)
            both = branch_cache(model, cache, (a, K, n + 2))
            attend = CachedBranches.of(layout, shape.window, shape.shared, model.eager(x))
            outputs = model(x, layout.branches.position.flatten(1), attend, both)
            outputs = outputs.unflatten(1, (a, K, n + 2))
            after = quiet.after(outputs, thoughts)[..., 0, :]  # (B, a, K, D), at <end>
        before = self.outputs[at][:, :, None].expand_as(after)
        log_p = predict_next(quiet, before.flatten(0, 2), after.flatten(0, 2))[1]
        return self._scored(log_p.view(B, a, K, -1), self.wanted[at])

    def _scored(self, log_p: Tensor, wanted: Tensor) -> _Scored:
        """(B, a, K, V) -> log-probabilities of (B, a, W) ids, and what greedy decoding says."""
        wanted = wanted[:, :, None].expand(-1, -1, log_p.shape[2], -1)
        mean = log_p.logsumexp(2)[..., self.sayable]  # less log K
        return _Scored(log_p.gather(3, wanted).double(), self.sayable[mean.argmax(-1)])
