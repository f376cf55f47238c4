"""What a model is worth on held-out text: by kind of question, and at all other tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qs import files
from qs.config import PADDING, Config
from qs.data.dataset import TokenDataset, resolve_data, sequential
from qs.evaluation.statistics import Estimate, mean_estimate, ratio_estimate, wilson
from qs.evaluation.synthetic import AnswerTable, TextRows, marked, measure_answers
from qs.evaluation.tokens import Change, RowSums, TextScore, measure_tokens, text_score
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Opened
from qs.tables import Table

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


@dataclass(frozen=True)
class Score:
    """What a model is worth on held-out text."""

    text: TextScore  # all tokens
    other: TextScore | None = None  # those that answer no question; None: questions not known
    answers: tuple[AnswerScore, ...] = ()  # by kind, and of all kinds together
    # of each row, the number of other tokens and the sum of their NLL (with thoughts, if there are
    # any): two scores of the same text are compared row by row
    other_rows: tuple[tuple[float, float], ...] = ()

    @property
    def thinks(self) -> bool:
        """Whether it was measured with thoughts."""
        return self.text.nll_mix is not None

    @staticmethod
    def from_json(values: dict) -> Score:
        """Read back `dataclasses.asdict`.

        Raises:
            TypeError, KeyError: names are missing or unexpected.
        """
        return Score(
            text=TextScore(**values["text"]),
            other=values["other"] and TextScore(**values["other"]),
            answers=tuple(AnswerScore(**answers) for answers in values["answers"]),
            other_rows=tuple(map(tuple, values.get("other_rows", ()))),
        )


def read_score(path: Path) -> Score | None:
    """A score that was written as JSON; None where none was measured.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    stored = files.read_json(path)
    try:
        return None if stored is None else Score.from_json(stored)
    except (TypeError, KeyError):
        raise ValueError(f"{path}: expected a score, found {str(stored)[:60]}") from None


