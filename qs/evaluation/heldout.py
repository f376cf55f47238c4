"""What a model is worth on held-out text: by kind of question, and at all other tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from qs import files
from qs.config import PADDING, Config
from qs.data.dataset import TokenDataset, resolve_data, sequential
from qs.evaluation.statistics import mean_interval, ratio_interval, wilson
from qs.evaluation.synthetic import Change, Marked, Measured, marked, measure
from qs.evaluation.tokens import TextScore, text_score, text_summary
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Opened
from qs.quietstar.sampler import step_generator

ALL = "all"  # the kind that stands for all kinds together


@dataclass(frozen=True)
class AnswerScore:
    """Answers of one kind of questions; what is after a thought is None for plain models.

    Probabilities are renormalised over possible answers.

    Attributes:
        kind: of the questions.
        questions: how many.
        gold_base, gold_mix: mean probability of the answer, without and with a thought.
        gold_base_interval, gold_mix_interval: half-widths of their 95 % intervals.
        nll_base, nll_mix: mean NLL in nats of the answer among all tokens.
        useful: share of thoughts that begin with the steps to the answer, with a 95 % interval;
            None where no thoughts are sampled.
        weight: mean mixing weight at the answers.
    """

    kind: str
    questions: int
    gold_base: float
    gold_base_interval: float | None
    nll_base: float
    gold_mix: float | None = None
    gold_mix_interval: float | None = None
    nll_mix: float | None = None
    useful: float | None = None
    useful_interval: list[float] | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Score:
    """What a model is worth on held-out text.

    Attributes:
        text: all tokens.
        other: tokens that answer no question; None where no questions are known.
        answers: by kind, and of all kinds together.
        other_rows: (R, 2) of each row of text, the number of other tokens and the sum of their NLL
            (with thoughts, if there are any): two scores of the same text are compared row by row.
    """

    text: TextScore
    other: TextScore | None = None
    answers: tuple[AnswerScore, ...] = ()
    other_rows: tuple[tuple[float, float], ...] = ()

    @staticmethod
    def from_json(values: dict) -> Score:
        """Read back `dataclasses.asdict`.

        Raises:
            TypeError: names are missing or unexpected.
        """
        return Score(
            TextScore(**values["text"]),
            values["other"] and TextScore(**values["other"]),
            tuple(AnswerScore(**x) for x in values["answers"]),
            tuple((count, nll) for count, nll in values.get("other_rows", ())),
        )


def other_change(before: Score, after: Score) -> tuple[float, float | None] | None:
    """Change in the NLL of other tokens, paired by row of text.

    Returns:
        Mean in nats a token and the half-width of its 95 % interval; None where the two were not
        measured on the same rows.
    """
    one, two = (np.array(score.other_rows) for score in (before, after))
    if one.shape != two.shape or not one.size or (one[:, 0] != two[:, 0]).any():
        return None
    difference, counts = two[:, 1] - one[:, 1], one[:, 0]
    return float(difference.sum() / counts.sum()), ratio_interval(difference, counts)


def summarise(text: Marked, found: Measured, think: bool = True, sampled: bool = True) -> Score:
    """Means and intervals of what was measured.

    Args:
        text, found: what was read, and found there.
        think: False leaves out what is after a thought.
        sampled: False leaves out which thoughts hold the steps.
    """
    kinds = np.array([q.kind for q in text.questions])
    answers = []
    for kind in (*dict.fromkeys(kinds.tolist()), ALL):
        here = (kinds == kind) | (kind == ALL)
        if not here.any():
            continue
        gold, nll, useful = found.gold[here], found.nll[here].mean(0), found.useful[here]
        with_thoughts: dict[str, Any] = {}
        if think:
            with_thoughts = {
                "gold_mix": float(gold[:, 1].mean()),
                "gold_mix_interval": mean_interval(gold[:, 1]),
                "nll_mix": float(nll[1]),
                "weight": float(found.weight[here].mean()),
            }
        if think and sampled:
            with_thoughts["useful"] = float(useful.mean())
            with_thoughts["useful_interval"] = wilson(int(useful.sum()), len(useful))
        answers.append(
            AnswerScore(
                kind=kind,
                questions=len(gold),
                gold_base=float(gold[:, 0].mean()),
                gold_base_interval=mean_interval(gold[:, 0]),
                nll_base=float(nll[0]),
                **with_thoughts,
            )
        )
    return Score(
        text=text_summary(found.text, think),
        other=text_summary(found.other, think),
        answers=tuple(answers),
        other_rows=tuple(map(tuple, found.other[:, [0, 1 + think]].tolist())),
    )


def measured(
    quiet: QuietStar,
    text: Marked,
    config: Config,
    label: str = "",
    change: Change | None = None,
    fixed_weight: float | None = None,
) -> Measured:
    """Measure held-out text as a run does at its end: its seed, its rows at a time.

    Args:
        quiet: the module.
        text: rows and questions.
        config: batch, seed and objective are used.
        label: of the progress bar; empty: there is none.
        change, fixed_weight: see `answers.measure`.
    """
    size = config.run.micro_batch or config.run.batch
    bar = tqdm(range(0, len(text.tokens), size), label, leave=False, disable=not label)
    batches = (slice(start, start + size) for start in bar)
    generator, think = step_generator(config.run.seed, 0), config.run.thinks
    return measure(quiet, text, batches, generator, change, fixed_weight, think)


def heldout_score(
    quiet: QuietStar,
    data: TokenDataset,
    tokenizer: Tokenizer,
    config: Config,
    rows: int,
    label: str,
    show: bool = True,
) -> Score:
    """Score of held-out text; with answers, if the data says where they are.

    Args:
        quiet: the module.
        data: the held-out split.
        tokenizer: that made it.
        config: seq, batch, seed and objective are used.
        rows: to read at most.
        label: of the progress bar.
        show: whether there is one.

    Raises:
        ValueError: there is nothing to score.
    """
    run, think = config.run, config.run.thinks
    text = marked(data.folder, tokenizer, run.seq, rows)
    if text is not None:
        found = measured(quiet, text, config, label if show else "")
        return summarise(text, found, think, config.sampled)
    batches = list(sequential(data, run.seq, run.micro_batch or run.batch, rows))
    bar = tqdm(batches, label, leave=False, disable=not show)
    device = quiet.start.device
    pairs = ((b.tokens.to(device), b.documents.to(device)) for b in bar)
    return Score(text_score(quiet, pairs, step_generator(run.seed, 0), think=think))


def heldout(opened: Opened) -> TokenDataset:
    """The held-out text that a model is evaluated on.

    Raises:
        ValueError: another tokenizer prepared it.
    """
    data = TokenDataset(resolve_data(opened.config.run.data), "heldout")
    data.check_tokenizer(opened.tokenizer)
    return data


def heldout_pairs(opened: Opened) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and documents (B, T) of the held-out text, with a progress bar.

    Documents have their numbers in the whole text, so that one cut by a row's end stays one.
    """
    run, data = opened.config.run, heldout(opened)
    device = opened.placement.device
    for batch in tqdm(
        list(sequential(data, run.seq, run.batch, run.eval_rows)), "held-out text", leave=False
    ):
        numbers = batch.documents + batch.first[:, None]
        documents = numbers.where(batch.documents != PADDING, PADDING)
        yield batch.tokens.to(device), documents.to(device)


