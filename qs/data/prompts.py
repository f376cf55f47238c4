"""What a model is asked: zero-shot, chain-of-thought and few-shot prompts, with or without a hint.

Few-shot prompts are STaR's: questions with rationales. Hints give only the answer (`(CORRECT)`):

    Q: Where would ... ?                Q: A ferry carries ... ?
    Answer Choices:                     Hint: 450
    (a) padded case (CORRECT)           A: The ferry crosses ... The answer is 450.
    (b) music stand
    A: The answer must be ... Therefore, the answer is (a).

Source: STaR (arXiv:2203.14465), section 3; its code has a number in brackets behind the question.
"""

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qs.data import question_sets
from qs.data.question_sets import BenchmarkQuestion, QuestionSet
from qs.files import text_lines
from qs.output import harmless
from qs.plain import read_plain

PROMPTS = Path(__file__).with_name("few_shot")
CHOICE_HINT = " (CORRECT)"  # behind the right choice
NUMBER_HINT = "Hint: "  # and the number, on a line before the answer
STOPS = ("\n\n", "\nQ:")  # where a generated rationale ends, if not by end of text
COT_STOPS = ("Q:", "\n\n\n")  # where a chain of thought ends, if not by end of text


def direct_prompt(question: BenchmarkQuestion) -> str:
    """`Q: {question}\\n(A) ...\\n(E) ...\\nA:`, without choices where there are none.

    Followed by `direct_answer` it is the text that the official evaluation scores.

    Source: ezelikman/quiet-star, eval_helpers.py, lines 22-49.
    """
    options = "".join(f"\n({label}) {text}" for label, text in question.choices)
    return f"Q: {question.text}{options}\nA:"


def direct_answer(question: BenchmarkQuestion) -> str:
    """What follows `direct_prompt`: ` {number or letter as published}\\n`."""
    return f" {question.written}\n"


def cot_prompt(question: BenchmarkQuestion) -> str:
    """`Q: {question}\\nA: Let's think step by step.` (with choices as in `direct_prompt`).

    The chain that is generated after it ends at end of text, before COT_STOPS or after 384 tokens;
    `cot_final_prompt` then asks for the number, of at most 12 tokens, and `final_number` reads it.

    Source: ezelikman/quiet-star, zero-shotcot-eval.py.
    """
    return direct_prompt(question) + " Let's think step by step."


def cot_final_prompt(text: str) -> str:
    """A prompt and its chain, trailing space removed, and the words that ask for the number."""
    return text.rstrip() + "\nTherefore, the answer (arabic numerals) is"


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stops in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def question_prompt(question: BenchmarkQuestion, hint: bool = False) -> str:
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


def closing(question: BenchmarkQuestion) -> str:
    """The statement that ends a rationale: the answer alone."""
    if question.choices:
        return f"Therefore, the answer is ({question.gold.lower()})."
    return f"The answer is {question.gold}."


def example_text(question: BenchmarkQuestion, rationale: str) -> tuple[str, str]:
    """What is trained on: a prompt, never hinted nor few-shot, and its rationale."""
    return question_prompt(question), f" {rationale.strip()}"


def few_shot_prefix(examples: Sequence[BenchmarkQuestion], hint: bool = False) -> str:
    """Questions with their rationales, all with the hint or none; the one at hand follows."""
    return "".join(f"{question_prompt(e, hint)} {e.rationale}\n\n" for e in examples)


def few_shot(name: QuestionSet, folder: Path = PROMPTS) -> list[BenchmarkQuestion]:
    """Worked examples of a question set, in the order of their file `folder/<name>.txt`.

    Blocks of lines parted by blank lines: `Q: ` and the question, for commonsense_qa a line
    `(a) text` for each choice, `A: ` and the rationale, of one or more lines, whose closing
    statement is the answer. Lines that begin with `#` are comments.

    Raises:
        ValueError: an unknown set, no readable file, no example, or a block of another form.
    """
    question_sets.check_question_set(name)
    path = folder / f"{name}.txt"
    try:
        lines = list(text_lines(io.BytesIO(read_plain(path)), str(path)))
    except OSError as error:
        raise ValueError(f"{path}: expected worked examples, found: {error.strerror}") from None
    text = "\n".join(line.rstrip() for line in lines if not line.startswith("#"))
    examples, form = [], "Q:, choices if any, A: and a closing statement"
    for number, block in enumerate(filter(None, re.split(r"\n\n+", text.strip("\n"))), 1):
        try:
            examples.append(_parse_example(name, block, f"{name}-{number}"))
        except ValueError as error:
            message = f"expected example {number} to be {form}, found {error}"
            raise ValueError(f"{path}: {message}; mend the block {block[:40]!r}...") from None
    if not examples:
        raise ValueError(f"{path}: expected worked examples, found none; write at least one")
    return examples


def _parse_example(name: QuestionSet, block: str, question_id: str) -> BenchmarkQuestion:
    form = re.fullmatch(r"Q: (?P<question>.+?)\nA: (?P<rationale>.+)", block, re.DOTALL)
    if not form:
        raise ValueError("no lines 'Q: ' and 'A: '")
    text, *options = form["question"].split("\n")
    pairs = [re.fullmatch(r"\(([a-z])\) (.+)", option) for option in options]
    choices = tuple((pair[1].upper(), pair[2]) for pair in pairs if pair)
    if len(choices) < len(options) or (name in question_sets.WITH_CHOICES) != bool(choices):
        raise ValueError(f"the lines {options} for choices")
    question = BenchmarkQuestion(question_id, text, choices, "", "", form["rationale"])
    if len(set(question.labels)) < len(question.labels):
        raise ValueError(f"choices labelled {list(question.labels)}")
    gold = question_sets.parse_stated(question, question.rationale)
    if gold is None:
        raise ValueError("no answer stated")
    return replace(question, gold=gold, written=gold)


def prompts_of(prompt: str) -> Iterable[str]:
    """What is written as a prompt: a text, or the lines of a file or (`-`) of standard input.

    What is likely a mistake is named on stderr: a file that is not there, `\\n` for a line break.

    Raises:
        ValueError: a line is no UTF-8, or standard input is closed.
    """
    if prompt == "-":
        if sys.stdin is None:
            raise ValueError("-: expected prompts on standard input, found it closed; pipe some in")
        return text_lines(sys.stdin.buffer, "standard input")
    if os.path.isfile(prompt):  # Path.is_file raises where a text is too long for a name
        return list(text_lines(io.BytesIO(read_plain(Path(prompt))), prompt))
    if re.fullmatch(r"\S+\.(txt|jsonl?|md)", prompt):
        told = f"warning: there is no file {harmless(prompt)}: it is taken as the prompt"
        print(told, file=sys.stderr)
    if re.search(r"\\n(?![A-Za-z])", prompt):  # \nabla is none
        print(
            r"warning: the prompt holds a backslash and an n; a line break is $'..\n' in the shell",
            file=sys.stderr,
        )
    return [prompt]
