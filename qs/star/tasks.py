"""What STaR asks: problems as texts, with and without a hint, and how answers are read.

Every task gives the same records, so that a round (`qs/star/round.py`) knows no task:

    arithmetic              sums of two numbers of 1 to 5 digits with a scratchpad
    commonsense_qa, gsm8k   the published files, with worked examples from qs/prompts/
    world                   the bundled kind of text: `:` opens a working, the answer follows `;`

Source: STaR (arXiv:2203.14465), section 3 and 4.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qs.config import StarConfig
from qs.data import arithmetic, prompts, synthetic
from qs.data.dataset import Split
from qs.data.prompts import cut
from qs.data.question_sets import BenchmarkQuestion, parse_stated, read_questions

LONGEST = 5  # digits of a sum


@dataclass(frozen=True)
class Problem:
    """One problem as the texts that a model reads or learns.

    Attributes:
        id: unique in its set.
        group: by which accuracy is told ("3 digits"), or "".
        gold: the answer, as `read` gives it.
        question: what is stored and trained on: the question, never hinted nor with examples.
        hint: the question with the answer (the answer only) as a hint; None: the task has no hints.
        answer: the completion that is the answer without a rationale.
        read: completion -> the answer it comes to, or None.
        shown: worked examples, without and with hints; one object for all problems of a task.
    """

    id: str
    group: str
    gold: str
    question: str
    hint: str | None
    answer: str
    read: Callable[[str], str | None]
    shown: tuple[str, str] = ("", "")

    @property
    def prompt(self) -> str:
        """What is asked: worked examples, if any, and the question."""
        return self.shown[0] + self.question

    @property
    def hinted(self) -> str:
        """The same with hints.

        Raises:
            ValueError: the task has none.
        """
        if self.hint is None:
            raise ValueError("this task has no hints: pass --no-rationalize")
        return self.shown[1] + self.hint


@dataclass(frozen=True)
class Task:
    """A source of problems.

    Attributes:
        training: round number -> its problems.
        heldout: problems that are only ever measured on.
        stops: texts before which a completion ends, if not by end of text.
        forbidden: texts that only a hint holds; a rationale with one is not kept.
    """

    training: Callable[[int], Sequence[Problem]]
    heldout: Sequence[Problem]
    stops: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


def task_of(config: StarConfig, seed: int) -> Task:
    """The task that settings name.

    Args:
        config: task, numbers of problems and worked examples.
        seed: of generated problems, and of which ones a round takes.

    Raises:
        ValueError: files of questions or worked examples are missing or damaged.
    """
    if config.task == "arithmetic":
        return _sums(config, seed)
    if config.task == "world":
        return _world(config, seed)
    return _question_set(config, seed)


def rng(seed: int, number: int) -> random.Random:
    """The source of one round's choices."""
    return random.Random(f"star {seed} {number}")


# ---- sums ----------------------------------------------------------------------------------------
def _sums(config: StarConfig, seed: int) -> Task:
    steps = config.learn == "rationales"
    complete = arithmetic.scratchpad if steps else arithmetic.direct
    streams = [arithmetic.sums(seed, "train", digits) for digits in range(1, LONGEST + 1)]
    shown = [next(stream) for stream, _ in zip(itertools.cycle(streams), range(config.shots))]

    def read(text: str) -> str | None:
        return arithmetic.parse_answer(text, steps)

    # not parted by empty lines: what follows a sum is then cut off without a trace of it
    asks = (arithmetic.prompt, arithmetic.hinted_prompt)
    plain, hinted = ("".join(ask(one) + complete(one) for one in shown) for ask in asks)

    def problem(one: arithmetic.Sum) -> Problem:
        return Problem(
            id=f"{one.a}+{one.b}",
            group=f"{one.digits} digits",
            gold=one.answer,
            question=arithmetic.prompt(one),
            hint=arithmetic.hinted_prompt(one),
            answer=arithmetic.direct(one),
            read=read,
            shown=(plain, hinted),
        )

    def different(seed: int | str, split: Split, each: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        for digits in range(1, LONGEST + 1):
            for one in itertools.islice(arithmetic.sums(seed, split, digits), each):
                found.setdefault(f"{one.a}+{one.b}", problem(one))
        return list(found.values())

    def training(number: int) -> list[Problem]:
        found = different(f"{seed} {number}", "train", -(-config.problems // LONGEST))
        rng(seed, number).shuffle(found)
        return found[: config.problems]

    return Task(training, different("heldout", "heldout", config.test_problems), ("Input:",))


# ---- the bundled kind of text --------------------------------------------------------------------
def _world(config: StarConfig, seed: int) -> Task:
    world = synthetic.World(written=0.0)
    opened, closed = synthetic.OPEN, synthetic.CLOSE

    def read(text: str) -> str | None:
        if config.learn == "rationales" and closed not in text:
            return None
        return text.rpartition(closed)[2].strip() or None

    def problem(one: synthetic.Document) -> Problem:
        question = f"{one.question}\n"
        if config.learn == "rationales":
            question += opened
        return Problem(
            id=one.question,
            group=one.kind,
            gold=one.answer.strip(),
            question=question,
            hint=None,
            answer=one.answer,
            read=read,
        )

    def different(seed: int, split: Split, count: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        for one in synthetic.documents(world, seed, split):
            found.setdefault(one.question, problem(one))
            if len(found) == count:
                return list(found.values())
        raise AssertionError("documents never end")

    def training(number: int) -> list[Problem]:
        return different(rng(seed, number).randrange(2**31), "train", config.problems)

    return Task(training, different(0, "heldout", config.test_problems))


# ---- published questions -------------------------------------------------------------------------
def _question_set(config: StarConfig, seed: int) -> Task:
    examples = prompts.few_shot(config.task)[: config.shots]
    if config.learn == "answers":
        examples = [replace(e, rationale=prompts.closing(e)) for e in examples]
    shown = prompts.few_shot_prefix(examples), prompts.few_shot_prefix(examples, hint=True)

    def problem(one: BenchmarkQuestion) -> Problem:
        question, answer = prompts.example_text(one, prompts.closing(one))
        return Problem(
            id=one.id,
            group="",
            gold=one.gold,
            question=question,
            hint=prompts.question_prompt(one, hint=True),
            answer=answer,
            read=lambda text: parse_stated(one, cut(text, prompts.STOPS)),
            shown=shown,
        )

    def read(split: Split, limit: int) -> list[BenchmarkQuestion]:
        return read_questions(config.task, split, config.questions, limit or None)

    everything = read("train", 0)

    def training(number: int) -> list[Problem]:
        count = min(config.problems or len(everything), len(everything))
        return [problem(q) for q in rng(seed, number).sample(everything, count)]

    heldout = [problem(q) for q in read("heldout", config.test_problems)]
    hints = (prompts.CHOICE_HINT.strip(), prompts.NUMBER_HINT.strip())
    return Task(training, heldout, prompts.STOPS, hints)
