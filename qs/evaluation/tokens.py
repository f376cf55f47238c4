"""What a model is measured on. Here: text, with and without thoughts, on the same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.config import ONE_THOUGHT
from qs.evaluation.statistics import ratio_interval
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import Step
from qs.quietstar.sampler import prefill


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
