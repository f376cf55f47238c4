"""What a model is worth on held-out text: by kind of question, and at all other tokens."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qs import files
from qs.config import Config, RunConfig
from qs.data.dataset import TokenDataset, resolve_data
from qs.evaluation.statistics import Estimate, mean_estimate, ratio_estimate, wilson
from qs.evaluation.synthetic import AnswerTable, heldout_text, measure_answers
from qs.evaluation.tokens import Change, NllScore, RowSums, TextRows, measure_tokens, nll_score
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.settings import is_of, read_record

ALL = "all"  # the kind that stands for all kinds together


@dataclass(frozen=True)
class AnswerScore:
    """Answers of one kind of questions; what is after a thought is None for plain models.

    Probabilities are renormalised over possible answers, NLL is among all tokens, in nats;
    intervals are of 95 %, their half-width or, of a share, both ends.
    """

    kind: str
    questions: int  # how many
    gold_base: float  # mean probability of the answer, without a thought
    gold_base_interval: float | None
    nll_base: float
    gold_mix: float | None = None  # with a thought
    gold_mix_interval: float | None = None
    nll_mix: float | None = None
    useful: float | None = None  # share of thoughts that begin with the steps, if any are sampled
    useful_interval: list[float] | None = None
    weight: float | None = None  # mean mixing weight at the answers
    length: float | None = None  # mean tokens of a thought there, where they end themselves


@dataclass(frozen=True)
class HeldoutScore:
    """What a model is worth on held-out text."""

    text: NllScore  # all tokens
    other: NllScore | None = None  # those that answer no question; None: questions not known
    answers: tuple[AnswerScore, ...] = ()  # by kind, and of all kinds together
    # of each row, the number of other tokens and the sum of their NLL (with thoughts, if there are
    # any): two scores of the same text are compared row by row
    other_rows: tuple[tuple[float, float], ...] = ()
    even: float | None = None  # NLL in nats of guessing evenly; None: not told, by earlier versions

    @property
    def thinks(self) -> bool:
        """Whether it was measured with thoughts."""
        return self.text.nll_mix is not None

    @property
    def unknown(self) -> str:
        """That the model knows nothing of this kind of text; "" of a model that does."""
        nll = self.text.nll_base
        if self.even is None or nll < self.even + 1:
            return ""
        return (
            f"the NLL is {nll:.1f} nats a token, above the {self.even:.1f} of guessing evenly: "
            "the model does not know this kind of text"
        )

    @staticmethod
    def from_json(values: dict | None) -> HeldoutScore | None:
        """Read back `dataclasses.asdict`; None where no score was measured.

        Raises:
            ValueError, TypeError, KeyError: something is missing, unexpected or of another type.
        """
        if values is None:
            return None
        text, rows = read_record("text", NllScore, values["text"]), values.get("other_rows", [])
        other = None if values["other"] is None else read_record("other", NllScore, values["other"])
        if not is_of(rows, list[list[float]]) or {len(row) for row in rows} - {2}:
            raise TypeError(f"expected rows of two numbers, found {rows}")
        if not isinstance(values["answers"], list):
            raise TypeError(f"expected a list of answers, found {values['answers']}")
        answers = tuple(read_record("answers", AnswerScore, each) for each in values["answers"])
        plain = {score.nll_mix is None for score in (text, other, *answers) if score is not None}
        if len(plain | {each.gold_mix is None for each in answers}) > 1:
            raise TypeError("expected all with thoughts or all without, found some of each")
        if not is_of(even := values.get("even"), float | None):
            raise TypeError(f"expected a number, found {even}")
        return HeldoutScore(text, other, answers, tuple(map(tuple, rows)), even)


def read_score(path: Path) -> HeldoutScore | None:
    """A score that was written as JSON; None where none was measured.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    advice = "write null there to do without this score"
    stored = files.read_json(path, advice)
    try:
        return HeldoutScore.from_json(stored)
    except (ValueError, TypeError, KeyError):
        found = str(stored)[:60]
        raise ValueError(f"{path}: expected a score, found {found}; {advice}") from None


def run_scores(run: Path) -> tuple[HeldoutScore | None, HeldoutScore | None]:
    """A run's scores before and after training; None where none was measured.

    Raises:
        ValueError: its results are damaged.
    """
    stored = files.read_results(run)
    try:
        before, after = (HeldoutScore.from_json(stored.get(key)) for key in ("before", "after"))
    except (ValueError, TypeError, KeyError):
        path = run / files.RESULTS
        raise ValueError(f"{path}: expected the scores of a run; move it away") from None
    return before, after


def other_change(before: HeldoutScore, after: HeldoutScore) -> Estimate | None:
    """Change in the NLL of other tokens, in nats a token, paired by row of text.

    None where the two were not measured on the same rows.
    """
    one, two = (np.array(score.other_rows) for score in (before, after))
    if one.shape != two.shape or not one.size or (one[:, 0] != two[:, 0]).any():
        return None
    return ratio_estimate(two[:, 1] - one[:, 1], one[:, 0])


@dataclass(frozen=True)
class Measured:
    """What was measured on held-out text: at the answers, and sums over other and all tokens."""

    answers: AnswerTable
    other: RowSums
    text: RowSums


