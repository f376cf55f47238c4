"""What a person at a terminal reads: the progress bar's numbers and the closing table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qs.config import at_least, setting
from qs.data.answers import final_number, majority
from qs.data.prompts import COT_STOPS, cot_final_prompt, cot_prompt, cut, direct_prompt
from qs.data.question_sets import BenchmarkQuestion, parse_direct
from qs.evaluation.gold_probability import Item, batches, fitting, item, score
from qs.evaluation.statistics import Estimate, mean_estimate, paired, wilson
from qs.files import JsonLines
from qs.inference.decoding import Decoding
from qs.inference.generate import generate
from qs.inference.loglikelihood import seed_of
from qs.inference.write import write
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.tables import Table, between, number

MEASURES = {  # of `zeroshot.summary`: what is shown, and which ways it has
    "gold": "gold answer probability",
    "exact": "exact match of the decoded answer",
    "option": "likeliest option is right",
    "single": "one chain is right",
}
WAYS = {
    "chance": "by chance",
    "base": "without thoughts",
    "greedy": "greedy thoughts",
    "sampled": "sampled thoughts",
    "mix": "greedy thoughts",
}


def measured(found: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every measure that was made, and in which way."""
    for kind, title in MEASURES.items():
        for way, how in WAYS.items():
            if (value := found.get(f"{kind}_{way}")) is not None:
                yield title, how, value


def exam_table(exam: Exam, summary: dict[str, Any]) -> Table:
    """A question set's rates with 95 % intervals, and differences paired by question."""
    scored, rows = summary.get("scored", 0), []
    for title, how, found in measured(summary):
        cells = [title, how, number(found["mean"]), "", "", ""]
        if "wilson" in found:
            cells[3] = between(*found["wilson"])
        elif "interval" in found:
            cells[3] = between(*Estimate(found["mean"], found["interval"]).ends)
        if "change" in found:
            change = found["change"]
            ends = Estimate(**change).ends
            cells[4:] = [number(change["mean"], "+"), between(*ends, "+")]
        rows.append(tuple(cells))
    asked = f"greedy and {exam.samples} sampled" if exam.thoughts else "none"
    if exam.votes:
        asked = f"majority of {exam.votes} chains, temperature {exam.temperature}, thoughts greedy"
    notes = [f"thoughts of n {exam.thoughts}: {asked}; seed {exam.seed}; {exam.batch} at a time"]
    notes.append(f"too long for the model and left out: {len(summary['too_long'])}")
    if summary["too_long"]:
        notes[-1] += f" ({', '.join(summary['too_long'])})"
    if "slots" in summary:
        notes.append(
            f"{summary['slots']:,} slots of greedy thoughts after {summary['tokens']:,} tokens; "
            f"thinking at every one has {summary['slots_everywhere']:,}, "
            f"{summary['slots_everywhere'] / summary['slots']:.1f} times as many"
        )
    if answered := summary["answered"]:
        took = summary["seconds"]
        notes.append(f"{took:.0f} s for {answered:,}, {1000 * took / answered:.0f} s for 1,000")
    heads = ("measure", "how", "mean", "95 % interval", "change", "95 % interval, paired")
    title = f"{exam.task}: {scored:,} of {summary['questions']:,} questions"
    return Table(title, heads if rows else (), rows, notes)


def against_table(found: dict[str, Any]) -> Table:
    """Differences from another model on the same questions."""
    rows = [
        (title, how, number(x["mean"], "+"), between(*Estimate(**x).ends, "+"))
        for title, how, x in measured(found)
    ]
    title = f"minus {found['file']}, {found['questions']:,} questions, paired"
    return Table(title, ("measure", "how", "difference", "95 % interval"), rows)


ANSWER_TOKENS = 16  # of a direct answer, at most
CHAIN_TOKENS, NUMBER_TOKENS = 384, 12  # of a chain of thought and of the number after it


