"""What a model is measured on. Here: text, with and without thoughts, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.quiet import QuietStar, Step
from qs.thoughts import prefill

ONE_THOUGHT = {  # everywhere, judged on the next token
    "ahead": 1,
    "samples": 1,
    "beta": 0.0,
    "baseline": "none",
    "anchors": "all",
    "anchor_share": 1.0,
}
NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard errors


@dataclass(frozen=True)
class TextScore:
    """NLL of text, in nats a token, with and without thoughts on the same tokens.

    Attributes:
        tokens: how many were scored.
        nll_base: without thoughts.
        nll_mix: with thoughts (None where the model was run without).
        gain: nll_base - nll_mix, paired by token.
        gain_interval: half-width of its 95 % interval, rows as the units; None for one row.
        weight: mean mixing weight.
    """

    tokens: int
    nll_base: float
    nll_mix: float | None = None
    gain: float | None = None
    gain_interval: float | None = None
    weight: float | None = None


@torch.no_grad()
def text_score(
    quiet: QuietStar,
    batches: Iterable[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    think: bool = True,
) -> TextScore:
    """NLL of text with one sampled thought before every token, and without thoughts.

    Every token but the first of each document in a row is scored (there is nothing before it).

    Args:
        quiet: the module; thinks everywhere, one thought, judged on the next token.
        batches: (tokens, documents), each (B, T).
        generator: source of the thoughts, on the CPU.
        think: if False, only the NLL without thoughts is measured.

    Raises:
        ValueError: no token can be scored.
    """
    rows: list[Tensor] = []  # of (tokens, nll_base, nll_mix, weight) sums
    for tokens, documents in batches:
        none = tokens[:, :0]
        with quiet.with_settings(**ONE_THOUGHT):
            if think:
                step = quiet(tokens, documents, generator=generator)
            else:
                step = quiet(tokens, documents, thoughts=none[:, :, None, None], anchors=none)
        rows.append(text_sums(step, step.base_valid).cpu())
    return text_summary(torch.cat(rows).numpy() if rows else np.zeros((0, 4)), think)


def text_sums(step: Step, there: Tensor) -> Tensor:
    """Sums over the tokens of each row that (B, T) `there` names.

    Args:
        step: with one thought at every position, or with none at all.
        there: (B, T) positions whose next token counts.

    Returns:
        (B, 4): tokens, nll_base, nll_mix, weight; the last two are 0 without thoughts.
    """
    sums = [there, step.nll_base.where(there, 0.0)]
    for found in (step.nll_mix, step.weight):
        thinks = there[:, : found.shape[1]]
        sums.append(found[:, :, 0, 0].where(thinks, 0.0) if found.shape[1] else found.flatten(1))
    return torch.stack([x.double().sum(1) for x in sums], 1)


def text_summary(table: np.ndarray, think: bool) -> TextScore:
    """Means over (R, 4) `text_sums`.

    Raises:
        ValueError: no token can be scored.
    """
    count, base, mix, weight = table.sum(0)
    if count == 0:
        raise ValueError("no token to score: every row holds padding or single-token documents")
    if not think:
        return TextScore(int(count), base / count)
    return TextScore(
        tokens=int(count),
        nll_base=base / count,
        nll_mix=mix / count,
        gain=(base - mix) / count,
        gain_interval=ratio_interval(table[:, 1] - table[:, 2], table[:, 0]),
        weight=weight / count,
    )


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of sum(sums) / sum(counts) over independent units.

    Linearised (delta method) standard error of a ratio; None for fewer than two units.
    """
    units, total = len(sums), counts.sum()
    if units < 2:
        return None
    residual = sums - sums.sum() / total * counts
    return NORMAL_95 * math.sqrt(units / (units - 1) * float((residual**2).sum())) / float(total)


def mean_interval(values: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of a mean over independent units; None for fewer than two."""
    if len(values) < 2:
        return None
    return NORMAL_95 * float(values.std(ddof=1)) / math.sqrt(len(values))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    square = NORMAL_95**2
    middle = (hits + square / 2) / (count + square)
    half = NORMAL_95 * math.sqrt(hits * (count - hits) / count + square / 4) / (count + square)
    return max(0.0, middle - half), min(1.0, middle + half)


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


class Tokens(NamedTuple):
    """Every token of some text, in nats; (N,) each.

    Attributes:
        nll_base, nll_mix: NLL without and with one sampled thought.
        entropy: of the prediction without thoughts.
        documents: document that the token is in, by its number in `batches`.
    """

    nll_base: np.ndarray
    nll_mix: np.ndarray
    entropy: np.ndarray
    documents: np.ndarray


@torch.no_grad()
def token_nlls(
    quiet: QuietStar, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator
) -> Tokens:
    """Measure every token.

    Args:
        quiet, batches, generator: as for `text_score`, which thinks the same thoughts. A document
            that goes on in other rows has the same number there.
    """
    found = []
    for tokens, documents in batches:
        with quiet.with_settings(**ONE_THOUGHT):
            step = quiet(tokens, documents, generator=generator)
        outputs, _ = prefill(quiet.model, tokens, documents)
        entropy = torch.stack([_entropy(quiet.model.logits(row)) for row in outputs])
        there = step.base_valid
        each = step.nll_base, step.nll_mix[:, :, 0, 0], entropy, documents
        found.append([x[there].double().cpu().numpy() for x in each])
    base, mix, nats, names = (np.concatenate(x) for x in zip(*found, strict=True))
    return Tokens(base, mix, nats, names.astype(int))


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


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
