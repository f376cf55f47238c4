"""What STaR asks: problems as texts, with and without a hint, and how answers are read.

Every task gives the same records, so that a round (`qs/star/round.py`) knows no task:

    arithmetic              sums of two numbers of 1 to 5 digits with a scratchpad
    commonsense_qa, gsm8k   the published files, with worked examples from qs/data/few_shot/
    world                   the bundled kind of text: `:` opens a working, the answer follows `;`

Source: STaR (arXiv:2203.14465), section 3 and 4.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qs.config import StarConfig
from qs.data import arithmetic, prompts, synthetic
from qs.data.arithmetic import LONGEST
from qs.data.dataset import Split
from qs.data.prompts import cut
from qs.data.question_sets import BenchmarkQuestion, parse_stated, read_questions


@dataclass(frozen=True)
class Problem:
    """One problem as the texts that a model reads or learns."""

    id: str  # unique in its set
    group: str  # by which accuracy is told ("3 digits"), or ""
    gold: str  # the answer, as `read` gives it
    question: str  # what is stored and trained on: never hinted nor with worked examples
    hint: str | None  # the question with the answer (the answer only); None: the task has no hints
    answer: str  # the completion that is the answer without a rationale
    read: Callable[[str], str | None]  # completion -> the answer it comes to, or None
    shown: tuple[str, str] = ("", "")  # worked examples without and with hints, held once for all

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
    """A source of problems."""

    training: Callable[[int], Sequence[Problem]]  # round number -> its problems
    heldout: Sequence[Problem]  # only ever measured on
    stops: tuple[str, ...] = ()  # texts before which a completion ends, if not by end of text
    forbidden: tuple[str, ...] = ()  # texts that only a hint holds; no rationale is kept with one


def task_of(config: StarConfig, seed: int) -> Task:
    """The task that settings name; `seed` decides which problems a round takes.

    Raises:
        ValueError: files of questions or worked examples are missing or damaged.
    """
    if config.task == "arithmetic":
        return _sums(config, seed)
    if config.task == "world":
        return _world(config, seed)
    return _question_set(config, seed)


def _rng(seed: int, number: int) -> random.Random:
    """The source of one round's choices."""
    return random.Random(f"star {seed} {number}")


# ---- sums ----------------------------------------------------------------------------------------
def _sums(config: StarConfig, seed: int) -> Task:
    steps = config.learn == "rationales"
    complete = arithmetic.scratchpad if steps else arithmetic.direct
    streams = [arithmetic.sums(seed, "train", digits) for digits in range(1, LONGEST + 1)]
    shown = [next(streams[i % LONGEST]) for i in range(config.shots)]

    def read(text: str) -> str | None:
        return arithmetic.parse_answer(text, steps)

    # not parted by empty lines: what follows a sum is then cut off without a trace of it
    plain = "".join(arithmetic.prompt(one) + complete(one) for one in shown)
    hinted = "".join(arithmetic.hinted_prompt(one) + complete(one) for one in shown)

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

    def training(number: int) -> list[Problem]:
        each = -(-config.problems // LONGEST)
        drawn = arithmetic.different_sums(f"{seed} {number}", "train", each)
        _rng(seed, number).shuffle(drawn)
        return [problem(one) for one in drawn[: config.problems]]

    heldout = arithmetic.different_sums("heldout", "heldout", config.test_problems)
    return Task(training, [problem(one) for one in heldout], ("Input:",))


# ---- the bundled kind of text --------------------------------------------------------------------
def _world(config: StarConfig, seed: int) -> Task:
    world = synthetic.World(written=0.0)
    worked = config.learn == "rationales"

    def read(text: str) -> str | None:
        if worked and synthetic.CLOSE not in text:
            return None
        return text.rpartition(synthetic.CLOSE)[2].strip() or None

    def problem(one: synthetic.Document) -> Problem:
        return Problem(
            id=one.question,
            group=one.kind,
            gold=one.answer.strip(),
            question=f"{one.question}\n{synthetic.OPEN if worked else ''}",
            hint=None,
            answer=one.answer,
            read=read,
        )

    def draw(seed: int, split: Split, count: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        documents = map(problem, synthetic.documents(world, seed, split))  # they never end
        while len(found) < count:
            one = next(documents)
            found.setdefault(one.id, one)
        return list(found.values())

    def training(number: int) -> list[Problem]:
        return draw(_rng(seed, number).randrange(2**31), "train", config.problems)

    return Task(training, draw(0, "heldout", config.test_problems))


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

    everything = read_questions(config.task, "train", config.questions)
    limit = config.test_problems or None
    heldout = read_questions(config.task, "heldout", config.questions, limit)
    count = min(config.problems or len(everything), len(everything))

    def training(number: int) -> list[Problem]:
        return [problem(q) for q in _rng(seed, number).sample(everything, count)]

    hints = (prompts.CHOICE_HINT.strip(), prompts.NUMBER_HINT.strip())
    return Task(training, [problem(q) for q in heldout], prompts.STOPS, hints)
