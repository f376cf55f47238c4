"""Models side by side on problems whose answers can be worked out: STaR, Quiet-STaR and the others.

Each is asked three times: for the answer alone, for the answer with a thought before every token,
and for a working that ends in the answer. On the bundled kind of text an answer is one token and
is told by its probability among the possible ones; sums are decoded and right or wrong.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from qs import files
from qs.config import Config, StarConfig
from qs.data.arithmetic import LONGEST
from qs.evaluation.heldout import measure_heldout
from qs.evaluation.statistics import mean_estimate, rate_interval
from qs.inference.decoding import Decoding
from qs.model import folders
from qs.output import progress
from qs.presets import ANY_TEXT, PRESETS
from qs.quietstar.load import Opened, open_model
from qs.settings import is_of
from qs.star.records import round_records
from qs.star.round import generate_rationales
from qs.star.tasks import task_of
from qs.studies.control_runs import text_with_answers
from qs.tables import Table

Comparable = Literal["world", "arithmetic"]
WORKING_TOKENS = {"world": 16, "arithmetic": 140}  # at most
ANSWER_ALONE_TOKENS = 12  # of an answer alone, at most


class Cost(NamedTuple):
    """What a run took, in tokens: of text or examples trained on, and generated in training."""

    trained: int
    generated: int


def training_cost(checkpoint: Path) -> Cost:
    """What a run took until one of its checkpoints.

    Raises:
        ValueError: the checkpoint does not say where the run stood.
    """
    run, path = checkpoint.parent, checkpoint / files.TRAINER
    config, state = files.read_config(run), files.read_object(path)
    star = config.run.objective == "star"
    unit, most = ("round", config.star.rounds) if star else ("step", config.run.steps)
    done = state.get(unit)
    numbers = is_of([*state.values()], list[float | None])
    if not numbers or type(done) is not int or not 0 <= done <= most:
        found = f"found {str(state)[:60]}; get the checkpoint again"
        raise ValueError(f"{path}: expected numbers, and a {unit} from 0 to {most}, {found}")
    if star:  # the log has a checkpoint's own round only once that has been evaluated
        before = round_records(run, config.star.rounds)
        rounds = [*(record for record in before if record["round"] < done), state]
        trained = sum(record.get("trained_tokens") or 0 for record in rounds)
        generated = sum(record.get("generated_tokens") or 0 for record in rounds)
        return Cost(trained, generated)
    rows = config.run.batch
    generated = sum(rows * _generated(config.stage(step)[1]) for step in range(done))
    return Cost(done * rows * config.run.seq, generated)


def _generated(stage: Config) -> int:
    """Tokens of thoughts for a row of text, in one step."""
    thought = stage.thought
    sampled = thought.anchor_count(stage.run.seq) * thought.samples * thought.thoughts
    return sampled if stage.sampled else 0


class Answers(NamedTuple):
    """How one way of asking went: (Q,) right or its probability, and tokens generated for each."""

    right: np.ndarray
    tokens: float

    def __str__(self) -> str:
        estimate, ends = mean_estimate(100 * self.right), rate_interval(self.right)
        told = f"{estimate:.1f}"
        if ends:
            told = f"{estimate.mean:.1f}, {100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
        return f"{told} ({self.tokens:.0f})"


def decoded_answers(
    opened: Opened, task: Comparable, count: int, written: bool, think: bool
) -> Answers:
    """Answers to `count` held-out problems of a task (of arithmetic, of each length).

    `written` asks for a working that ends in the answer, at temperature 1, else the answer alone is
    decoded greedily; `think` has a thought before every token.
    """
    learn = "rationales" if written else "answers"
    config = StarConfig(task=task, learn=learn, test_problems=count, shots=0, rationalize=False)
    decoding = Decoding(
        max_tokens=WORKING_TOKENS[task] if written else ANSWER_ALONE_TOKENS,
        think_when="always" if think else "never",
        think_temperature=0.0,
        temperature=1.0 if written else 0.0,
    )
    model, source = (opened.quiet, opened.tokenizer), task_of(config, 0)
    batches = generate_rationales(*model, source, source.heldout, decoding, 0, size=100)
    made = [attempt for batch in batches for attempt in batch]
    right = np.array([float(attempt.answer == attempt.gold) for attempt in made])
    return Answers(right, float(np.mean([attempt.tokens for attempt in made])))


def _known_answers(opened: Opened) -> tuple[Answers, Answers]:
    """Probability of the answers in text of the bundled kind, without and with a thought."""
    config = opened.unasked
    try:
        text = text_with_answers(config.run, opened.tokenizer)
    except ValueError as error:
        raise ValueError(
            f"{opened.folder}: expected the tokenizer of the bundled text, which --on world asks "
            "about, found another one; leave this model out, or give --on arithmetic"
        ) from error
    answers = measure_heldout(opened.quiet, text, config).answers
    drawn = float(answers.length.mean()) if config.sampled else 0.0  # pauses are not
    return Answers(answers.gold_base, 1), Answers(answers.gold_mix, 1 + drawn)


def compare_models(models: Sequence[str], task: Comparable, count: int, device: str) -> Table:
    """One table of `models` (runs or checkpoints), asked `count` problems (of sums: each length).

    Raises:
        ValueError: a model cannot be opened, or knows another kind of text.
    """
    named = [str(folders.resolve(model)) for model in models]  # all, before the first is asked
    rows, tokenizers = [], set()
    bundled = PRESETS["tiny"].run
    text = {"data": bundled.data, "seq": bundled.seq, "eval_rows": bundled.eval_rows}
    for model in progress(named, task, unit=" models"):
        opened = open_model(model, **ANY_TEXT | text, device=device)
        tokenizers.add(opened.tokenizer.hash)
        if task == "world":
            alone, thought = _known_answers(opened)
        else:
            alone = thought = decoded_answers(opened, task, count, written=False, think=False)
            if opened.thinks:
                thought = decoded_answers(opened, task, count, written=False, think=True)
        written = decoded_answers(opened, task, count, written=True, think=False)
        name, cost = f"{opened.folder.name} (no run)", ("-", "-")
        if opened.run is not None:
            own, kept = files.read_config(opened.run).run, opened.run.name
            if opened.folder != files.newest_step(opened.run):
                kept += f"/{opened.folder.name}"
            name = f"{own.objective}, seed {own.seed} ({kept})"
            cost = tuple(f"{tokens:,}" for tokens in training_cost(opened.folder))
        thinking = str(thought) if opened.thinks else "-"
        rows.append((name, *cost, str(alone), thinking, str(written)))
    metric = "% probability of the answer among the possible ones" if task == "world" else "% right"
    notes = [
        f"answer, with thoughts: {metric}, {len(alone.right)} problems; written: % right "
        "after a working sampled at temperature 1; ±: half of a 95 % interval over problems; "
        "in brackets tokens generated for an answer, thoughts included",
        "tokens trained, tokens generated: in training until then, all rounds together; of "
        "thoughts n tokens each, where they end themselves too; -: no run, which would say",
    ]
    if task == "arithmetic":
        drawn = count * LONGEST
        again = drawn - len(written.right)
        notes.append(f"{drawn} sums drawn, {count} of each length; {again} came again, left out")
    else:
        notes.append("answer, with thoughts: all problems of the bundled held-out text")
    notes.append("of rates: both ends of Wilson's 95 % interval")
    if len(tokenizers) > 1:
        notes.append("these models have different tokenizers: their tokens are not the same amount")
    return Table(
        f"{task}: {len(written.right)} problems answered in writing",
        ("model", "tokens trained", "tokens generated", "answer", "with thoughts", "written"),
        rows,
        notes,
    )