@dataclass(frozen=True)
class Exam:
    """How a question set is run.

    Attributes:
        task: of `question_sets.QUESTION_SETS`, or ARITHMETIC.
        model: the checkpoint's folder.
        weights: its `checkpoint.digest`.
        thoughts: n; 0: without thoughts only.
        samples: sampled thoughts at each scored position, beside the greedy one.
        votes: chains of thought for each question; 0: direct answers are scored instead.
        temperature: of chains.
        batch: questions at a time.
        seed: of thoughts and chains.
    """

    task: str
    model: str
    weights: str
    thoughts: int
    samples: int = setting(4, "sampled thoughts to average, beside the greedy one")
    votes: int = setting(0, "chains of thought to vote; 0: direct answers are scored instead")
    temperature: float = setting(0.9, "temperature of chains of thought")
    batch: int = setting(8, "questions at a time")
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, samples=1, votes=0, temperature=0, batch=1)

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


def run(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    questions: Sequence[BenchmarkQuestion],
    out: Path,
) -> dict[str, Any]:
    """Do what is not done yet, and sum up.

    Args:
        exam: how.
        quiet, tokenizer: the model.
        questions: all of them.
        out: folder of the answers.

    Returns:
        The summary: counts, names of questions that do not fit, rates with intervals; `seconds`
        is what the questions `answered` in this call took.
    """
    answers = JsonLines(out / exam.file)
    longest = quiet.model.config.max_positions - exam.thoughts - 2
    if exam.votes:
        longest -= NUMBER_TOKENS + len(tokenizer.encode(cot_final_prompt("")))
    fit, unfit = fitting([item(question, tokenizer) for question in questions], longest)
    ids = {x.question.id for x in fit}
    done = {line["id"] for line in answers.records()} & ids
    work: Callable[..., list[dict[str, Any]]] = _chains if exam.votes else _direct
    began = time.perf_counter()
    with tqdm(total=len(fit), desc=exam.kind, unit=" questions") as bar:
        for batch in batches(fit, exam.batch):
            left = [x for x in batch if x.question.id not in done]
            bar.update(len(batch) - len(left))
            if left:  # the whole batch again: rounding does not depend on what was done
                found = work(exam, quiet, tokenizer, batch)
                answers.append([line for line in found if line["id"] not in done])
                bar.update(len(left))
    found = {line["id"]: line for line in answers.records()}
    lines = [found[x.question.id] for x in fit]
    facts = {
        **{"questions": len(questions), "too_long": unfit, "file": answers.path.name},
        **{"answered": len(fit) - len(done), "seconds": time.perf_counter() - began},
    }
    return facts | (summary(lines) if lines else {})


def _direct(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, batch: list[Item]
) -> list[dict[str, Any]]:
    """Probability of the gold answer and the answer that is decoded, with and without thoughts."""
    scores = {"greedy": score(quiet, batch, 1, 0.0, exam.seed)}
    if exam.thoughts:
        scores["sampled"] = score(quiet, batch, exam.samples, 1.0, exam.seed)
    prompts = [tokenizer.encode(direct_prompt(x.question), bos=True) for x in batch]
    newline = tokenizer.encode("\nA:\n")[-1]
    texts = {}
    for name, when in exam.ways.items():
        decoding = Decoding(max_tokens=ANSWER_TOKENS, think_when=when, think_temperature=0.0)
        results = generate(quiet, prompts, decoding, exam.seed, stop_ids=[newline])
        texts[name] = [tokenizer.decode(r.text_ids) for r in results]
    lines = []
    for i, x in enumerate(batch):
        question, one = x.question, scores["greedy"][i]
        line = {"id": question.id, "gold_base": one.gold_base}
        line["gold_chance"] = len(x.allowed) ** -float(len(x.scored))
        if exam.thoughts:
            line |= {f"gold_{name}": found[i].gold_mix for name, found in scores.items()}
            line |= {"tokens": len(x.tokens), "slots": one.slots}
            line["slots_everywhere"] = one.slots_everywhere
        for name in exam.ways:
            said = parse_direct(question, texts[name][i].lstrip(" "))
            line[f"said_{name}"] = texts[name][i]
            line[f"exact_{name}"] = said == question.gold
        if question.choices:
            line["option_base"] = one.likeliest_base == question.gold
            line["option_chance"] = 1 / len(question.choices)
            if exam.thoughts:
                for name, found in scores.items():
                    line[f"option_{name}"] = found[i].likeliest_mix == question.gold
        lines.append(line)
    return lines


