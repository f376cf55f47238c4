"""What a model is worth on held-out text: by kind of question, and at all other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from qs.answers import Marked, Measured, marked, measure
from qs.config import Config
from qs.quiet import QuietStar
from qs.shards import TokenDataset, sequential
from qs.tasks import TextScore, mean_interval, text_score, text_summary, wilson
from qs.tokenizer import Tokenizer
from qs.training import step_generator

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
        useful: share of thoughts that are the steps to the answer, with a 95 % interval.
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
    """

    text: TextScore
    other: TextScore | None = None
    answers: tuple[AnswerScore, ...] = ()

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
        )


def summarise(text: Marked, found: Measured, think: bool = True) -> Score:
    """Means and intervals of what was measured; without thoughts if the model does not think."""
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
                "useful": float(useful.mean()),
                "useful_interval": wilson(int(useful.sum()), len(useful)),
                "weight": float(found.weight[here].mean()),
            }
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
    return Score(text_summary(found.text, think), text_summary(found.other, think), tuple(answers))


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
    size = run.micro_batch or run.batch
    generator = step_generator(run.seed, 0)
    text = marked(data.folder, tokenizer, run.seq, rows)
    if text is not None:
        starts = range(0, len(text.tokens), size)
        bar = tqdm(starts, label, leave=False, disable=not show)
        batches = (slice(start, start + size) for start in bar)
        found = measure(quiet, text, batches, generator, think=think)
        return summarise(text, found, think)
    batches = list(sequential(data, run.seq, size, rows))
    bar = tqdm(batches, label, leave=False, disable=not show)
    device = quiet.start.device
    pairs = ((b.tokens.to(device), b.documents.to(device)) for b in bar)
    return Score(text_score(quiet, pairs, generator, think=think))
