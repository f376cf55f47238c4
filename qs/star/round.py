"""STaR, one round: generate rationales, keep the right ones, rationalise the failures. No training.

    1. generate      a rationale and an answer for each problem
    2. filter        keep those whose answer is right
    3. rationalise   the failures again, with the right answer as a hint; keep those that reach it
    4. examples      question and completion of everything kept, without hint or worked examples

Given model, problems and seed a round is deterministic, whatever it is interrupted by: attempts are
made a batch of problems at a time, and problems draw by numbers of their own.

Source: STaR (arXiv:2203.14465), algorithm 1.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qs.data.answers import complete_part
from qs.data.prompts import cut
from qs.inference.decoding import Decoding
from qs.inference.write import Written, write
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.star.tasks import Problem, Task


@dataclass(frozen=True)
class Attempt:
    """What a model wrote for a problem. A line of `generated.jsonl` and `rationalized.jsonl`."""

    id: str  # of the problem, as are group and gold
    group: str
    gold: str
    hint: bool  # whether the answer was in the prompt
    prompt: str  # what was asked
    # what was written, answer included, up to a stop; of what was cut off and kept only what is
    # complete; None: no room for it
    rationale: str | None
    answer: str | None  # what it comes to
    kept: bool  # whether that is right, and no hint is quoted
    tokens: int  # generated, those of thoughts among them


@dataclass(frozen=True)
class Example:
    """What is trained on. A line of `examples.jsonl`."""

    id: str  # of the problem
    hint: bool  # whether the rationale was made with a hint
    made_by: str | None  # the prompt that made it; None: it is the answer alone
    prompt: str  # the question, no target of the loss
    completion: str  # rationale and answer


def generate_rationales(
    quiet: QuietStar,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    decoding: Decoding,
    seed: int,
    hint: bool = False,
    size: int = 32,
    done: int = 0,
) -> Iterator[list[Attempt]]:
    """Steps 1 and 2, or 3: rationales, `size` at a time, of at most `decoding.max_tokens`.

    With `hint` the answer is in the prompt. The first `done` problems, which make whole batches,
    have their attempts already.
    """
    for first in range(done, len(problems), size):
        batch = problems[first : first + size]
        prompts = [problem.hinted if hint else problem.prompt for problem in batch]
        ids = [tokenizer.prompt(prompt) for prompt in prompts]
        numbers = range(first, first + len(batch))
        written = write(quiet, tokenizer, ids, decoding, seed, task.stops, numbers=numbers)
        yield [
            judge(task, problem, hint, prompt, text)
            for problem, prompt, text in zip(batch, prompts, written, strict=True)
        ]


def judge(
    task: Task, problem: Problem, hint: bool, prompt: str, written: Written | None
) -> Attempt:
    """Keep what was written if its answer is right and it quotes no hint.

    `hint` says whether the prompt had the answer; `written` is None where it left no room. Of what
    was cut off an answer is read only if no other could have followed, and kept is what it was read
    from: EOS is learnt behind it, never within a sentence.
    """
    text = answer = None
    kept = False
    if written is not None:
        text = cut(written.text, task.stops)
        complete = text if written.whole else complete_part(text)
        answer = problem.read(complete)
        kept = answer == problem.gold and not any(mark in text for mark in task.forbidden)
        text = complete if kept else text
    return Attempt(
        id=problem.id,
        group=problem.group,
        gold=problem.gold,
        hint=hint,
        prompt=prompt,
        rationale=text,
        answer=answer,
        kept=kept,
        tokens=sum(token.generated for token in written.tokens) if written else 0,
    )


def failures(problems: Sequence[Problem], first: Sequence[Attempt]) -> list[Problem]:
    """Problems that were answered wrongly, to be rationalised; those that did not fit are not."""
    pairs = zip(problems, first, strict=True)
    return [p for p, a in pairs if not a.kept and a.rationale is not None]


def kept_examples(problems: Sequence[Problem], made: Sequence[Attempt]) -> list[Example]:
    """Step 4: every kept rationale as it is stored, in the order of the round's problems.

    `made` are attempts with and without hints, at most one of them kept for each problem.
    """
    kept = {attempt.id: attempt for attempt in made if attempt.kept}
    return [
        Example(p.id, a.hint, a.prompt, p.question, a.rationale or "")
        for p in problems
        if (a := kept.get(p.id))
    ]


def answer_examples(problems: Sequence[Problem]) -> list[Example]:
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
