"""Every token of some text, measured once with and without thoughts, in named columns.

What is told of text is read off this table: its score, deciles of difficulty, where thinking pays,
which tokens it helped most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qs.config import PADDING, RunConfig
from qs.data.dataset import TokenDataset, sequential
from qs.evaluation.statistics import ratio_estimate
from qs.output import progress
from qs.presets import ONE_THOUGHT
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import lengths
from qs.quietstar.losses import entropy
from qs.quietstar.sampler import step_generator


class Question(NamedTuple):
    """An answer in a row of text, and what is known about it."""

    row: int
    position: int  # t; x[t+1] is the answer
    kind: str  # this and difficulty: see `synthetic.Document`
    difficulty: int
    choices: tuple[int, ...]  # ids of all possible answers
    gold: int  # index of the answer among them
    working: tuple[int, ...]  # ids of the steps that reach the answer


@dataclass(frozen=True)
class TextRows:
    """Rows of text, and the questions in them."""

    tokens: Tensor  # (R, T) ids
    documents: Tensor  # (R, T) number of each token's document in the whole text, or PADDING
    questions: Sequence[Question] | None = None  # in order of rows; None where they are not known

    def other(self, scored: Tensor) -> Tensor:
        """(R, T) `scored` positions whose next token answers no question."""
        other = scored.clone()
        for q in self.questions or ():
            other[q.row, q.position] = False
        return other


def windows(data: TokenDataset, seq: int, rows: int) -> TextRows:
    """The first `rows` rows of `seq` tokens of a split, of which only the text is known.

    Raises:
        ValueError: the split is empty.
    """
    batch = sequential(data, seq, rows)
    numbers = batch.documents + batch.first[:, None]  # a document cut by a row's end stays one
    return TextRows(batch.tokens, numbers.where(batch.documents != PADDING, PADDING))


Change = Callable[[QuietStar, Tensor, Tensor, torch.Generator], Tensor]
"""Module, documents (B, T), thoughts (B, T, 1, n), generator -> other thoughts, of any length."""


class RowSums(NamedTuple):
    """Sums over some tokens of each row of text, (R,) float64 each; NLL in nats."""

    tokens: np.ndarray  # how many
    nll_base: np.ndarray  # without thoughts
    nll_mix: np.ndarray  # with thoughts
    weight: np.ndarray  # mixing weight
    length: np.ndarray  # tokens of the thought


@dataclass(frozen=True)
class TokenTable:
    """Every token of R rows of text, measured once; on the CPU.

    What stands at position t tells of the next token, x[t+1]. NLL and entropy in nats.
    """

    tokens: Tensor  # (R, T)
    documents: Tensor  # (R, T)
    scored: Tensor  # (R, T) whether x[t+1] counts: nothing is before a document's first token
    nll_base: Tensor  # (R, T) without thoughts
    nll_mix: Tensor  # (R, T) with one thought after t; the same as without where none was had
    weight: Tensor  # (R, T) mixing weight
    entropy: Tensor  # (R, T) of the prediction without thoughts; (R, 0) where not asked for
    thoughts: Tensor  # (R, T, n)

    @property
    def length(self) -> Tensor:
        """(R, T) tokens of each thought."""
        return lengths(self.thoughts)

    def row_sums(self, chosen: Tensor) -> RowSums:
        """Sums over the tokens that (R, T) `chosen` names."""
        columns = (chosen, self.nll_base, self.nll_mix, self.weight, self.length)
        return RowSums(*(x.where(chosen, 0).double().sum(1).numpy() for x in columns))


@torch.no_grad()
def measure_tokens(
    quiet: QuietStar,
    text: TextRows,
    run: RunConfig,
    change: Change | None = None,
    fixed_weight: float | None = None,
    entropies: bool = False,
    label: str = "",
) -> TokenTable:
    """Read text once, with one sampled thought before every token.

    Args:
        quiet: the module; thinks everywhere, one thought, judged on the next token.
        text: R rows.
        run: seed of the thoughts, rows at a time, and whether it thinks at all.
        change: gives other thoughts to use instead.
        fixed_weight: mixing weight to use instead of the head's.
        entropies: measure them too, outside of the module's forward pass.
        label: of the progress bar; empty: there is none.
    """
    generator, device = step_generator(run.seed, 0), quiet.start.device
    size = run.micro_batch or run.batch
    parts: list[TokenTable] = []
    for first in progress(range(0, len(text.tokens), size), label, leave=False, shown=bool(label)):
        rows = slice(first, first + size)
        x, inside = text.tokens[rows], text.documents[rows]
        if quiet.model.compiled:  # for one size: the last rows are filled up
            x = F.pad(x, (0, 0, 0, size - len(x)))
            inside = F.pad(inside, (0, 0, 0, size - len(inside)), value=PADDING)
        x, inside = x.to(device), inside.to(device)
        anchors, thoughts = x[:, :0], x[:, :0, None, None]  # nobody thinks
        with quiet.with_settings(**ONE_THOUGHT):
            if run.thinks:
                anchors, thoughts = quiet.think(x, inside, generator=generator)
            if change:
                thoughts = change(quiet, inside, thoughts, generator)
            step = quiet(x, inside, anchors=anchors, thoughts=thoughts, fixed_weight=fixed_weight)
        nats = step.nll_base[:, :0]
        if entropies:  # a row at a time: the logits of all would not fit
            rows = [quiet.model.logits(row).float().log_softmax(-1) for row in step.outputs]
            nats = torch.stack([entropy(row) for row in rows])
        parts.append(
            TokenTable(
                tokens=x,
                documents=inside,
                scored=step.base_valid,
                nll_base=step.nll_base,
                nll_mix=step.nll_mix[:, :, 0, 0] if run.thinks else step.nll_base,
                weight=step.weight[:, :, 0, 0] if run.thinks else torch.zeros_like(step.nll_base),
                entropy=nats,
                thoughts=thoughts[:, :, 0] if run.thinks else x.new_zeros((*x.shape, 0)),
            )
        )
    columns = ([getattr(part, f.name) for part in parts] for f in fields(TokenTable))
    return TokenTable(*(torch.cat(column)[: len(text.tokens)].cpu() for column in columns))


@dataclass(frozen=True)
class NllScore:
    """NLL of text, in nats a token, with and without thoughts on the same tokens."""

    tokens: int  # how many were scored
    nll_base: float  # without thoughts
    nll_mix: float | None = None  # with thoughts; None where the model was run without
    gain: float | None = None  # nll_base - nll_mix, paired by token
    gain_interval: float | None = None  # half of its 95 % interval over rows; None for one row
    weight: float | None = None  # mean mixing weight
    length: float | None = None  # mean tokens of a thought, where they end themselves


def nll_score(sums: RowSums, think: bool = True, drawn: bool = False) -> NllScore:
    """Means over all tokens that were summed; without `think`, nothing of what is after a thought.

    `drawn` is whether thoughts ended themselves.

    Raises:
        ValueError: no token was scored.
    """
    # row by row, as in scores of old runs
    count, base, mix, weight, length = np.stack(sums, 1).sum(0)
    if count == 0:
        raise ValueError("no token to score: every row holds padding or single-token documents")
    if not think:
        return NllScore(int(count), base / count)
    return NllScore(
        tokens=int(count),
        nll_base=base / count,
        nll_mix=mix / count,
        gain=(base - mix) / count,
        gain_interval=ratio_estimate(sums.nll_base - sums.nll_mix, sums.tokens).interval,
        weight=weight / count,
        length=length / count if drawn else None,
    )
