"""STaR's few-shot prompts: this project's worked examples, and the answer as a hint on demand.

An example is a question, a rationale and its closing statement. Hints give the answer only, never
the worked solution, and what is stored and trained on never holds one:

    Q: Where would ... ?                Q: A ferry carries ... ?
    Answer Choices:                     Hint: 450
    (a) padded case (CORRECT)           A: The ferry crosses ... The answer is 450.
    (b) music stand
    A: The answer must be ... Therefore, the answer is (a).

Source: STaR (arXiv:2203.14465), section 3; for numbers the paper's code puts the answer in brackets
behind the question, here it has a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qs.data.answers import COT_FINAL, parse_choice, stated_number
from qs.data.question_sets import TASKS, Question, Task

PROMPTS = Path(__file__).with_name("few_shot")
CHOICE_HINT = " (CORRECT)"  # behind the right choice
NUMBER_HINT = "Hint: "  # and the number, on a line before the answer
STOPS = ("\n\n", "\nQ:")  # where a generated rationale ends, if not by end of text


@dataclass(frozen=True)
class Example:
    """A question and the rationale that is shown for it, closing statement included."""

    question: Question
    rationale: str


def few_shot(task: Task, path: str | Path | None = None) -> list[Example]:
    """The worked examples of a task, in the order of their file.

    Blocks of lines parted by blank lines: `Q: ` and the question, for commonsense_qa a line
    `(a) text` for each choice, `A: ` and the rationale, of one or more lines, whose closing
    statement is the answer. Lines that begin with `#` are comments.

    Args:
        task: one of TASKS.
        path: the file; None for the one that comes with the program, `qs/data/few_shot/<task>.txt`.

    Raises:
        ValueError: an unknown task, no readable file, no example, or a block of another form (says
            which and why).
    """
    if task not in TASKS:
        raise ValueError(f"expected a task {' or '.join(TASKS)}, found {task!r}; name one")
    path = PROMPTS / f"{task}.txt" if path is None else Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "bytes that are no UTF-8"
        raise ValueError(f"{path}: expected worked examples, found: {why}") from None
    text = "\n".join(line.rstrip() for line in lines if not line.startswith("#"))
    blocks = [block for block in re.split(r"\n\n+", text.strip("\n")) if block]
    found = []
    for number, block in enumerate(blocks, 1):
        try:
            found.append(_example(task, block, f"{path.stem}-{number}"))
        except ValueError as error:
            raise ValueError(
                f"{path}: expected example {number} to be Q:, choices if any, A: and a closing "
                f"statement, found {error}; mend the block {block[:40]!r}..."
            ) from None
    if not found:
        raise ValueError(f"{path}: expected worked examples, found none; write at least one")
    return found


def _example(task: Task, block: str, name: str) -> Example:
    form = re.fullmatch(r"Q: (?P<asked>.+?)\nA: (?P<rationale>.+)", block, re.DOTALL)
    if not form:
        raise ValueError("no lines 'Q: ' and 'A: '")
    text, *options = form["asked"].split("\n")
    rationale = form["rationale"]
    pairs = [re.fullmatch(r"\(([a-z])\) (.+)", option) for option in options]
    choices = tuple((pair[1].upper(), pair[2]) for pair in pairs if pair)
    if len(choices) < len(options) or (task == "commonsense_qa") != bool(choices):
        raise ValueError(f"the lines {options} for choices")
    labels = [label for label, _ in choices]
    if len(set(labels)) < len(labels):
        raise ValueError(f"choices labelled {labels}")
    gold = parse_choice(rationale, labels) if labels else stated_number(rationale)
    if gold is None:
        raise ValueError("no answer stated")
    return Example(Question(name, text, choices, gold, gold), rationale)


def question_prompt(question: Question, hint: bool = False) -> str:
    """One question up to `A:`; the hint marks the right choice, or gives the number."""
    lines = [f"Q: {question.text}"]
    if question.choices:
        lines.append("Answer Choices:")
    for label, text in question.choices:
        mark = CHOICE_HINT if hint and label == question.gold else ""
        lines.append(f"({label.lower()}) {text}{mark}")
    if hint and not question.choices:
        lines.append(f"{NUMBER_HINT}{question.gold}")
    return "\n".join([*lines, "A:"])


def few_shot_prompt(examples: Sequence[Example], question: Question, hint: bool = False) -> str:
    """The examples, then the question, all of them with the hint or none.

    The rationale that is generated after it ends at end of text or before one of STOPS.

    Args:
        examples: those of the task, `few_shot(task)`, or some of them.
        question: the one at hand.
        hint: whether the answers are given (rationalisation).
    """
    return shown(examples, hint) + question_prompt(question, hint)


def shown(examples: Sequence[Example], hint: bool = False) -> str:
    """What every prompt of a task begins with: the worked examples."""
    return "".join(f"{question_prompt(e.question, hint)} {e.rationale}\n\n" for e in examples)


def example_text(question: Question, rationale: str) -> tuple[str, str]:
    """What is stored and trained on: the prompt, never hinted nor few-shot, and the completion.

    Args:
        question: the question at hand.
        rationale: as generated, with its closing statement, with or without the hint.

    Returns:
        prompt and completion; the training text is both and the end of text, the loss is on the
        completion and the end of text.
    """
    return question_prompt(question), f" {rationale.strip()}"


def closing(question: Question) -> str:
    """The statement that ends a rationale: the answer alone."""
    if question.choices:
        return f"Therefore, the answer is ({question.gold.lower()})."
    return f"The answer is {question.gold}."


COT_START = "\nA: Let's think step by step."
COT_STOPS = ("Q:", "\n\n\n")  # where a chain of thought ends, if not by end of text


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