def table(before: Score | None, after: Score | None) -> str:
    """The closing table: before, after with thoughts, and after with thoughts off."""
    if before is None or after is None:
        return "no held-out text was evaluated (--eval-rows 0, or an empty held-out split)"
    heads = ("before", "after", "thoughts off")
    if after.text.nll_mix is None:
        heads = ("before", "after")
    return "\n".join(_lines(heads, before, after))


def score_lines(score: Score) -> list[str]:
    """One score, a line each."""
    heads = ("with thoughts", "thoughts off") if score.text.nll_mix is not None else ("",)
    return _lines(heads, score)


def _lines(heads: tuple[str, ...], *scores: Score) -> list[str]:
    """A column for each score (with thoughts, if it has them), and one more for thoughts off."""
    last = scores[-1]

    def row(label: str, items: Sequence[Any], mix: str, off: str | None) -> str:
        """Values of `mix` (or of `off` where a model does not think), then `off` of the last."""
        found = [getattr(item, mix) for item in items]
        if found[-1] is None and off:
            found = [getattr(item, off) for item in items]
        elif off:
            found.append(getattr(items[-1], off))
        return f"{label:32}{''.join(cell(value) for value in found)}"

    def answers(title: str, mix: str, off: str | None) -> list[str]:
        rows = [
            row(f"  {items[-1].kind} ({items[-1].questions})", items, mix, off)
            for items in zip(*(score.answers for score in scores), strict=True)
        ]
        return [title, *rows]

    lines = [f"{'':32}{''.join(f'{head:>14}' for head in heads)}"]
    if last.answers:
        lines += answers("gold answer probability", "gold_mix", "gold_base")
        overall = [score.answers[-1] for score in scores]
        lines.append(row("    95 % +-", overall, "gold_mix_interval", "gold_base_interval"))
        lines += answers("NLL at the answer, nats", "nll_mix", "nll_base")
        if last.text.nll_mix is not None:
            if overall[-1].useful is not None:
                lines.append(row("thoughts that hold the steps", overall, "useful", None))
            lines.append(row("mixing weight at the answer", overall, "weight", None))
    texts = [("held-out text", [score.text for score in scores])]
    if last.other is not None:
        texts.insert(0, ("all other tokens", [score.other for score in scores]))
    for title, items in texts:
        lines.append(f"{title}, {items[-1].tokens:,} tokens")
        lines.append(row("  NLL, nats a token", items, "nll_mix", "nll_base"))
        if items[-1] is last.other and (change := other_change(scores[0], last)) and scores[1:]:
            for label, value in zip(("  change by training", "    95 % +-"), change, strict=True):
                lines.append(f"{label:32}{cell(None)}{cell(value)}")
        if last.text.nll_mix is not None:
            lines.append(row("  gain by thinking", items, "gain", None))
            lines.append(row("    95 % +-", items, "gain_interval", None))
            lines.append(row("  mixing weight", items, "weight", None))
    return lines


def cell(value: float | None) -> str:
    """A number of a table; None is one that was not finite, or not defined."""
    return f"{'-':>14}" if value is None else f"{value:14.4f}"


def read_score(path: Path) -> Score | None:
    """A score that was written as JSON.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    stored = files.read_json(path)
    try:
        return None if stored is None else Score.from_json(stored)
    except (TypeError, KeyError):
        raise ValueError(f"{path}: expected a score, found {str(stored)[:60]}") from None
