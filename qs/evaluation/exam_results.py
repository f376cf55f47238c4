"""How a question set is run, and what its answers come to: means, intervals, paired differences."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qs import files
from qs.data.question_sets import WITH_CHOICES, BenchmarkQuestion
from qs.evaluation.statistics import Estimate, mean_estimate, paired, rate_interval
from qs.files import JsonLines
from qs.settings import check_limits, setting
from qs.tables import Table, between, number

GOLD, EXACT = "gold answer probability", "exact match of the decoded answer"
OPTION, ONE_CHAIN = "likeliest option is right", "one chain is right"
CHANCE, WITHOUT = "by chance", "without thoughts"
GREEDY, SAMPLED = "greedy thoughts", "sampled thoughts"


@dataclass(frozen=True)
class Exam:
    """How a question set is run."""

    task: str  # of `question_sets.QUESTION_SETS`, or ARITHMETIC
    model: str  # the checkpoint's folder
    weights: str  # its `weights.digest`
    thoughts: int  # n; 0: without thoughts only
    samples: int = setting(
        4, "sampled thoughts to average, beside the greedy one", least=1, most=1024
    )
    votes: int = setting(
        0, "chains of thought to vote; 0: direct answers are scored", least=0, most=1024
    )
    temperature: float = setting(0.9, "temperature of chains of thought", least=0, temperature=True)
    max_tokens: int = setting(
        384, "tokens of a chain of thought at most, with --votes", least=1, most=2**20
    )
    batch: int = setting(8, "questions at a time", least=1)
    seed: int = 0  # of thoughts and chains

    def __post_init__(self) -> None:
        check_limits(self)
        if self.votes and self.task in WITH_CHOICES:
            raise ValueError(
                f"--votes: expected sets whose answers are numbers, found {self.task}: leave it out"
            )

    @property
    def file(self) -> str:
        """Name of the file of its answers: the same wherever nothing that matters differs."""
        idle = {"model", "batch", *(("samples",) if self.votes else ("votes", "temperature"))}
        if not self.votes or self.max_tokens == Exam.max_tokens:  # as files were named before
            idle.add("max_tokens")
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in idle}
        settings = json.dumps(kept, sort_keys=True).encode()
        return f"{self.kind}-{hashlib.sha256(settings).hexdigest()[:8]}.jsonl"

    @property
    def kind(self) -> str:
        """Of the answers: what can be compared."""
        return f"{self.task}-maj{self.votes}" if self.votes else f"{self.task}-direct"

    @property
    def ways(self) -> dict[str, str]:
        """When each way of answering thinks."""
        return {"base": "never"} | ({"mix": "always"} if self.thoughts else {})


def answers_of(exam: Exam, given: Path, questions: Sequence[BenchmarkQuestion]) -> Path:
    """The file of another model's answers: the one given, or that of a folder.

    Of several in a folder it is the only one that was asked as this exam asks.

    Raises:
        ValueError: there is none or no such one, or it answers none of the questions.
    """
    kind, found = exam.kind, [given] if given.is_file() else sorted(given.glob("*.jsonl"))
    found = [path for path in found if path.name.startswith(f"{kind}-")]
    if not found:
        raise ValueError(
            f"{given}: expected answers of {kind} to compare with, found none; "
            "ask that model the same questions first"
        )
    others = [path for path in found if path.name != exam.file]  # but its own
    alike = [path for path in others if asked_alike(exam, asked_by(path))]
    if len(found) > 1 and len(alike) != 1:
        several = ", ".join(f"{path} ({how_asked(asked_by(path))})" for path in others)
        raise ValueError(
            f"{given}: expected one file of answers of {kind} that was asked as this is, found "
            f"{len(alike)}: give one of {several}"
        )
    path = alike[0] if len(found) > 1 else found[0]
    answers_to(path, (question.digest for question in questions))
    return path


def asked_by(path: Path) -> dict[str, Any]:
    """The settings of a file of answers, by the results beside it; empty where they are silent."""
    exams = files.read_results(path.parent).get("exams")
    facts = exams.get(path.name) if isinstance(exams, dict) else None
    exam = facts.get("exam") if isinstance(facts, dict) else None
    return exam if isinstance(exam, dict) else {}


def asked_alike(exam: Exam, other: dict[str, Any]) -> bool:
    """Whether others were asked as an exam asks: which model it was, and its n, are free."""
    names = ("temperature", "max_tokens", "seed") if exam.votes else ("samples", "seed")
    return all(other.get(name) == getattr(exam, name) for name in names)


def how_asked(exam: dict[str, Any]) -> str:
    """Model and settings of answers, in words."""
    names = ("samples", "seed") if exam.get("thoughts") else ()  # else nothing was drawn
    names = ("temperature", "max_tokens", "seed") if exam.get("votes") else names
    told = [f"{exam.get('model')}, n {exam.get('thoughts')}"]
    told += [f"{name.replace('_', ' ')} {exam.get(name)}" for name in names]
    return ", ".join(told) if exam else "unknown"


class Measure(NamedTuple):
    """What is measured, in which way, and the name of the same without thoughts."""

    what: str
    how: str
    before: str | None = None


MEASURES = {  # in lines of answers and in results.json, in the order of the table
    "gold_chance": Measure(GOLD, CHANCE),
    "gold_base": Measure(GOLD, WITHOUT),
    "gold_greedy": Measure(GOLD, GREEDY, "gold_base"),
    "gold_sampled": Measure(GOLD, SAMPLED, "gold_base"),
    "exact_base": Measure(EXACT, WITHOUT),
    "exact_mix": Measure(EXACT, GREEDY, "exact_base"),
    "option_chance": Measure(OPTION, CHANCE),
    "option_base": Measure(OPTION, WITHOUT),
    "option_greedy": Measure(OPTION, GREEDY, "option_base"),
    "option_sampled": Measure(OPTION, SAMPLED, "option_base"),
    "single_base": Measure(ONE_CHAIN, WITHOUT),
    "single_mix": Measure(ONE_CHAIN, GREEDY, "single_base"),
}
TOTALS = ("tokens", "slots", "slots_everywhere")  # of the text, of greedy thoughts, at every token
# of a file of answers: "id", the digest of the "question", MEASURES, TOTALS, and what was said
Line = dict[str, Any]


def read_answers(path: Path) -> list[Line]:
    """The lines of a file of answers; none where there is no file.

    Raises:
        ValueError: a line is damaged, or lacks what others hold.
    """
    lines = JsonLines(path).records()
    names = [name for name in (*MEASURES, *TOTALS) if any(name in line for line in lines)]
    for place, line in enumerate(lines, 1):
        wrong = [name for name in names if not _is_measured(name, line.get(name))]
        told = {"question": ""} | line  # earlier versions did not write it
        wrong += [name for name in ("id", "question") if type(told.get(name)) is not str]
        if wrong:
            found = f"{wrong[0]}: {line.get(wrong[0])!r}"
            raise ValueError(
                f"{path}, line {place}: expected an answer, found {found[:80]}; remove the line "
                "and its question is asked again"
            )
    return lines


def answers_to(path: Path, digests: Iterable[str]) -> dict[str, Line]:
    """The lines of a file of answers that are of some questions, by the questions' digests.

    Raises:
        ValueError: there is none, or a line is damaged.
    """
    answered = {line.get("question"): line for line in read_answers(path)}
    found = {digest: answered[digest] for digest in digests if digest in answered}
    if not found:
        raise ValueError(
            f"{path}: expected answers to some of these questions, found none with the same id, "
            "text, choices and answer (earlier versions did not write what they had asked); ask "
            "that model the same questions again"
        )
    return found


def _is_measured(name: str, value: Any) -> bool:
    if name in TOTALS:
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, int | float) and 0 <= value <= 1


@dataclass(frozen=True)
class Result:
    """One measure over all questions."""

    mean: float
    interval: float | None = None  # half-width of the 95 % interval of a number
    wilson: tuple[float, float] | None = None  # both ends of that of a rate
    change: Estimate | None = None  # from the same without thoughts, paired by question

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, where there is one."""
        return self.wilson or Estimate(self.mean, self.interval).ends

    def to_json(self) -> dict[str, Any]:
        """What there is, by name."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return values | ({"change": self.change._asdict()} if self.change else {})


class Summary(NamedTuple):
    """What a question set came to: counts and the like, and results by the name in MEASURES."""

    facts: dict[str, Any]
    results: dict[str, Result]
    lines: Sequence[Line] = ()  # that it is of

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
        values = np.array([line[name] for line in lines], float)
        mean, change = mean_estimate(values), None
        ends = None if measure.how == CHANCE else rate_interval(values)
        if measure.before:
            change = paired([line[measure.before] for line in lines], values)
        known = None if ends or measure.how == CHANCE else mean.interval
        results[name] = Result(mean.mean, known, ends, change)
    return Summary(facts, results, lines)


def against(own: Sequence[Line], other: Path) -> Summary:
    """Differences of answers from those in a file, own - other, paired on the questions of both.

    What the other model, having answered without thoughts, does not have is compared with its
    answers without.

    Raises:
        ValueError: they have no question in common.
    """
    mine = {line["question"]: line for line in own}
    theirs, results = answers_to(other, mine), {}
    first = next(iter(theirs))
    for name, measure in MEASURES.items():
        if name in mine[first] and measure.how != CHANCE:
            before = name if name in theirs[first] else measure.before
            change = paired([x[before] for x in theirs.values()], [mine[i][name] for i in theirs])
            results[name] = Result(*change)
    facts = {"file": str(other), "questions": len(theirs), "left_out": len(own) - len(theirs)}
    return Summary(facts, results)


def against_table(difference: Summary) -> Table:
    """Differences from another model on the same questions."""
    facts, rows = difference.facts, []
    for name, result in difference.results.items():
        what, how, _ = MEASURES[name]
        rows.append((what, how, number(result.mean, "+"), between(result.ends, "+")))
    title = f"minus {facts['file']}, {facts['questions']:,} questions, paired"
    notes = [
        f"left out, as that model did not answer the same: {facts['left_out']:,}",
        f"that model: {how_asked(asked_by(Path(facts['file'])))}",
    ]
    return Table(title, ("measure", "how", "difference", "95 % interval"), rows, notes)


def exam_table(exam: Exam, summary: Summary) -> Table:
    """A question set's rates with 95 % intervals, and differences paired by question."""
    facts, rows = summary.facts, []
    for name, result in summary.results.items():
        (what, how, _), change = MEASURES[name], ("", "")
        if result.change:
            change = number(result.change.mean, "+"), between(result.change.ends, "+")
        ends = result.ends and (max(0.0, result.ends[0]), min(1.0, result.ends[1]))
        interval = "" if how == CHANCE else between(ends)  # of a share or a probability
        rows.append((what, how, number(result.mean), interval, *change))
    how = f"greedy and {exam.samples} sampled" if exam.thoughts else "none"
    if exam.votes:
        how = f"majority of {exam.votes} chains, temperature {exam.temperature}"
        how += ", thoughts greedy" if exam.thoughts else ""
    notes = [f"thoughts of n {exam.thoughts}: {how}; seed {exam.seed}; {exam.batch} at a time"]
    notes.append(f"too long for the model and left out: {len(facts['too_long'])}")
    if facts["too_long"]:
        notes[-1] += f" ({', '.join(facts['too_long'])})"
    if "slots" in facts:
        tokens, slots, everywhere = (facts[name] for name in TOTALS)
        notes.append(
            f"{slots:,} slots of greedy thoughts after {tokens:,} tokens; "
            f"thinking at every one has {everywhere:,}, {everywhere / slots:.1f} times as many"
        )
    if answered := facts["answered"]:
        took = facts["seconds"]
        notes.append(f"{took:.0f} s for {answered:,}, {1000 * took / answered:.0f} s for 1,000")
    heads = ("measure", "how", "mean", "95 % interval", "change", "95 % interval, paired")
    title = f"{exam.task}: {facts['scored']:,} of {facts['questions']:,} questions"
    return Table(title, heads if rows else (), rows, notes)


def exam_report(
    exam: Exam, summary: Summary, other: Path | None
) -> tuple[dict[str, Any], list[Table]]:
    """Facts to keep and tables to show; `other`: a file with a model's answers to compare with.

    Raises:
        ValueError: they have no question in common.
    """
    facts = {"exam": dataclasses.asdict(exam)} | summary.to_json()
    tables = [exam_table(exam, summary)]
    if other is not None:
        difference = against(summary.lines, other)
        facts["against"] = difference.to_json()
        tables.append(against_table(difference))
    return facts, tables