def _chains(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, batch: list[Item]
) -> list[dict[str, Any]]:
    """Chains of thought and the number that each comes to; the majority is the answer."""
    lines: list[dict[str, Any]] = [{"id": x.question.id} for x in batch]
    prompts = [cot_prompt(x.question) for x in batch for _ in range(exam.votes)]
    votes = range(exam.votes)
    numbers = [seed_of(x.tokens) + vote for x in batch for vote in votes]
    for name, when in exam.ways.items():
        chains = _continue(exam, quiet, tokenizer, prompts, when, CHAIN_TOKENS, numbers)
        asked = [
            cot_final_prompt(prompt + cut(chain, COT_STOPS))
            for prompt, chain in zip(prompts, chains, strict=True)
        ]
        others = [x + exam.votes for x in numbers]
        ends = _continue(exam, quiet, tokenizer, asked, when, NUMBER_TOKENS, others)
        for i, x in enumerate(batch):
            own = slice(i * exam.votes, (i + 1) * exam.votes)
            found = [final_number(end) for end in ends[own]]
            gold = final_number(x.question.gold)
            lines[i] |= {
                f"votes_{name}": found,
                f"exact_{name}": majority(found) == gold,
                f"single_{name}": float(np.mean([vote == gold for vote in found])),
                f"chain_{name}": chains[own][0],
            }
    return lines


def _continue(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    prompts: list[str],
    when: str,
    tokens: int,
    numbers: list[int],
) -> list[str]:
    """What the model writes after each prompt, drawn by its number."""
    ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
    decoding = Decoding(
        max_tokens=tokens, temperature=exam.temperature, think_when=when, think_temperature=0.0
    )

    longest = quiet.model.config.max_positions - exam.thoughts - 2
    if tokens > NUMBER_TOKENS:  # leave room for what is asked next
        longest -= len(tokenizer.encode(cot_final_prompt(""))) + NUMBER_TOKENS
    written = write(quiet, tokenizer, ids, decoding, exam.seed, COT_STOPS, longest, numbers)
    return ["" if found is None else found.text.removeprefix(" ") for found in written]


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with 95 % intervals of everything that was measured, and paired differences.

    Args:
        lines: of one exam, at least one.
    """
    found: dict[str, Any] = {"scored": len(lines)}
    for name in lines[0]:
        values = [line[name] for line in lines]
        if all(type(value) is bool for value in values):
            found[name] = {
                "mean": float(np.mean(values)),
                "wilson": wilson(sum(values), len(lines)),
            }
        elif name.endswith("_chance"):
            found[name] = {"mean": float(np.mean(values))}
        elif name.startswith(("gold_", "single_")):
            found[name] = mean_estimate(np.array(values))._asdict()
        elif name in ("tokens", "slots", "slots_everywhere"):
            found[name] = sum(values)
    for name in lines[0]:
        kind, _, which = name.rpartition("_")
        if which in ("greedy", "sampled", "mix") and name in found:
            base = [line[f"{kind}_base"] for line in lines]
            found[name]["change"] = paired(base, [line[name] for line in lines])._asdict()
    return found


def answers_of(kind: str, folder: Path) -> Path:
    """The newest file with answers of one kind.

    Raises:
        ValueError: there is none.
    """
    files = sorted(folder.glob(f"{kind}-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(
            f"{folder}: expected answers of {kind} to compare with, found none; "
            "ask that model the same question set first"
        )
    return files[-1]


def against(own: Path, other: Path) -> dict[str, Any]:
    """Differences own - other of everything measured, paired on the questions that both answered.

    What the other model, having answered without thoughts, does not have is compared with its
    answers without.

    Args:
        own, other: files of answers.

    Raises:
        ValueError: they have no question in common.
    """
    mine, theirs = ({x["id"]: x for x in JsonLines(path).records()} for path in (own, other))
    shared = [i for i in mine if i in theirs]
    if not shared:
        raise ValueError(f"{other}: expected some of the questions of {own}, found none")
    found: dict[str, Any] = {"file": str(other), "questions": len(shared)}
    for name, value in mine[shared[0]].items():
        measure, _, way = name.rpartition("_")
        if type(value) in (bool, float) and way != "chance":
            theirs_name = name if name in theirs[shared[0]] else f"{measure}_base"
            before = [theirs[i][theirs_name] for i in shared]
            found[name] = paired(before, [mine[i][name] for i in shared])._asdict()
    return found