def measure_heldout(
    quiet: QuietStar,
    text: TextRows,
    config: Config,
    label: str = "",
    change: Change | None = None,
    fixed_weight: float | None = None,
) -> Measured:
    """Measure held-out text as a run does at its end: its seed, its rows at a time.

    A model that does not think is measured without thoughts. Arguments as of `measure_tokens`.
    """
    run = config.run
    if not run.thinks:
        fixed_weight = 0.0
    table = measure_tokens(quiet, text, run, change, fixed_weight, label=label)
    return Measured(
        answers=measure_answers(quiet, text, table.thoughts, run, fixed_weight),
        other=table.row_sums(text.other(table.scored)),
        text=table.row_sums(table.scored),
    )


def summarise(text: TextRows, measured: Measured, config: Config) -> HeldoutScore:
    """Means and intervals of what was measured on some text with these settings."""
    how, other = (config.run.thinks, config.thinking.end == "drawn"), measured.other
    if text.questions is None:
        return HeldoutScore(nll_score(measured.text, *how))
    kinds, scores = np.array([q.kind for q in text.questions]), []
    for kind in (*dict.fromkeys(kinds.tolist()), ALL) if len(kinds) else ():
        here = (kinds == kind) | (kind == ALL)
        answers = AnswerTable(*(column[here] for column in measured.answers))
        scores.append(_answer_score(kind, answers, config))
    nll = other.nll_mix if config.run.thinks else other.nll_base
    return HeldoutScore(
        text=nll_score(measured.text, *how),
        other=nll_score(other, *how),
        answers=tuple(scores),
        other_rows=tuple(zip(other.tokens.tolist(), nll.tolist(), strict=True)),
    )


def _answer_score(kind: str, answers: AnswerTable, config: Config) -> AnswerScore:
    # question by question, as in scores of old runs
    nll_base, nll_mix = np.stack([answers.nll_base, answers.nll_mix], 1).mean(0).tolist()
    base, mix = mean_estimate(answers.gold_base), mean_estimate(answers.gold_mix)
    count, hits = len(answers.useful), int(answers.useful.sum())
    score = AnswerScore(kind, count, base.mean, base.interval, nll_base)
    if not config.run.thinks:
        return score
    return replace(
        score,
        gold_mix=mix.mean,
        gold_mix_interval=mix.interval,
        nll_mix=nll_mix,
        useful=hits / count if config.sampled else None,
        useful_interval=wilson(hits, count) if config.sampled else None,
        weight=float(answers.weight.mean()),
        length=float(answers.length.mean()) if config.thinking.end == "drawn" else None,
    )


def heldout_score(
    quiet: QuietStar, data: TokenDataset, tokenizer: Tokenizer, config: Config, label: str = ""
) -> HeldoutScore:
    """Score of a held-out split; with answers, if the data says where they are.

    Of the settings, seq, eval_rows, batch, seed and objective are used. `label` is of the progress
    bar; empty: there is none.

    Raises:
        ValueError: there is nothing to score.
    """
    text = heldout_text(data, tokenizer, config.run.seq, config.run.eval_rows)
    score = summarise(text, measure_heldout(quiet, text, config, label), config)
    return replace(score, even=math.log(quiet.model.config.vocab_size))


def heldout_data(run: RunConfig, tokenizer: Tokenizer) -> TokenDataset:
    """The held-out text that a model is evaluated on, `run.data`.

    Raises:
        ValueError: there is none, or another tokenizer prepared it.
    """
    try:
        folder = resolve_data(run.data)
    except ValueError:
        if run.objective != "star" or run.data != RunConfig().data:
            raise
        raise ValueError(
            "a run of STaR was trained on questions, and has no text to be scored on: name some "
            "that was prepared for its tokenizer with --data NAME, or ask questions with python "
            "evaluate.py tasks"
        ) from None
    data = TokenDataset(folder, "heldout")
    data.check_tokenizer(tokenizer)
    return data


HOW = ("thoughts", "sample_temperature", "seed", "data", "seq", "eval_rows")  # to measure


def thinking_told(config: Config) -> str:
    """What is thought before tokens of held-out text, and by which numbers, in words."""
    n, rows = config.thought.thoughts, f"in rows of {config.run.seq}"
    if not config.run.thinks:
        return f"none, {rows}"
    if config.run.pauses:
        return f"{n} pauses, {rows}"
    most = " at most" if config.thought.end == "drawn" else ""
    how = f"temperature {config.thought.sample_temperature}, seed {config.run.seed}"
    return f"{n} tokens{most}, {rows}; {how}"


def settings_told(used: Config, run: Path | None, checkpoint: Path) -> str:
    """What names say of how a run's checkpoint was measured; "" as at its end, or of no run."""
    if run is None:
        return ""
    own = files.read_config(run)
    told = [] if checkpoint == files.newest_step(run) else [checkpoint.name]
    for name in HOW:
        group = "thought" if hasattr(used.thought, name) else "run"
        value = getattr(getattr(used, group), name)
        if value != getattr(getattr(own, group), name):
            told.append(f"{name}-{_named(str(value))}")
    return "".join(f"-{re.sub(r'[^A-Za-z0-9.]+', '-', each)}" for each in told)


def _named(value: str) -> str:
    """A value that a name of a file can tell from all others: `a/b` is not `a-b`."""
    if re.fullmatch(r"[A-Za-z0-9.]{1,60}", value):
        return value
    return f"{value[-60:]}-{hashlib.sha256(os.fsencode(value)).hexdigest()[:8]}"
