"""What a model is measured on. Here: text, with and without thoughts, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qs.quiet import QuietStar

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
        there = step.base_valid
        mixed = step.nll_mix.sum((1, 2, 3)) if think else torch.zeros_like(step.nll_base[:, 0])
        weight = step.weight.where(step.valid[:, :, None], 0.0).sum((1, 2, 3))
        sums = [there.sum(1), step.nll_base.sum(1), mixed, weight]
        rows.append(torch.stack([x.double() for x in sums], 1).cpu())
    table = torch.cat(rows).numpy() if rows else np.zeros((0, 4))
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
