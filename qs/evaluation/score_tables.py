"""The tables of scores on held-out text: the headline set apart, then all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qs.evaluation.heldout import HeldoutScore, other_change
from qs.evaluation.statistics import Estimate
from qs.evaluation.tokens import NllScore
from qs.tables import Table

OFF = "thoughts off: the same weights, predicting without a thought"


def closing_tables(before: HeldoutScore | None, after: HeldoutScore | None) -> list[Table]:
    """Before, after with thoughts, and after with thoughts off: the headline, then all of it.

    Raises:
        ValueError: the two are not of the same kinds of questions.
    """
    if after is None:
        why = "no held-out text was evaluated (--eval-rows 0, or an empty held-out split)"
        return [Table(why)]
    if before is None:
        return score_tables(after)
    sides = [([x.kind for x in s.answers], s.other is None) for s in (before, after)]
    if sides[0] != sides[1]:
        raise ValueError(
            "expected the scores before and after training to be of the same questions, found "
            "others: before.json or results.json was changed since"
        )
    trained = "after, with thoughts" if after.thinks else "after training"
    columns = [("before training", before), (trained, after)]
    return _Sides(columns, ("before", "after")).tables(other_change(before, after))


def score_tables(score: HeldoutScore) -> list[Table]:
    """With thoughts, and with thoughts off."""
    name = "with thoughts" if score.thinks else "without thoughts"
    return _Sides([(name, score)], (name,)).tables()


class _Sides:
    """Scores side by side: each with thoughts, if it has them; then the last with thoughts off."""

    def __init__(self, columns: Sequence[tuple[str, HeldoutScore]], heads: Sequence[str]):
        self.own = [score for _, score in columns]
        self.names, self.heads = [name for name, _ in columns], list(heads)
        self.last, self.scores = self.own[-1], list(self.own)
        self.thought = [score.thinks for score in self.own]
        if self.last.thinks:
            self.scores.append(self.last)
            self.thought.append(False)
            self.names.append("thoughts off")
            self.heads.append("thoughts off")

    def tables(self, change: Estimate | None = None) -> list[Table]:
        """Answers, where they are known; other tokens (`change`: theirs); all; in short."""
        tables = self._answers() if self.last.answers else []
        if self.last.other:
            tables.append(self._text("all other tokens", [s.other for s in self.scores], change))
        tables.append(self._text("held-out text", [s.text for s in self.scores]))
        return [*tables, self._headline()]

    def _headline(self) -> Table:
        """What is asked first: probability of the right answers, else NLL of the text."""
        if self.last.answers:
            all_kinds = [score.answers[-1] for score in self.scores]
            means = self._sides(all_kinds, "gold_base", "gold_mix")
            halves = self._sides(all_kinds, "gold_base_interval", "gold_mix_interval")
            count = all_kinds[-1].questions
            title = f"In short: probability of the right answer to {count} held-out questions"
            estimates = [f"{Estimate(*pair):.3f}" for pair in zip(means, halves, strict=True)]
        else:
            texts = [score.text for score in self.scores]
            title = f"In short: NLL of held-out text, {texts[-1].tokens:,} tokens, nats a token"
            estimates = [f"{nll:.4f}" for nll in self._sides(texts, "nll_base", "nll_mix")]
        rows = list(zip(self.names, estimates, strict=True))
        notes = [OFF] * self.last.thinks
        if self.last.unknown:
            notes.append(f"{self.last.unknown}, so that a gain on it is no success")
        return Table(title, ("", ""), rows, notes)

    def _answers(self) -> list[Table]:
        """Probability and NLL by kind of question, and what was thought before the answers."""
        tables, heads = [], ("", *self.heads)
        for title, column in (
            ("gold answer probability", "gold"),
            ("NLL at the answer, nats", "nll"),
        ):
            rows = [
                self._row(
                    f"{answers[-1].kind} ({answers[-1].questions})",
                    self._sides(answers, f"{column}_base", f"{column}_mix"),
                )
                for answers in zip(*(score.answers for score in self.scores), strict=True)
            ]
            tables.append(Table(f"{title}, by kind (questions)", heads, rows))
        own, rows = [score.answers[-1] for score in self.own], []
        if own[-1].useful is not None:
            rows.append(self._row("thoughts that hold the steps", [x.useful for x in own]))
        if self.last.thinks:
            rows.append(self._row("mixing weight", [x.weight for x in own]))
        if own[-1].length is not None:
            rows.append(self._row("tokens of a thought", [x.length for x in own]))
        return [*tables, Table("thoughts before the answers", heads, rows)] if rows else tables

    def _text(self, title: str, texts: Sequence[NllScore], change: Estimate | None = None) -> Table:
        own = texts[: len(self.own)]
        rows = [self._row("NLL, nats a token", self._sides(texts, "nll_base", "nll_mix"))]
        if change:
            rows.append(self._row("change by training", [None, change.mean]))
            rows.append(self._row("  95 % +-", [None, change.interval]))
        if self.last.thinks:
            rows.append(self._row("gain by thinking", [x.gain for x in own]))
            rows.append(self._row("  95 % +-", [x.gain_interval for x in own]))
            rows.append(self._row("mixing weight", [x.weight for x in own]))
        if own[-1].length is not None:
            rows.append(self._row("tokens of a thought", [x.length for x in own]))
        return Table(f"{title}, {texts[-1].tokens:,} tokens", ("", *self.heads), rows)

    def _row(self, label: str, values: Iterable[float | None]) -> tuple[str, ...]:
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        return (label, *cells, *[""] * (len(self.heads) - len(cells)))

    def _sides(self, items: Iterable[Any], base: str, mix: str) -> list[Any]:
        pairs = zip(items, self.thought, strict=True)
        return [getattr(item, mix if thinks else base) for item, thinks in pairs]
