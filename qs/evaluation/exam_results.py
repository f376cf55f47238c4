"""What the answers to a question set come to: means with intervals, and differences, paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qs.evaluation.statistics import Estimate, mean_estimate, paired, wilson
from qs.files import JsonLines
from qs.tables import Table, between, number

GOLD, EXACT = "gold answer probability", "exact match of the decoded answer"
OPTION, SINGLE = "likeliest option is right", "one chain is right"
CHANCE, PLAIN = "by chance", "without thoughts"
GREEDY, SAMPLED = "greedy thoughts", "sampled thoughts"


class Measure(NamedTuple):
    """What is measured, in which way, and the name of the same without thoughts."""

    what: str
    how: str
    before: str | None = None


MEASURES = {  # in lines of answers and in results.json, in the order of the table
    "gold_chance": Measure(GOLD, CHANCE),
    "gold_base": Measure(GOLD, PLAIN),
    "gold_greedy": Measure(GOLD, GREEDY, "gold_base"),
    "gold_sampled": Measure(GOLD, SAMPLED, "gold_base"),
    "exact_base": Measure(EXACT, PLAIN),
    "exact_mix": Measure(EXACT, GREEDY, "exact_base"),
    "option_chance": Measure(OPTION, CHANCE),
    "option_base": Measure(OPTION, PLAIN),
    "option_greedy": Measure(OPTION, GREEDY, "option_base"),
    "option_sampled": Measure(OPTION, SAMPLED, "option_base"),
    "single_base": Measure(SINGLE, PLAIN),
    "single_mix": Measure(SINGLE, GREEDY, "single_base"),
}
TOTALS = ("tokens", "slots", "slots_everywhere")  # of the text, of greedy thoughts, at every token
Line = dict[str, Any]  # of a file of answers: "id", MEASURES, TOTALS, and what was said


@dataclass(frozen=True)
class Result:
    """One measure over all questions."""

    mean: float
    interval: float | None = None  # half-width of the 95 % interval of a number
    wilson: tuple[float, float] | None = None  # both ends of that of a rate
    change: Estimate | None = None  # from the same without thoughts, paired by question

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.wilson or Estimate(self.mean, self.interval).ends

    def to_json(self) -> dict[str, Any]:
        """What there is, by name."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return values | ({"change": self.change._asdict()} if self.change else {})


class Summary(NamedTuple):
    """What a question set came to: counts and the like, and results by the name in MEASURES."""

    facts: dict[str, Any]
    results: dict[str, Result]

    def to_json(self) -> dict[str, Any]:
        """All of it side by side."""
        return self.facts | {name: result.to_json() for name, result in self.results.items()}


def summary(lines: Sequence[Line], facts: dict[str, Any]) -> Summary:
    """Facts, means with 95 % intervals of all that was measured, and paired differences."""
    first = lines[0] if lines else {}
    facts = facts | {"scored": len(lines)}
    facts |= {name: sum(line[name] for line in lines) for name in TOTALS if name in first}
    results = {}
    for name, measure in MEASURES.items():
        if name not in first:
            continue
        values = [line[name] for line in lines]
        mean, ends, change = mean_estimate(np.array(values, float)), None, None
        if isinstance(values[0], bool):
            ends = wilson(sum(values), len(values))
        if measure.before:
            change = paired([line[measure.before] for line in lines], values)
        known = None if ends or measure.how == CHANCE else mean.interval
        results[name] = Result(mean.mean, known, ends, change)
    return Summary(facts, results)


def against(own: Path, other: Path) -> Summary:
    """Differences of two files of answers, own - other, paired on the questions that both answered.

    What the other model, having answered without thoughts, does not have is compared with its
    answers without.

    Raises:
        ValueError: they have no question in common.
    """
    mine, theirs = ({x["id"]: x for x in JsonLines(path).records()} for path in (own, other))
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise ValueError(f"{other}: expected some of the questions of {own}, found none")
    results = {}
    for name, measure in MEASURES.items():
        if name in mine[shared[0]] and measure.how != CHANCE:
            before = name if name in theirs[shared[0]] else measure.before
            change = paired([theirs[i][before] for i in shared], [mine[i][name] for i in shared])
            results[name] = Result(*change)
    return Summary({"file": str(other), "questions": len(shared)}, results)


def against_table(difference: Summary) -> Table:
    """Differences from another model on the same questions."""
    facts, rows = difference.facts, []
    for name, result in difference.results.items():
        what, how, _ = MEASURES[name]
        rows.append((what, how, number(result.mean, "+"), between(*result.ends, "+")))
    title = f"minus {facts['file']}, {facts['questions']:,} questions, paired"
    return Table(title, ("measure", "how", "difference", "95 % interval"), rows)
