"""Question sets, zero-shot: a line for each question, and what all of them come to.

A question is read once. The probability of its answer, without thoughts, with greedy and with
sampled ones, and the answers that are decoded go on from that reading. With votes, chains of
thought are drawn instead, and the majority of their numbers is the answer.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qs.config import check_limits, setting
from qs.data.answers import final_number, majority
from qs.data.prompts import COT_STOPS, cot_final_prompt, cot_prompt, cut
from qs.data.question_sets import BenchmarkQuestion, parse_direct
from qs.evaluation.exam_results import (
    CHANCE,
    MEASURES,
    TOTALS,
    Line,
    Summary,
    against,
    against_table,
    summary,
)
from qs.evaluation.gold_probability import Item, item
from qs.files import JsonLines
from qs.inference.cache import read_texts
from qs.inference.decoding import Decoding
from qs.inference.loglikelihood import Thinking, score, seed_of
from qs.inference.write import write
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.tables import Table, between, number

ANSWER_TOKENS = 16  # of a direct answer, at most
CHAIN_TOKENS, NUMBER_TOKENS = 384, 12  # of a chain of thought and of the number after it


@dataclass(frozen=True)
class Exam:
    """How a question set is run."""

    task: str  # of `question_sets.QUESTION_SETS`, or ARITHMETIC
    model: str  # the checkpoint's folder
    weights: str  # its `weights.digest`
    thoughts: int  # n; 0: without thoughts only
    samples: int = setting(4, "sampled thoughts to average, beside the greedy one", least=1)
    votes: int = setting(0, "chains of thought to vote; 0: direct answers are scored", least=0)
    temperature: float = setting(0.9, "temperature of chains of thought", least=0)
    batch: int = setting(8, "questions at a time", least=1)
    seed: int = 0  # of thoughts and chains

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def file(self) -> str:
        """Name of the file of its answers: the same wherever nothing that matters differs."""
        idle = {"model", "batch", *(("samples",) if self.votes else ("votes", "temperature"))}
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


def answers_of(kind: str, folder: Path) -> Path:
    """The newest file with answers of one kind.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob(f"{kind}-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(
            f"{folder}: expected answers of {kind} to compare with, found none; "
            "ask that model the same questions first"
        )
    return files[-1]


def run(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    questions: Sequence[BenchmarkQuestion],
    out: Path,
) -> Summary:
    """Answer what is not answered yet in the folder `out`, and sum up.

    Raises:
        ValueError: the file of answers is damaged.
    """
    answers = JsonLines(out / exam.file)
    items = [item(question, tokenizer) for question in questions]
    longest = quiet.model.config.max_positions - exam.thoughts - 2
    longest -= _asking(tokenizer) if exam.votes else 0
    fit = [x for x in items if len(x.text.ids) <= longest]
    # of similar length together, the longest first: the first batch needs most memory
    order = sorted(fit, key=lambda x: -len(x.text.ids))
    done = {line["id"] for line in answers.records()} & {x.question.id for x in fit}
    answer = _chains if exam.votes else _direct
    began = time.perf_counter()
    with tqdm(total=len(fit), desc=exam.kind, unit=" questions") as bar:
        for first in range(0, len(fit), exam.batch):
            batch = order[first : first + exam.batch]
            left = {x.question.id for x in batch} - done
            bar.update(len(batch) - len(left))
            if left:  # the whole batch again: rounding does not depend on what was done
                made = answer(exam, quiet, tokenizer, batch)
                answers.append([line for line in made if line["id"] in left])
                bar.update(len(left))
    facts = {
        "questions": len(questions),
        "too_long": [x.question.id for x in items if len(x.text.ids) > longest],
        "file": exam.file,
        "answered": len(fit) - len(done),
        "seconds": time.perf_counter() - began,
    }
    known = {line["id"]: line for line in answers.records()}
    return summary([known[x.question.id] for x in fit], facts)


