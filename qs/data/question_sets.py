"""question_sets."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qs.data.answers import parse_choice, parse_number, stated_number
from qs.data.arithmetic import sums

ARITHMETIC = "arithmetic"  # a task that needs no file


def arithmetic_questions(each: int, seed: int = 0) -> list[Question]:
    """Held-out sums of two numbers of 1 to 5 digits, asked as a question: "What is 12 + 34?".

    Args:
        each: how many different sums of each length (of one digit there are 10).
        seed: of the draw.
    """
    found: dict[str, Question] = {}
    for digits in range(1, 6):
        for problem in itertools.islice(sums(seed, "heldout", digits), each):
            name = f"{problem.a}+{problem.b}"
            text = f"What is {problem.a} + {problem.b}?"
            found[name] = Question(name, text, (), problem.answer, problem.answer)
    return list(found.values())


def questions_of(task: str, data: str, limit: int | None) -> list[Question]:
    """The held-out questions of a task.

    Args:
        task: of `questions.TASKS`, or ARITHMETIC.
        data: folder of the question sets.
        limit: questions from the top of the file (all), or sums of each length (100).

    Raises:
        ValueError: an unknown task; no such file.
    """
    if task == ARITHMETIC:
        return arithmetic_questions(limit or 100)
    return read_questions(task, question_file(task, "heldout", data), limit)


Task = Literal["gsm8k", "commonsense_qa"]
TASKS: tuple[Task, ...] = get_args(Task)
FILES = {  # of a split: in data/<task>/
    "gsm8k": {"train": "train.jsonl", "heldout": "test.jsonl"},
    "commonsense_qa": {"train": "train.jsonl", "heldout": "validation.jsonl"},
}
ORIGINS = {
    "gsm8k": "train.jsonl and test.jsonl of the data set openai/gsm8k (on GitHub: "
    "openai/grade-school-math)",
    "commonsense_qa": "the random split of the data set commonsense_qa as JSON lines, "
    "train_rand_split.jsonl as train.jsonl and dev_rand_split.jsonl as validation.jsonl",
}


@dataclass(frozen=True)
class Question:
    """One question and what is published about its answer.

    Attributes:
        id: the published id, or the file's name and the line's number ("test-1").
        text: the question, nothing stripped.
        choices: (label, text) of each option, as published; empty if the answer is a number.
        gold: the answer: a label, or a number in canonical form.
        written: the answer as published ("1,080"), which the official metric scores.
        rationale: the published worked solution without its <<48/2=24>> annotations, or "".
    """

    id: str
    text: str
    choices: tuple[tuple[str, str], ...]
    gold: str
    written: str
    rationale: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the choices, in order."""
        return tuple(label for label, _ in self.choices)


# ---- files ---------------------------------------------------------------------------------------
def question_file(task: Task, split: str, data: str | Path = "data") -> Path:
    """Where the questions of a split belong.

    Args:
        task: one of TASKS.
        split: "train", or "heldout" for the set that is only ever measured on.
        data: the folder of all data.

    Raises:
        ValueError: an unknown task or split.
    """
    names = FILES[_known(task)]
    if split not in names:
        raise ValueError(f"expected a split {' or '.join(names)}, found {split!r}; name one")
    return Path(data) / task / names[split]


def read_questions(task: Task, path: str | Path, limit: int | None = None) -> list[Question]:
    """Read a file of questions in the published format, all at once: a bad line shows at the start.

    GSM8K: JSON lines with `question` and `answer`, the answer ending in `#### 42`. CommonsenseQA:
    JSON lines with `answerKey`, `question.stem` and `question.choices[].label/text`, or the Hugging
    Face form with a string `question` and lists `choices.label`, `choices.text`. Empty lines count
    but hold nothing.

    Args:
        task: one of TASKS.
        path: the file.
        limit: how many questions from the top; None for all.

    Raises:
        ValueError: an unknown task, no such file (says where to get it), a damaged line (says which
            and why), no question at all, or a limit below 1.
    """
    read = {"gsm8k": _gsm8k, "commonsense_qa": _commonsense_qa}[_known(task)]
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 question, found {limit}")
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        places = " and ".join(str(question_file(task, split)) for split in FILES[task])
        raise ValueError(
            f"{path}: expected questions of {task}, found: {error.strerror}; get {ORIGINS[task]}, "
            f"and put them at {places}"
        ) from None
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if len(found) == limit:
            break
        if not line.strip():
            continue
        try:
            found.append(read(json.loads(line.decode()), f"{path.stem}-{number}"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a question of {task}, found: {error}; get the "
                "file again, or mend the line"
            ) from None
    if not found:
        raise ValueError(f"{path}: expected questions of {task}, found an empty file; get it again")
    return found


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"expected a task {' or '.join(TASKS)}, found {task!r}; name one")
    return task


def _field(record: Any, name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or not value:
        raise ValueError(f"no {kind.__name__} {name!r}")
    return value


def _gsm8k(record: Any, name: str) -> Question:
    text, answer = _field(record, "question", str), _field(record, "answer", str)
    worked, mark, written = answer.rpartition("####")
    gold = parse_number(written)
    if not mark or gold is None:
        raise ValueError("no '#### number' at the end of 'answer'")
    rationale = re.sub(r"<<[^<>]*>>", "", worked).strip()
    return Question(name, text, (), gold, written.strip(), rationale)


def _commonsense_qa(record: Any, name: str) -> Question:
    if isinstance(record, dict) and isinstance(record.get("question"), dict):
        asked = record["question"]
        text, listed = _field(asked, "stem", str), _field(asked, "choices", list)
    else:
        text, both = _field(record, "question", str), _field(record, "choices", dict)
        labels, texts = _field(both, "label", list), _field(both, "text", list)
        if len(labels) != len(texts):
            raise ValueError(f"{len(labels)} labels for {len(texts)} choices")
        listed = [{"label": x, "text": y} for x, y in zip(labels, texts, strict=True)]
    choices = tuple((_field(x, "label", str), _field(x, "text", str)) for x in listed)
    labels = [label for label, _ in choices]
    if len(set(labels)) < max(2, len(labels)) or not re.fullmatch("[A-Z]+", "".join(labels)):
        raise ValueError(f"choices labelled {labels}, not by different capital letters")
    gold = record.get("answerKey")
    if gold not in labels:
        raise ValueError(f"answerKey {gold!r}, none of {labels} (the published test has no key)")
    return Question(str(record.get("id") or name), text, choices, gold, gold)


def parse_direct(question: Question, text: str) -> str | None:
    """The answer that was generated after `direct_prompt`: its first line, and that line alone."""
    line = text.partition("\n")[0]
    return parse_choice(line, question.labels) if question.choices else parse_number(line)


def parse_stated(question: Question, text: str) -> str | None:
    """The answer that a generated rationale states."""
    return parse_choice(text, question.labels) if question.choices else stated_number(text)


def same_answer(task: Task, given: str | None, gold: str) -> bool:
    """Whether an answer is the gold one: labels in either case, numbers by canonical form.

    Args:
        task: one of TASKS.
        given: a number or a label; None is never right.
        gold: the right one.

    Raises:
        ValueError: an unknown task.
    """
    same = {"gsm8k": parse_number, "commonsense_qa": str.upper}[_known(task)]
    return given is not None and same(given) is not None and same(given) == same(gold)
