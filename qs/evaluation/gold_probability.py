"""Question sets, zero-shot: the probability of the gold answer, and the answer that is decoded.

`gold_probability` is the paper's "accuracy". Only the positions that predict a scored token think;
the question is read once, in one plain causal pass, and shared by all thoughts.

Source: Quiet-STaR (arXiv:2403.09629), section 5.1; ezelikman/quiet-star, eval_helpers.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qs.config import ONE_THOUGHT, PADDING
from qs.data.prompts import direct_answer, direct_prompt
from qs.data.question_sets import BenchmarkQuestion
from qs.inference.decoding import uniforms
from qs.inference.loglikelihood import seed_of
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.sampler import prefill

DIGITS = tuple("0123456789")


def gold_probability(log_p: Tensor, targets: Sequence[int], allowed: Sequence[int]) -> Tensor:
    """Probability of an answer's tokens, each renormalised over what an answer may hold.

    Args:
        log_p: (..., L, V) log-probabilities (or logits) at the positions that predict the answer.
        targets: L ids; those not in `allowed` (commas, spaces) are passed over.
        allowed: ids that an answer may hold: digits and newline, or option letters and newline.

    Returns:
        (...) product of the renormalised probabilities, double precision.

    Raises:
        ValueError: no target is allowed.
    """
    kept = [i for i, target in enumerate(targets) if target in allowed]
    if not kept:
        raise ValueError(f"expected an answer with tokens of {list(allowed)}, found none of them")
    chosen = log_p[..., kept, :][..., list(allowed)].double().log_softmax(-1)
    index = torch.tensor([allowed.index(targets[i]) for i in kept], device=log_p.device)
    index = index.expand(chosen.shape[:-1])[..., None]
    return chosen.gather(-1, index).squeeze(-1).sum(-1).exp()


@dataclass(frozen=True)
class Item:
    """One question as tokens.

    Attributes:
        question: it.
        tokens: ids of prompt, answer and newline, BOS first.
        scored: positions t whose next token is an allowed token of the answer.
        allowed: ids that its answer may hold.
        options: id of each label, in order; empty without choices.
    """

    question: BenchmarkQuestion
    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    allowed: tuple[int, ...]
    options: tuple[int, ...]


def item(question: BenchmarkQuestion, tokenizer: Tokenizer) -> Item:
    """Put a question and its gold answer into tokens.

    Raises:
        ValueError: the tokenizer has no single token for a digit or for a label.
    """

    def ids_of(texts: Sequence[str]) -> tuple[int, ...]:
        before = tokenizer.encode("\nA:")
        found = []
        for text in texts:
            ids = tokenizer.encode(f"\nA:{text}")
            if len(ids) - len(before) > 2 or tokenizer.decode(ids[-1:]).strip() != text.strip():
                raise ValueError(f"expected a token for {text!r}, found none in the tokenizer")
            found.append(ids[-1])
        return tuple(found)

    newline = tokenizer.encode("\nA:\n")[-1]
    options = ids_of([f" {label}" for label in question.labels])
    allowed = (*(options or ids_of([f" {digit}" for digit in DIGITS])), newline)
    prompt = tokenizer.encode(direct_prompt(question), bos=True)
    tokens = tokenizer.encode(direct_prompt(question) + direct_answer(question), bos=True)
    pairs = enumerate(zip(prompt, tokens, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), len(prompt))
    scored = tuple(i - 1 for i in range(start, len(tokens)) if tokens[i] in allowed)
    return Item(question, tuple(tokens), scored, allowed, options)


@dataclass(frozen=True)
class Scored:
    """What was measured on one question.

    Attributes:
        id: of the question.
        gold_base, gold_mix: gold_probability without thoughts, and with them (mean over samples);
            None where nothing was thought.
        likeliest_base, likeliest_mix: the likeliest option ("" without choices).
        slots, slots_everywhere: branch slots computed, and those of thinking at every position.
    """

    id: str
    gold_base: float
    gold_mix: float | None
    likeliest_base: str
    likeliest_mix: str
    slots: int
    slots_everywhere: int


@torch.no_grad()
def score(
    quiet: QuietStar,
    items: Sequence[Item],
    samples: int,
    temperature: float,
    seed: int,
) -> list[Scored]:
    """Gold probability of a batch of questions, thinking only where a token is scored.

    A question's thoughts are drawn by numbers of its own text, whatever it is batched with.

    Args:
        quiet: the module; n is its config's, and n = 0 is no thought.
        items: B questions that fit.
        samples: K thoughts at each scored position; probabilities are averaged over them.
        temperature: of the thoughts; 0 is greedy, where one thought is enough.
        seed: of the numbers.
    """
    device = quiet.start.device
    length, most = max(len(x.tokens) for x in items), max(len(x.scored) for x in items)
    tokens = torch.zeros(len(items), length, dtype=torch.int64)
    documents = torch.full((len(items), length), PADDING)
    anchors = torch.zeros(len(items), most, dtype=torch.int64)
    for row, x in enumerate(items):
        tokens[row, : len(x.tokens)] = torch.tensor(x.tokens)
        documents[row, : len(x.tokens)] = 0
        anchors[row] = torch.tensor([*x.scored, *[x.scored[-1]] * (most - len(x.scored))])
    tokens, documents, anchors = (x.to(device) for x in (tokens, documents, anchors))
    n = quiet.config.thoughts
    outputs, cache = prefill(quiet.model, tokens, documents)
    outputs = outputs.gather(1, anchors[..., None].expand(-1, -1, outputs.shape[2]))
    base = quiet.model.logits(outputs)  # (B, A, V)
    if n:
        drawn = uniforms(seed, [seed_of(x.tokens) for x in items], most, samples * n)[1]
        drawn = drawn.view(len(items), most, samples, n)
        thoughts = quiet.sample(documents, anchors, cache, drawn, temperature)
        with quiet.with_settings(**ONE_THOUGHT):
            mix = quiet.predict(tokens, documents, anchors, thoughts)[1][:, :, :, 0]  # (B, A, K, V)
    per_anchor = samples * (2 * n + 2) if n else 0  # n sampled, then n + 2 scored
    found = []
    for row, x in enumerate(items):
        count = len(x.scored)
        targets = [x.tokens[t + 1] for t in x.scored]
        predictions = [base[row, None, :count]]  # (K, L, V)
        if n:
            predictions.append(mix[row, :count].transpose(0, 1))
        gold = [gold_probability(p, targets, x.allowed).mean().item() for p in predictions]
        likeliest = ["", ""]
        if x.options:
            first = [p[:, 0].double().softmax(-1).mean(0)[list(x.options)] for p in predictions]
            likeliest = [x.question.labels[int(p.argmax())] for p in first]
        found.append(
            Scored(
                id=x.question.id,
                gold_base=gold[0],
                gold_mix=gold[1] if n else None,
                likeliest_base=likeliest[0],
                likeliest_mix=likeliest[-1],
                slots=count * per_anchor,
                slots_everywhere=len(x.tokens) * per_anchor,
            )
        )
    return found


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Questions of similar length together, longest first: the first batch needs most memory."""
    order = sorted(items, key=lambda x: -len(x.tokens))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def fitting(items: Sequence[Item], longest: int) -> tuple[list[Item], list[str]]:
    """Questions that fit in rows of `longest` tokens, and the ids of those that do not."""
    fit = [x for x in items if len(x.tokens) <= longest]
    return fit, [x.question.id for x in items if len(x.tokens) > longest]
