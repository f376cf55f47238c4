"""Question sets (GSM8K, CommonsenseQA): their files, zero-shot prompts and answers read back.

A text that a model wrote is only ever matched against patterns, never evaluated; where two answers
could be meant, none is read. Numbers have one canonical form: no sign but "-", no leading zeros, no
zeros after the last decimal, no "-0".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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
COT_START = "\nA: Let's think step by step."
COT_FINAL = "\nTherefore, the answer (arabic numerals) is"
COT_STOPS = ("Q:", "\n\n\n")  # where a chain of thought ends, if not by end of text


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


# ---- zero-shot prompts ---------------------------------------------------------------------------
def direct_prompt(question: Question) -> str:
    """`Q: {question}\\n(A) ...\\n(E) ...\\nA:`, without choices where there are none.

    Followed by `direct_answer` it is the text that the official evaluation scores.

    Source: ezelikman/quiet-star, eval_helpers.py, lines 22-49.
    """
    options = "".join(f"\n({label}) {text}" for label, text in question.choices)
    return f"Q: {question.text}{options}\nA:"


def direct_answer(question: Question) -> str:
    """What follows `direct_prompt`: ` {number or letter as published}\\n`."""
    return f" {question.written}\n"


def cot_prompt(question: Question) -> str:
    """`Q: {question}\\nA: Let's think step by step.` (with choices as in `direct_prompt`).

    The chain that is generated after it ends at end of text, before COT_STOPS or after 384 tokens;
    `cot_final_prompt` then asks for the number, of at most 12 tokens, and `final_number` reads it.

    Source: ezelikman/quiet-star, zero-shotcot-eval.py.
    """
    return direct_prompt(question).removesuffix("\nA:") + COT_START


def cot_final_prompt(text: str) -> str:
    """A prompt and its chain, trailing space removed, and the words that ask for the number."""
    return text.rstrip() + COT_FINAL


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stops in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


# ---- answers -------------------------------------------------------------------------------------
CURRENCY = "$€£¥₹"
NUMBER = r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?:\.(?P<decimals>[0-9]+))?"
WORD = r"(?:[A-Za-z]{2,}[²³]?|[A-Za-z][²³]|[A-Za-z]+/[A-Za-z]+)"  # "5x", "5k", "5m" may mean more
NUMBER_TEXT = re.compile(
    rf"(?P<sign>[-+−]?)[{CURRENCY}]?(?P<inner>[-+−]?){NUMBER}"
    rf"(?:\s*(?:%|°[CF]?|[{CURRENCY}]|(?P<unit>{WORD}(?:\s+{WORD}){{0,2}})))?\.?"
)
NOT_UNIT = re.compile(  # words that change the number, or may give a second one
    r"\b(?:(?:tenth|third|quarter|dozen|hundred|hundredth|thousand|million|billion|trillion)s?|half"
    r"|mn|bn|st|nd|rd|th|point|and|or|nor|not|but|to|until|plus|minus|over|versus|vs"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten)\b",
    re.IGNORECASE,
)
SENTENCE = r"[ \t]*((?:[^\n.]|\.(?=\S))*)"  # up to a full stop before a space, or the line's end
SAID = re.compile(rf"(?m)^[ \t]*####{SENTENCE}|\banswer(?:\s+is\b:?|:){SENTENCE}", re.IGNORECASE)
WORDS = r"(?:(?!\b(?:not|no|never|either|neither|n?or|than|except|is|isn't|wrong)\b)[^()\n])*"


def canonical(whole: str, decimals: str = "", negative: bool = False) -> str:
    """Canonical form of a number given as digits: ("007", "50") is "7.5", and -0 is "0"."""
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if negative and number != "0" else number


def parse_number(text: str) -> str | None:
    """A text that is one number and nothing else, in canonical form; otherwise None.

    Accepted: digits, in groups of three with commas or without; decimals after a point; one sign
    (+, -, U+2212) before or behind a currency symbol; after the number `%`, a currency symbol,
    degrees, or a unit of one to three words; a full stop; space around. "1,234.50" is "1234.5",
    "-$5" "-5", "$18." "18", "3 eggs per day" "3".

    Not accepted: words before it, more digits (3 000, 1/2, 1e5, 5 or 6), units of one letter (5x,
    5k, 5m), words that change the number (5 million, 3rd, 5 and a half), commas elsewhere (1,23 and
    1.234,5), digits that are not ASCII.
    """
    match = NUMBER_TEXT.fullmatch(text.strip())
    if not match or (match["sign"] and match["inner"]) or NOT_UNIT.search(match["unit"] or ""):
        return None
    negative = (match["sign"] or match["inner"]) in ("-", "−")
    return canonical(match["whole"].replace(",", ""), match["decimals"] or "", negative)


def final_number(text: str) -> str | None:
    """The first integer after the last COT_FINAL (of the whole text, if that is not in it).

    As published: commas are dropped, sign and decimals are not read, so "-7" and "7.5" give "7". To
    be compared with `final_number(gold)`, as in the official code; `stated_number` is strict.

    Source: ezelikman/quiet-star, zero-shotcot-eval.py, extract_first_integer.
    """
    match = re.search("[0-9]+", text.rpartition(COT_FINAL)[2].replace(",", ""))
    return canonical(match[0]) if match else None


def _statements(text: str) -> list[str]:
    return [marked or said for marked, said in SAID.findall(text)]


def _agreed(answers: Sequence[str | None]) -> str | None:
    said = {answer for answer in answers if answer is not None}
    return answers[-1] if len(said) == 1 else None


def stated_number(text: str) -> str | None:
    """The number that a worked solution states: `#### 42`, `The answer is 42.` or `Answer: 42`.

    What follows, to the end of the line or to a full stop with space behind it, must be accepted by
    `parse_number`. None if nothing is stated, if the last statement is no number, or if two differ.
    """
    return _agreed([parse_number(said) for said in _statements(text)])


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text chooses, as it is written in `labels`; otherwise None.

    A text is read as a choice, in either case of letters, if it is
    - the label alone: `B`, `(B)` or `B)`, each with `.` or `:` behind or not;
    - on one line, `(B)` or `B)` and then words: "(B) library";
    - one or more statements among other words, if they agree: `answer is`, `answer:` or `####`,
      then up to the sentence's end one of the above, or words and `(B)`: "The answer is tea (b)."

    Words hold no brackets, and none of WORDS's refused ones ("not", "or", "is", ...). The last
    statement must choose a label. So "a dog", "(A) or (B)", "The answer is a dog." choose nothing.
    """
    known = {label.upper(): label for label in labels}
    one = f"({'|'.join(map(re.escape, known))})"
    forms = [rf"(?:\({one}\)|{one}\)?)[.:]?", rf"(?:\({one}\)|{one}\)) {WORDS}"]

    def chosen(part: str, forms: Sequence[str]) -> str | None:
        match = re.fullmatch("|".join(forms), part.strip(), re.IGNORECASE | re.ASCII)
        return known[next(filter(None, match.groups())).upper()] if match else None

    if statements := _statements(text):
        return _agreed([chosen(said, [*forms, rf"{WORDS}\({one}\)"]) for said in statements])
    return chosen(text, forms)


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


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, for maj@k; None is no vote, and is the result if nobody voted.

    Of equally frequent ones, that which reached its count first: ["a", "b", "b", "a"] gives "b".
    """
    counts: Counter[str] = Counter()
    best: str | None = None
    for answer in answers:
        if answer is not None:
            counts[answer] += 1
            if best is None or counts[answer] > counts[best]:
                best = answer
    return best