def other_change(before: Score, after: Score) -> Estimate | None:
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

    Args:
        quiet: the module.
        text: rows and questions.
        config: batch, seed and objective are used; without thoughts, all is measured without.
        label: of the progress bar; empty: there is none.
        change, fixed_weight: see `measure_tokens`.
    """
    run = config.run
    if not run.thinks:
        fixed_weight = 0.0
    read = text.tokens, text.documents
    table = measure_tokens(quiet, *read, run, change, fixed_weight, label=label)
    return Measured(
        answers=measure_answers(quiet, text, table.thoughts, run, fixed_weight),
        other=table.row_sums(text.other(table.scored)),
        text=table.row_sums(table.scored),
    )


def _answer_score(kind: str, answers: AnswerTable, think: bool, sampled: bool) -> AnswerScore:
    # question by question, as in scores of old runs
    nll_base, nll_mix = np.stack([answers.nll_base, answers.nll_mix], 1).mean(0).tolist()
    base, mix = mean_estimate(answers.gold_base), mean_estimate(answers.gold_mix)
    count, hits = len(answers.useful), int(answers.useful.sum())
    score = AnswerScore(kind, count, base.mean, base.interval, nll_base)
    if not think:
        return score
    return replace(
        score,
        gold_mix=mix.mean,
        gold_mix_interval=mix.interval,
        nll_mix=nll_mix,
        useful=hits / count if sampled else None,
        useful_interval=wilson(hits, count) if sampled else None,
        weight=float(answers.weight.mean()),
    )


def summarise(
    text: TextRows, measured: Measured, think: bool = True, sampled: bool = True
) -> Score:
    """Means and intervals of what was measured.

    Args:
        text, measured: what was read, and measured there.
        think: False leaves out what is after a thought.
        sampled: False leaves out which thoughts hold the steps.
    """
    everything, other = text_score(measured.text, think), measured.other
    if text.questions is None:
        return Score(everything)
    kinds, scores = np.array([q.kind for q in text.questions]), []
    for kind in (*dict.fromkeys(kinds.tolist()), ALL) if len(kinds) else ():
        here = (kinds == kind) | (kind == ALL)
        answers = AnswerTable(*(column[here] for column in measured.answers))
        scores.append(_answer_score(kind, answers, think, sampled))
    nll = other.nll_mix if think else other.nll_base
    rows = zip(other.tokens.tolist(), nll.tolist(), strict=True)
    return Score(everything, text_score(other, think), tuple(scores), tuple(rows))


def windows(data: TokenDataset, seq: int, rows: int) -> TextRows:
    """The first `rows` rows of `seq` tokens of a split, of which only the text is known.

    Raises:
        ValueError: the split is empty.
    """
    (batch,) = sequential(data, seq, rows, rows)
    numbers = batch.documents + batch.first[:, None]  # a document cut by a row's end stays one
    return TextRows(batch.tokens, numbers.where(batch.documents != PADDING, PADDING))


def heldout_text(data: TokenDataset, tokenizer: Tokenizer, seq: int, rows: int) -> TextRows:
    """The first rows of a split: whole documents and their questions if they are known.

    Raises:
        ValueError: see `marked` and `windows`.
    """
    return marked(data.folder, tokenizer, seq, rows) or windows(data, seq, rows)


def heldout_score(
    quiet: QuietStar, data: TokenDataset, tokenizer: Tokenizer, config: Config, label: str = ""
) -> Score:
    """Score of held-out text; with answers, if the data says where they are.

    Args:
        quiet: the module.
        data: the held-out split.
        tokenizer: that made it.
        config: seq, eval_rows, batch, seed and objective are used.
        label: of the progress bar; empty: there is none.

    Raises:
        ValueError: there is nothing to score.
    """
    text = heldout_text(data, tokenizer, config.run.seq, config.run.eval_rows)
    measured = measure_heldout(quiet, text, config, label)
    return summarise(text, measured, config.run.thinks, config.sampled)


def heldout_data(opened: Opened) -> TokenDataset:
    """The held-out text that a model is evaluated on.

    Raises:
        ValueError: another tokenizer prepared it.
    """
    data = TokenDataset(resolve_data(opened.config.run.data), "heldout")
    data.check_tokenizer(opened.tokenizer)
    return data


def closing_table(before: Score | None, after: Score | None) -> Table:
    """Before, after with thoughts, and after with thoughts off."""
    if before is None or after is None:
        return Table("no held-out text was evaluated (--eval-rows 0, or an empty held-out split)")
    change, thinks = other_change(before, after), after.thinks
    columns = {"before": _column(before, thinks, change and Estimate(None))}
    return _table(columns | {"after": _column(after, thinks, change)}, after)


def score_table(score: Score) -> Table:
    """With thoughts, and with thoughts off."""
    return _table({"with thoughts" if score.thinks else "": _column(score, score.thinks)}, score)


Column = list[tuple[str, str | None]]  # label and cell of every row; None: nothing to tell there


def _table(columns: dict[str, Column], last: Score) -> Table:
    """Columns by their heads, and one for thoughts off; without rows that tell nothing."""
    if last.thinks:
        columns = columns | {"thoughts off": _column(last, False)}
    lines = zip(*columns.values(), strict=True)
    rows = [
        (line[-1][0], *(cell or "" for _, cell in line))
        for line in lines
        if any(cell is not None for _, cell in line)
    ]
    return Table("", ("", *columns), rows)


def _column(score: Score, think: bool, change: Estimate | None = None) -> Column:
    def thought(value: float | None) -> str | None:
        return _cell(value) if think else None

    rows: Column = []
    if score.answers:
        overall = score.answers[-1]
        rows.append(("gold answer probability", ""))
        for a in score.answers:
            gold = a.gold_mix if think else a.gold_base
            rows.append((f"  {a.kind} ({a.questions})", _cell(gold)))
        half = overall.gold_mix_interval if think else overall.gold_base_interval
        rows += [("    95 % +-", _cell(half)), ("NLL at the answer, nats", "")]
        for a in score.answers:
            nll = a.nll_mix if think else a.nll_base
            rows.append((f"  {a.kind} ({a.questions})", _cell(nll)))
        useful = None if overall.useful is None else thought(overall.useful)
        rows.append(("thoughts that hold the steps", useful))
        rows.append(("mixing weight at the answer", thought(overall.weight)))
    for title, text in (("all other tokens", score.other), ("held-out text", score.text)):
        if text is None:
            continue
        nll = text.nll_mix if think else text.nll_base
        rows.append((f"{title}, {text.tokens:,} tokens", ""))
        rows.append(("  NLL, nats a token", _cell(nll)))
        if text is score.other:
            rows.append(("  change by training", change and _cell(change.mean)))
            rows.append(("    95 % +-", change and _cell(change.interval)))
        rows.append(("  gain by thinking", thought(text.gain)))
        rows.append(("    95 % +-", thought(text.gain_interval)))
        rows.append(("  mixing weight", thought(text.weight)))
    return rows


def _cell(value: float | None) -> str:
    """None is a number that was not finite, or not defined."""
    return "-" if value is None else f"{value:.4f}"
