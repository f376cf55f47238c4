"""Log-probability of continuations: only the positions that predict one of its tokens think.

What comes before is read once, in one plain causal pass, as a continuation's own tokens are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import ONE_THOUGHT, PADDING
from qs.inference.decoding import ThinkWhen, uniforms
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import entropy
from qs.quietstar.sampler import allowed_ids, prefill

SLOTS_AT_ONCE = 1024  # of thoughts, for each row of a batch, or as many as its text if that is more
LOGITS_AT_ONCE = 2**24  # 64 MiB of float32


class Row(NamedTuple):
    """Text of which the tokens from `first` >= 1 on are scored; the last one is only predicted."""

    ids: tuple[int, ...]
    first: int


class Scored(NamedTuple):
    """What was found for one row.

    Attributes:
        log_p: of its scored tokens together, in nats.
        greedy: whether each of them is the one that greedy decoding would say.
        tokens, thoughts: how many were scored, and how many thoughts that took.
    """

    log_p: float
    greedy: bool
    tokens: int
    thoughts: int


class Thinking(NamedTuple):
    """How to think: where, K thoughts at a time, at which temperature, by which numbers."""

    when: ThinkWhen
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


def split(tokenizer: Tokenizer, context: str, continuation: str) -> Row:
    """A continuation after its context, BOS first.

    As in lm-evaluation-harness: the spaces that end the context belong to the continuation; the
    text is encoded as a whole, and as many tokens as the context has alone are the context.

    Raises:
        ValueError: the continuation is empty.
    """
    if not continuation:
        raise ValueError(f"expected a continuation of {context[-40:]!r}, got an empty one")
    whole = tokenizer.encode(context + continuation, bos=True)
    known = len(tokenizer.encode(context.rstrip(), bos=True))
    # a last token may hold the end of the context and the whole continuation
    return Row(tuple(whole), min(known, len(whole) - 1))


def fitted(row: Row, longest: int) -> Row:
    """Cut a row from the left to `longest` tokens, the one that is only predicted not counted.

    Raises:
        ValueError: its scored tokens alone are more.
    """
    over = max(0, len(row.ids) - longest - 1)
    if over >= row.first:
        raise ValueError(
            f"a continuation of {len(row.ids) - row.first} tokens does not fit in {longest}"
        )
    return Row(row.ids[over:], row.first - over)


def windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[Row]:
    """Cut a text so that each token is scored once, after as much of the text as fits.

    Args:
        ids: the text.
        prefix: what stands before its first token.
        longest: tokens in a row, the one that is only predicted not counted.
    """
    text = (prefix, *ids)
    for done in range(1, len(text), longest):
        end = min(done + longest, len(text))
        start = max(0, end - longest - 1)
        yield Row(text[start:end], done - start)


def seed_of(ids: Sequence[int]) -> int:
    """A number that stands for a text, to draw by; the next 2^32 are free for repetitions."""
    return int.from_bytes(hashlib.sha256(str(tuple(ids)).encode()).digest()[:8], "big") << 32


@torch.no_grad()
def score(quiet: QuietStar, rows: Sequence[Row], thinking: Thinking) -> list[Scored]:
    """Log-probabilities of a batch of continuations.

    The probability of a token is its mean over K thoughts. Rows draw by numbers of their own text,
    so a row's result does not depend on the others.

    Args:
        quiet: the module; n is its config's, and n = 0 is no thought.
        rows: B of them, which fit in the positions that the model was made for.
        thinking: how.
    """
    model, device, size = quiet.model, quiet.start.device, len(rows)
    length, most = max(len(r.ids) for r in rows) - 1, max(len(r.ids) - r.first for r in rows)
    tokens, documents = torch.zeros(size, length).long(), torch.full((size, length), PADDING)
    anchors, targets, there = torch.zeros(3, size, most).long()
    for i, (ids, first) in enumerate(rows):
        tokens[i, : len(ids) - 1], documents[i, : len(ids) - 1] = torch.tensor(ids[:-1]), 0
        anchors[i, : len(ids) - first] = torch.arange(first - 1, len(ids) - 1)
        targets[i, : len(ids) - first] = torch.tensor(ids[first:])
        there[i, : len(ids) - first] = 1
    batch = (tokens, documents, anchors, targets, there > 0)
    tokens, documents, anchors, targets, there = (x.to(device) for x in batch)

    K, n = thinking.samples, quiet.config.thoughts
    outputs, cache = prefill(model, tokens, documents)
    outputs = outputs.gather(1, anchors[..., None].expand(-1, -1, outputs.shape[2]))  # (B, A, D)
    columns = max(1, LOGITS_AT_ONCE // (size * K * model.config.vocab_size))
    parts = []
    for some, right in zip(outputs.split(columns, 1), targets.split(columns, 1), strict=True):
        predicted = model.logits(some).log_softmax(-1)
        parts.append((*_judge(quiet, predicted, right), entropy(predicted)))
    log_p, greedy, nats = (torch.cat(x, 1) for x in zip(*parts, strict=True))  # (B, A)

    thinks = there & (nats > (thinking.when.above if n else math.inf))
    columns = max(1, min(columns, max(length, SLOTS_AT_ONCE) // (K * (n + 2))))
    drawn = uniforms(thinking.seed, [seed_of(row.ids) for row in rows], most, K * n)[1]
    drawn = drawn.view(size, most, K, n)
    order = thinks.int().argsort(dim=1, descending=True, stable=True)  # those that think come first
    busy = int(thinks.sum(1).max())
    for first in range(0, busy, columns):
        at = order[:, first : min(first + columns, busy)]
        places, some = anchors.gather(1, at), at.cpu()[..., None, None].expand(-1, -1, K, n)
        numbers = drawn.gather(1, some)
        thoughts = quiet.sample(documents, places, cache, numbers, thinking.temperature)
        read = slice(0, int(places.max()) + 1)
        with quiet.with_settings(**ONE_THOUGHT):
            mixed = quiet.predict(tokens[:, read], documents[:, read], places, thoughts)[1]
        mean = mixed.squeeze(3).logsumexp(2) - math.log(K)  # (B, A, V)
        use = thinks.gather(1, at)
        for held, new in zip(
            (log_p, greedy), _judge(quiet, mean, targets.gather(1, at)), strict=True
        ):
            held.scatter_(1, at, new.where(use, held.gather(1, at)))
    found = (
        log_p.double().where(there, 0.0).sum(1),
        (greedy | ~there).all(1),
        there.sum(1),
        thinks.sum(1) * K,
    )
    return [Scored(*x) for x in zip(*(x.tolist() for x in found), strict=True)]


def _judge(quiet: QuietStar, log_p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A, V) -> log-probability of (B, A) targets, and whether greedy decoding says them."""
    shape = quiet.model.config
    sayable = allowed_ids(shape.vocab_size, set(shape.forbidden) - {shape.eos_id}, log_p.device)
    likeliest = sayable[log_p[..., sayable].argmax(-1)]
    return log_p.gather(-1, targets[..., None]).squeeze(-1), likeliest == targets
