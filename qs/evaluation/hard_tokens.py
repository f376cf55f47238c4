"""Hard tokens: what thinking does by difficulty, where it is worth it, and examples of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qs.config import ONE_THOUGHT
from qs.evaluation.heldout import heldout, heldout_pairs
from qs.evaluation.statistics import ratio_interval
from qs.evaluation.synthetic import gold_above, marked, measure
from qs.evaluation.tokens import Tokens, token_nlls
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Opened
from qs.quietstar.sampler import step_generator
from qs.tables import Table

EXAMPLES = 20  # of tokens that were helped most, and of those hurt most


def hard_tokens(opened: Opened) -> tuple[dict[str, Any], list[Table]]:
    """Measure held-out text; facts to keep and tables to show."""
    run, thought = opened.config.run, opened.config.thought
    found = token_nlls(opened.quiet, heldout_pairs(opened), step_generator(run.seed, 0))
    deciles = by_decile(found.nll_base, found.nll_mix, found.documents)
    spared = frontier(found, thought.thoughts)
    folder = heldout(opened).folder
    if (text := marked(folder, opened.tokenizer, run.seq, run.eval_rows)) is not None:
        rows = [slice(i, i + run.batch) for i in range(0, len(text.tokens), run.batch)]
        asked = measure(opened.quiet, text, rows, step_generator(run.seed, 0))
        spared = [dataclasses.replace(s, gold=gold_above(asked, s.above)) for s in spared]
    pairs = heldout_pairs(opened)
    best, worst = most_helped(opened.quiet, pairs, step_generator(run.seed, 0), EXAMPLES)
    named = {"deciles": deciles, "frontier": spared, "helped": best, "hurt": worst}
    facts = {name: [dataclasses.asdict(x) for x in lines] for name, lines in named.items()}
    facts |= {"data": str(folder), "tokens": len(found.nll_base), "seed": run.seed}
    facts["documents"] = len(set(found.documents.tolist()))
    about = (
        f"{folder}: {facts['tokens']:,} tokens of {facts['documents']:,} documents, rows of "
        f"{run.seq}; one thought of n {thought.thoughts} at temperature "
        f"{thought.sample_temperature} before each; seed {run.seed}"
    )
    return facts, text_tables(deciles, spared, best, worst, opened.tokenizer, about)


def text_tables(
    deciles: Sequence[Decile],
    spared: Sequence[Spared],
    best: Sequence[Helped],
    worst: Sequence[Helped],
    tokenizer: Tokenizer,
    about: str,
) -> list[Table]:
    """Tokens by difficulty, thinking only where it may pay, tokens helped and hurt most.

    Args:
        deciles, spared, best, worst: see `qs/evaluation/tokens.py`.
        tokenizer: of the tokens.
        about: text, counts and seed.
    """
    rows = []
    for d in deciles:
        pairs = (f"{x:.4f} ({math.exp(x):.2f})" for x in (d.nll_base, d.nll_base - d.gain))
        half = "-" if d.interval is None else f"{d.interval:.4f}"
        ends = f"{d.low:.3f}", f"{d.high:.3f}", f"{d.tokens:,}", f"{d.documents:,}"
        rows.append((*ends, *pairs, f"{d.gain:+.4f}", half))
    title = "tokens by their NLL without thoughts, a tenth each (nats; perplexity in brackets)"
    heads = ("NLL from", "to", "tokens", "documents", "without", "with", "gain", "95 % +-")
    notes = [about, "intervals: documents are the units"]
    tables = [Table(title, heads, rows, notes)]

    rows = []
    for s in spared:
        kept = "-" if s.kept is None else f"{s.kept:.1%}"
        gold = "-" if s.gold is None else f"{s.gold:.3f}"
        rows.append(
            (f"{s.above:.3f}", f"{s.share:.1%}", f"{s.slots:.2f}", f"{s.gain:+.4f}", kept, gold)
        )
    title = "thinking only where the entropy of the prediction without thoughts is above X"
    heads = ("X, nats", "share of tokens", "slots a token", "gain", "kept", "gold")
    tables.append(Table(title, heads, rows))

    def named(ids: Sequence[int]) -> str:
        special = (tokenizer.bos_id, tokenizer.eos_id)
        return repr("".join("…" if i < 0 else tokenizer.piece(i) for i in ids if i not in special))

    for title, found in (("helped", best), ("hurt", worst)):
        rows = [
            (f"{x.gain:+.3f}", f"{x.weight:+.2f}", *map(named, (x.context, [x.target], x.thought)))
            for x in found
        ]
        heads = ("gain", "weight", "text before", "token", "thought")
        tables.append(Table(f"tokens that their thoughts {title} most", heads, rows))
    return tables


@dataclass(frozen=True)
class Decile:
    """A tenth of the tokens, by their NLL without thoughts.

    Attributes:
        low, high: smallest and largest NLL in it, in nats.
        tokens: how many.
        documents: that they are in.
        gain: mean of nll_base - nll_mix, in nats.
        interval: half-width of its 95 % interval, documents as units; None for one document.
        nll_base: mean NLL without thoughts, in nats.
    """

    low: float
    high: float
    tokens: int
    documents: int
    gain: float
    interval: float | None
    nll_base: float


@dataclass(frozen=True)
class Spared:
    """Thinking only where the prediction without thoughts is unsure.

    Attributes:
        above: entropy in nats from which on a token thinks.
        share: of the tokens that think, and so of the thought tokens.
        slots: computed for each token, the n + 3 of a thought and its text included.
        gain: mean of nll_base - nll_mix over all tokens, in nats; 0 where a token does not think.
        kept: share of the gain of thinking everywhere; None if that gained nothing.
        gold: gold answer probability; None where answers are not known.
    """

    above: float
    share: float
    slots: float
    gain: float
    kept: float | None
    gold: float | None = None


def frontier(found: Tokens, thoughts: int, points: int = 10) -> list[Spared]:
    """What is gained against what is thought, for thresholds of the entropy.

    Args:
        found: tokens.
        thoughts: n.
        points: thresholds, the first of which lets every token think: quantiles of the entropy.
    """
    gain = found.nll_base - found.nll_mix
    result = []
    for share in np.linspace(1, 0, points, endpoint=False):
        above = float(np.quantile(found.entropy, 1 - share)) if share < 1 else 0.0
        thinks = found.entropy > above if share < 1 else np.ones(len(gain), bool)
        total, kept = gain.sum(), gain[thinks].sum()
        result.append(
            Spared(
                above=above,
                share=float(thinks.mean()),
                slots=float(1 + thinks.mean() * (thoughts + 2)),
                gain=float(kept / len(gain)),
                kept=float(kept / total) if total > 0 else None,
            )
        )
    return result


def by_decile(nll_base: np.ndarray, nll_mix: np.ndarray, documents: np.ndarray) -> list[Decile]:
    """What thinking does for easy and for hard tokens.

    Args:
        nll_base, nll_mix: (N,) NLL of the same tokens in nats, without and with thoughts.
        documents: (N,) document that each token is in.
    """
    order = nll_base.argsort(kind="stable")
    names = np.unique(documents)
    found = []
    for part in np.array_split(order, 10):
        if not len(part):
            continue
        at = np.searchsorted(names, documents[part])
        gain = nll_base[part] - nll_mix[part]
        sums = np.bincount(at, gain, len(names))
        counts = np.bincount(at, minlength=len(names))
        found.append(
            Decile(
                low=float(nll_base[part].min()),
                high=float(nll_base[part].max()),
                tokens=len(part),
                documents=int((counts > 0).sum()),
                gain=float(gain.mean()),
                interval=ratio_interval(sums[counts > 0], counts[counts > 0]),
                nll_base=float(nll_base[part].mean()),
            )
        )
    return found


@dataclass(frozen=True)
class Helped:
    """One token and what thinking before it did.

    Attributes:
        gain: nll_base - nll_mix of the token, in nats.
        weight: mixing weight.
        context, thought: ids before the token (a few), and of the thought.
        target: the token.
    """

    gain: float
    weight: float
    context: list[int]
    target: int
    thought: list[int]


@torch.no_grad()
def most_helped(
    quiet: QuietStar,
    batches: Iterable[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    count: int,
    context: int = 16,
) -> tuple[list[Helped], list[Helped]]:
    """The tokens that one sampled thought before them helped most and hurt most.

    Args:
        quiet, batches, generator: as for `text_score`, which thinks the same thoughts.
        count: how many of each.
        context: tokens before each that are kept.
    """
    found: list[Helped] = []
    for tokens, documents in batches:
        with quiet.with_settings(**ONE_THOUGHT):
            step = quiet(tokens, documents, generator=generator)
        valid = step.valid[..., 0]
        gain = step.nll_base - step.nll_mix[:, :, 0, 0]
        flat = gain.flatten()
        ends = {*flat.topk(min(count, len(flat))).indices.tolist()}
        ends |= {*flat.topk(min(count, len(flat)), largest=False).indices.tolist()}
        for row, t in (divmod(i, tokens.shape[1]) for i in sorted(ends)):
            if valid[row, t]:
                first = max(0, t + 1 - context)
                same = documents[row, first : t + 1] == documents[row, t]
                found.append(
                    Helped(
                        gain=gain[row, t].item(),
                        weight=step.weight[row, t, 0, 0].item(),
                        context=tokens[row, first : t + 1][same].tolist(),
                        target=tokens[row, t + 1].item(),
                        thought=step.thoughts[row, t, 0].tolist(),
                    )
                )
        found.sort(key=lambda item: -item.gain)
        found = found[:count] + found[max(count, len(found) - count) :]
    best = [item for item in found[:count] if item.gain > 0]
    return best, [item for item in reversed(found[-count:]) if item.gain < 0]
