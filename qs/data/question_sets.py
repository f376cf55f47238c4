"""Benchmarks: GSM8K and CommonsenseQA from their published files, and held-out sums."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qs.cli import listed
from qs.data.answers import parse_choice, parse_number, stated_number
from qs.data.arithmetic import different_sums
from qs.data.dataset import Split, check_split
from qs.files import parse_json
from qs.plain import content_digest, read_plain

QuestionSet = Literal["gsm8k", "commonsense_qa"]
QUESTION_SETS: tuple[QuestionSet, ...] = get_args(QuestionSet)
ARITHMETIC = "arithmetic"  # a benchmark that needs no file
SETS = ",".join((*QUESTION_SETS, ARITHMETIC))
WITH_CHOICES = ("commonsense_qa",)  # the answer is a label, else a number
FILES = {  # of a split: in data/<question set>/
    "gsm8k": {"train": "train.jsonl", "heldout": "test.jsonl"},
    "commonsense_qa": {"train": "train.jsonl", "heldout": "validation.jsonl"},
}
GSM8K = "openai/gsm8k (on GitHub: openai/grade-school-math)"
ORIGINS = {
    "gsm8k": {"train": f"train.jsonl of {GSM8K}", "heldout": f"test.jsonl of {GSM8K}"},
    "commonsense_qa": {
        "train": "train_rand_split.jsonl of the data set commonsense_qa (JSON lines)",
        "heldout": "dev_rand_split.jsonl of the data set commonsense_qa (JSON lines)",
    },
}


def task_list(names: str) -> list[str]:
    """Names of question sets, split at commas, each once."""
    return listed(names, SETS.split(","))


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question and what is published about its answer."""

    id: str  # as published, or the file's name and the line's number ("test-1")
    text: str  # nothing stripped
    choices: tuple[tuple[str, str], ...]  # (label, text) of each; none if the answer is a number
    gold: str  # the answer: a label, or a number in canonical form
    written: str  # the answer as published ("1,080"), which the official metric scores
    rationale: str = ""  # worked solution; a published one without its <<48/2=24>> annotations

    @property
    def digest(self) -> str:
        """What tells it from any other: other words, choices, answer or id give another."""
        told = (self.id, self.text, self.choices, self.gold, self.written)
        return content_digest(json.dumps(told).encode())

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the choices, in order."""
        return tuple(label for label, _ in self.choices)


def parse_direct(question: BenchmarkQuestion, text: str) -> str | None:
    """The answer in the first line of a text; right if it equals `question.gold`."""
    line = text.partition("\n")[0]
    return parse_choice(line, question.labels) if question.choices else parse_number(line)


def parse_stated(question: BenchmarkQuestion, text: str) -> str | None:
    """The answer that a rationale states; right if it equals `question.gold`."""
    return parse_choice(text, question.labels) if question.choices else stated_number(text)


def arithmetic_questions(each: int, split: Split = "heldout") -> list[BenchmarkQuestion]:
    """Sums of two numbers of 1 to 5 digits, asked as a question: "What is 12 + 34?".

    `each` of every length are drawn; one that comes again is asked once.
    """
    return [
        BenchmarkQuestion(f"{x.a}+{x.b}", f"What is {x.a} + {x.b}?", (), x.answer, x.answer)
        for x in different_sums(0, split, each)
    ]


def check_question_set(name: str) -> None:
    """Raise ValueError for what is none of QUESTION_SETS."""
    if name not in QUESTION_SETS:
        raise ValueError(f"expected a task {' or '.join(QUESTION_SETS)}, found {name!r}; name one")


def read_questions(
    name: str, split: Split, data: str | Path = "data", limit: int | None = None
) -> list[BenchmarkQuestion]:
    """The questions of a benchmark, read all at once: a bad line shows at the start.

    GSM8K: JSON lines with `question` and `answer`, the answer ending in `#### 42`. CommonsenseQA:
    JSON lines with `answerKey`, `question.stem` and `question.choices[].label/text`, or the Hugging
    Face form with a string `question` and lists `choices.label`, `choices.text`.

    Args:
        name: one of QUESTION_SETS, or ARITHMETIC.
        split: "heldout" is the set that is only ever measured on.
        data: holds the folder `<name>`.
        limit: questions from the top of the file (all), or sums of each length (100).

    Raises:
        ValueError: an unknown set or split, no such file, a damaged line, an id that comes again,
            no question at all, or a limit below 1.
    """
    check_split(split)
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 question, found {limit}")
    if name == ARITHMETIC:
        return arithmetic_questions(limit or 100, split)
    check_question_set(name)
    parse = _gsm8k if name == "gsm8k" else _commonsense_qa
    path = Path(data) / name / FILES[name][split]
    try:
        lines = read_plain(path).split(b"\n")
    except OSError as error:
        message = f"{path}: expected questions of {name}, found: {error.strerror}"
        raise ValueError(f"{message}; get {ORIGINS[name][split]}, and put it there") from None
    questions: list[BenchmarkQuestion] = []
    known: dict[str, int] = {}  # the line of each id
    for number, line in enumerate(lines, 1):
        if len(questions) == limit:
            break
        if not line.strip():
            continue
        try:
            question = parse(parse_json(line), f"{path.stem}-{number}")
            if (first := known.setdefault(question.id, number)) < number:
                raise ValueError(f"the id {question.id[:40]!r} again, as in line {first}")
            questions.append(question)
        except ValueError as error:
            message = f"expected a question of {name}, found: {error}"
            advice = "get the file again, or mend the line"
            raise ValueError(f"{path}, line {number}: {message}; {advice}") from None
    if not questions:
        raise ValueError(f"{path}: expected questions of {name}, found an empty file; get it again")
    return questions


def _field(record: Any, name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or not value:
        raise ValueError(f"no {kind.__name__} {name!r}")
    return value


def _gsm8k(record: Any, line_id: str) -> BenchmarkQuestion:
    text, answer = _field(record, "question", str), _field(record, "answer", str)
    worked, mark, written = answer.rpartition("####")
    gold = parse_number(written)
    if not mark or gold is None:
        raise ValueError("no '#### number' at the end of 'answer'")
    rationale = re.sub(r"<<[^<>]*>>", "", worked).strip()
    return BenchmarkQuestion(line_id, text, (), gold, written.strip(), rationale)


def _commonsense_qa(record: Any, line_id: str) -> BenchmarkQuestion:
    if isinstance(record, dict) and isinstance(record.get("question"), dict):  # as published
        text = _field(record["question"], "stem", str)
        options = _field(record["question"], "choices", list)
    else:  # as on Hugging Face
        text, columns = _field(record, "question", str), _field(record, "choices", dict)
        labels, texts = _field(columns, "label", list), _field(columns, "text", list)
        if len(labels) != len(texts):
            raise ValueError(f"{len(labels)} labels for {len(texts)} choices")
        options = [{"label": x, "text": y} for x, y in zip(labels, texts, strict=True)]
    choices = tuple((_field(o, "label", str), _field(o, "text", str)) for o in options)
    labels = [label for label, _ in choices]
    if len(set(labels)) < max(2, len(labels)) or not re.fullmatch("[A-Z]+", "".join(labels)):
        raise ValueError(f"choices labelled {labels}, not by different capital letters")
    gold = record.get("answerKey")
    if gold not in labels:
        raise ValueError(f"answerKey {gold!r}, none of {labels} (the published test has no key)")
    return BenchmarkQuestion(str(record.get("id") or line_id), text, choices, gold, gold)