def _direct(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, items: Sequence[Item]
) -> list[Line]:
    """Probability of gold answers, and the answers that are decoded."""
    texts, prompts, n = [x.text for x in items], [x.prompt for x in items], exam.thoughts
    reading = read_texts(quiet.model, [text.ids for text in texts])
    thinking = {"base": Thinking("never")}
    if n:
        thinking["greedy"] = Thinking("always", 1, 0.0, exam.seed)
        thinking["sampled"] = Thinking("always", exam.samples, 1.0, exam.seed)
    scored = score(quiet, texts, list(thinking.values()), reading)
    scores = dict(zip(thinking, scored, strict=True))
    said = {}
    for way, when in exam.ways.items():
        decoding = Decoding(max_tokens=ANSWER_TOKENS, think_when=when)
        begun = reading.until(list(map(len, prompts)), ANSWER_TOKENS + n + 2)
        written = write(quiet, tokenizer, prompts, decoding, exam.seed, ["\n"], reading=begun)
        said[way] = [cut(each.text, ["\n"]).removeprefix(" ") for each in written if each]
    lines = []
    for i, x in enumerate(items):
        line: Line = {"id": x.question.id, "gold_chance": x.chance}
        line |= {f"gold_{way}": x.gold(scores[way][i]) for way in scores}
        if n:
            tokens, slots = len(x.text.ids), 2 * n + 2  # n slots are sampled, then n + 2 scored
            line |= {"tokens": tokens, "slots": len(x.text.positions) * slots}
            line["slots_everywhere"] = tokens * slots
        for way in exam.ways:
            answer = parse_direct(x.question, said[way][i].lstrip(" "))
            line |= {f"said_{way}": said[way][i], f"exact_{way}": answer == x.question.gold}
        if x.options:
            line["option_chance"] = 1 / len(x.options)
            line |= {f"option_{way}": x.chosen(scores[way][i]) for way in scores}
        lines.append(line)
    return lines


def _chains(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, items: Sequence[Item]
) -> list[Line]:
    """Chains of thought and the number that each comes to; the majority is the answer."""
    lines: list[Line] = [{"id": x.question.id} for x in items]
    prompts = [cot_prompt(x.question) for x in items for _ in range(exam.votes)]
    numbers = [seed_of(x.text.ids) + vote for x in items for vote in range(exam.votes)]
    later = [number + exam.votes for number in numbers]
    room = _asking(tokenizer)
    for way, when in exam.ways.items():
        chains = _continue(exam, quiet, tokenizer, prompts, when, CHAIN_TOKENS, numbers, room)
        asked = [
            cot_final_prompt(prompt + cut(chain, COT_STOPS))
            for prompt, chain in zip(prompts, chains, strict=True)
        ]
        ends = _continue(exam, quiet, tokenizer, asked, when, NUMBER_TOKENS, later)
        for i, (line, x) in enumerate(zip(lines, items, strict=True)):
            own = slice(i * exam.votes, (i + 1) * exam.votes)
            votes, gold = [final_number(end) for end in ends[own]], final_number(x.question.gold)
            line |= {f"votes_{way}": votes, f"exact_{way}": majority(votes) == gold}
            line[f"single_{way}"] = float(np.mean([vote == gold for vote in votes]))
            line[f"chain_{way}"] = chains[own][0]
    return lines


def _continue(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    prompts: list[str],
    when: str,
    tokens: int,
    numbers: list[int],
    room: int = 0,
) -> list[str]:
    """What the model writes after each prompt, drawn by its number, with room for what follows."""
    ids = [tokenizer.prompt(prompt) for prompt in prompts]
    decoding = Decoding(max_tokens=tokens, temperature=exam.temperature, think_when=when)
    longest = quiet.model.config.max_positions - exam.thoughts - 2 - room
    written = write(quiet, tokenizer, ids, decoding, exam.seed, COT_STOPS, longest, numbers)
    return [each.text if each else "" for each in written]


def _asking(tokenizer: Tokenizer) -> int:
    """Tokens that follow a chain of thought: the words that ask for its number, and the number."""
    return len(tokenizer.encode(cot_final_prompt(""))) + NUMBER_TOKENS


def exam_table(exam: Exam, summary: Summary) -> Table:
    """A question set's rates with 95 % intervals, and differences paired by question."""
    facts, rows = summary.facts, []
    for name, result in summary.results.items():
        (what, how, _), change = MEASURES[name], ("", "")
        if result.change:
            change = number(result.change.mean, "+"), between(*result.change.ends, "+")
        interval = "" if how == CHANCE else between(*result.ends)
        rows.append((what, how, number(result.mean), interval, *change))
    how = f"greedy and {exam.samples} sampled" if exam.thoughts else "none"
    if exam.votes:
        how = f"majority of {exam.votes} chains, temperature {exam.temperature}, thoughts greedy"
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
    exam: Exam, summary: Summary, out: Path, other: Path | None
) -> tuple[dict[str, Any], list[Table]]:
    """Facts to keep and tables to show.

    `out` is the folder of the answers, `other` a file with those of a model to compare with.

    Raises:
        ValueError: they have no question in common.
    """
    facts = {"exam": dataclasses.asdict(exam)} | summary.to_json()
    tables = [exam_table(exam, summary)]
    if other is not None:
        difference = against(out / exam.file, other)
        facts["against"] = difference.to_json()
        tables.append(against_table(difference))
    return facts, tables
