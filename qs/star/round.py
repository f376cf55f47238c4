"""STaR, one round: generate rationales, keep the right ones, rationalise the failures. No training.

    1. generate      a rationale and an answer for each problem
    2. filter        keep those whose answer is right
    3. rationalise   the failures again, with the right answer as a hint; keep those that reach it
    4. examples      question and completion of everything kept, without hint or worked examples

Given model, problems and seed a round is deterministic, whatever it is interrupted by: attempts are
made a batch of problems at a time, and problems draw by numbers of their own.

Source: STaR (arXiv:2203.14465), algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qs.config import check_names
from qs.data.prompts import cut
from qs.inference.decoding import Decoding
from qs.inference.generate import generate
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.star.tasks import Problem, Task


@dataclass(frozen=True)
class Attempt:
    """What a model wrote for a problem. A line of `generated.jsonl` and `rationalized.jsonl`.

    Attributes:
        id, group, gold: of the problem.
        hint: whether the answer was given as a hint.
        prompt: that made it.
        rationale: what was written, answer included, up to a stop; None: the prompt did not fit.
        answer: what it comes to, or None.
        kept: whether that is right, and no hint is quoted.
        tokens: generated.
    """

    id: str
    group: str
    gold: str
    hint: bool
    prompt: str
    rationale: str | None
    answer: str | None
    kept: bool
    tokens: int


@dataclass(frozen=True)
class Example:
    """What is trained on. A line of `examples.jsonl`.

    Attributes:
        id: of the problem.
        hint: whether the rationale was made with a hint.
        made_by: the prompt that made it; None: it is the answer alone.
        prompt: the question, no target of the loss.
        completion: rationale and answer.
    """

    id: str
    hint: bool
    made_by: str | None
    prompt: str
    completion: str


def batches(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    """Problems in the groups that they are attempted in."""
    return [problems[i : i + size] for i in range(0, len(problems), size)]


def attempts(
    quiet: QuietStar,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    decoding: Decoding,
    seed: int,
    hint: bool = False,
    size: int = 32,
    skip: int = 0,
) -> Iterator[list[Attempt]]:
    """Steps 1 and 2, or 3: rationales, a batch at a time.

    Args:
        quiet: the model.
        tokenizer: that goes with it.
        task: stops and what gives a hint away.
        problems: all of them.
        decoding: how to draw; `max_tokens` bounds a rationale.
        seed: of the draw.
        hint: ask with the answer as a hint.
        size: problems at a time.
        skip: batches that are done already.
    """
    for number, batch in enumerate(batches(problems, size)):
        if number < skip:
            continue
        asked = [problem.hinted if hint else problem.prompt for problem in batch]
        texts = _write(quiet, tokenizer, task, asked, decoding, seed, number * size)
        yield [
            _attempt(task, problem, hint, prompt, *text)
            for problem, prompt, text in zip(batch, asked, texts, strict=True)
        ]


def _attempt(
    task: Task, problem: Problem, hint: bool, prompt: str, text: str | None, tokens: int
) -> Attempt:
    answer = None if text is None else problem.read(text)
    leaked = text is not None and any(mark in text for mark in task.forbidden)
    return Attempt(
        id=problem.id,
        group=problem.group,
        gold=problem.gold,
        hint=hint,
        prompt=prompt,
        rationale=text,
        answer=answer,
        kept=answer == problem.gold and not leaked,
        tokens=tokens,
    )


def _write(
    quiet: QuietStar,
    tokenizer: Tokenizer,
    task: Task,
    prompts: Sequence[str],
    decoding: Decoding,
    seed: int,
    first: int,
) -> list[tuple[str | None, int]]:
    """What follows each prompt, up to a stop, and how many tokens; None where it does not fit."""
    ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
    fit = [i for i, row in enumerate(ids) if len(row) < quiet.model.config.max_positions]

    def ended(row: int, said: list[int]) -> bool:
        return any(stop in tokenizer.decode(said[-8:]) for stop in task.stops)

    results = generate(
        quiet,
        [ids[i] for i in fit],
        decoding,
        seed,
        stop=ended if task.stops else None,
        numbers=[first + i for i in fit],
    )
    found: list[tuple[str | None, int]] = [(None, 0)] * len(prompts)
    for i, result in zip(fit, results, strict=True):
        # with the prompt's last token, or a leading space would be lost
        before = tokenizer.decode(ids[i][-1:])
        text = tokenizer.decode([ids[i][-1], *result.text_ids])[len(before) :]
        found[i] = cut(text, task.stops), len(result.tokens)
    return found


def attempt(line: dict[str, Any], where: str) -> Attempt:
    """Read back a line that holds an attempt.

    Raises:
        ValueError: it holds anything else; `where` names the file.
    """
    check_names(where, line, {field.name for field in fields(Attempt)})
    return Attempt(**line)


def failures(problems: Sequence[Problem], first: Sequence[Attempt]) -> list[Problem]:
    """Problems that were answered wrongly, to be rationalised; those that did not fit are not."""
    return [
        p for p, a in zip(problems, first, strict=True) if not a.kept and a.rationale is not None
    ]


def examples(problems: Sequence[Problem], made: Sequence[Attempt]) -> list[Example]:
    """Step 4: every kept rationale as it is stored, in the order of the problems.

    Args:
        problems: of the round.
        made: attempts with and without hints, at most one of them kept for each problem.
    """
    kept = {attempt.id: attempt for attempt in made if attempt.kept}
    return [
        Example(p.id, a.hint, a.prompt, p.question, a.rationale or "")
        for p in problems
        if (a := kept.get(p.id))
    ]


def answers(problems: Sequence[Problem]) -> list[Example]:
    """The control: every problem with its answer and no rationale."""
    return [Example(p.id, False, None, p.question, p.answer) for p in problems]


def accuracy(made: Sequence[Attempt]) -> dict[str, float]:
    """Share of right answers by group, sorted, and of all as "all"; what did not fit is wrong."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for attempt in made:
        for group in {attempt.group, "all"} - {""}:
            count[group] += 1
            right[group] += attempt.answer == attempt.gold
    order = sorted(count, key=lambda group: (group == "all", group))
    return {group: right[group] / count[group] for group in order}
