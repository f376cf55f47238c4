"""Models side by side on problems whose answers can be worked out: STaR, Quiet-STaR and the others.

Each is asked three times: for the answer alone, for the answer with a thought before every token,
and for a working that ends in the answer. On the bundled kind of text an answer is one token and
is told by its probability among the possible ones; sums are decoded and right or wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from qs import files
from qs.config import ONE_THOUGHT, PRESETS, StarConfig
from qs.evaluation.heldout import heldout, measured
from qs.evaluation.statistics import mean_interval
from qs.evaluation.synthetic import marked
from qs.inference.decoding import Decoding
from qs.quietstar.load import Opened, open_model
from qs.star.round import attempts
from qs.star.tasks import task_of
from qs.tables import Table

Comparable = Literal["world", "arithmetic"]
LIMITS = {"world": 16, "arithmetic": 140}  # tokens of a working, at most
ANSWER_LIMIT = 12  # tokens of an answer alone, at most


class Cost(NamedTuple):
    """What a run took, in tokens: of text or examples trained on, and generated in training."""

    trained: int
    generated: int


def cost(run: Path | None) -> Cost | None:
    """What a run took; None for a checkpoint that is no run."""
    if run is None:
        return None
    config = files.read_config(run)
    if config.run.objective == "star":
        records = [r for r in files.read_log(run) if "round" in r]
        trained, generated = (
            sum(r.get(name, 0) for r in records) for name in ("trained_tokens", "generated_tokens")
        )
        return Cost(trained, generated)
    rows, thought = config.run.steps * config.run.batch, config.thought
    sampled = thought.anchor_count(config.run.seq) * thought.samples * thought.thoughts
    return Cost(rows * config.run.seq, rows * sampled if config.sampled else 0)


class Way(NamedTuple):
    """How one way of asking went: (Q,) right or its probability, and tokens generated for each."""

    right: np.ndarray
    tokens: float


def asked(opened: Opened, task: Comparable, count: int, written: bool, think: bool) -> Way:
    """Answers to held-out problems: decoded greedily, workings sampled at temperature 1.

    Args:
        opened: the model.
        task: whose problems.
        count: of problems; of arithmetic, of each length.
        written: ask for a working that ends in the answer.
        think: a thought before every token.
    """
    config = StarConfig(
        task=task,
        learn="rationales" if written else "answers",
        test_problems=count,
        shots=0,
        rationalize=False,
    )
    found = task_of(config, 0)
    decoding = Decoding(
        max_tokens=LIMITS[task] if written else ANSWER_LIMIT,
        think_when="always" if think else "never",
        think_temperature=0.0,
        temperature=1.0 if written else 0.0,
    )
    batches = attempts(opened.quiet, opened.tokenizer, found, found.heldout, decoding, 0, size=100)
    made = [a for batch in batches for a in batch]
    tokens = np.mean([a.tokens for a in made]) * (1 + opened.config.thought.thoughts * think)
    return Way(np.array([float(a.answer == a.gold) for a in made]), float(tokens))


def known(opened: Opened, thinks: bool) -> tuple[Way, Way]:
    """Probability of the answers in held-out text of the bundled kind, without and with a thought.

    Without both times if the model does not think.

    Raises:
        ValueError: another tokenizer prepared the text.
    """
    run, data = opened.config.run, heldout(opened)
    text = marked(data.folder, opened.tokenizer, run.seq, run.eval_rows)
    if text is None:
        raise ValueError(f"{data.folder}: expected world.json, which says where the answers are")
    settings = dataclasses.replace(run, objective=run.objective if thinks else "plain")
    config = dataclasses.replace(opened.config, run=settings)
    found = measured(opened.quiet, text, config)
    return Way(found.gold[:, 0], 1), Way(found.gold[:, 1], 1 + opened.config.thought.thoughts)


def compare(models: Sequence[str], task: Comparable, count: int, device: str) -> Table:
    """One table of all models.

    Args:
        models: runs or checkpoints.
        task: what they are asked.
        count: problems; of arithmetic, of each length.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: a model cannot be opened, or knows another kind of text.
    """
    rows = []
    bundled = PRESETS["tiny"].run
    for model in tqdm(models, task, unit=" models"):
        run = {"device": device, "compile": False, "data": bundled.data, "seq": bundled.seq}
        opened = open_model(model, **ONE_THOUGHT, **run, eval_rows=bundled.eval_rows)
        thinks = opened.run is not None and opened.config.run.thinks
        if task == "world":
            alone, thought = known(opened, thinks)
        else:
            alone = asked(opened, task, count, written=False, think=False)
            thought = asked(opened, task, count, written=False, think=True) if thinks else alone
        written = asked(opened, task, count, written=True, think=False)
        spent = cost(opened.run)
        rows.append(
            (
                named(opened),
                *(f"{x:,}" if spent else "-" for x in spent or (0, 0)),
                cell(alone),
                cell(thought) if thinks else "-",
                cell(written),
            )
        )
    metric = "% probability of the answer among the possible ones" if task == "world" else "% right"
    return Table(
        f"{task}: {len(written.right)} problems answered in writing",
        ("model", "tokens trained", "tokens generated", "answer", "with thoughts", "written"),
        rows,
        (
            f"answer, with thoughts: {metric}, {len(alone.right)} problems; written: % right "
            "after a working sampled at temperature 1, as thoughts are; ±: half of a 95 % interval "
            "over problems; in brackets tokens generated for an answer, thoughts included",
            "tokens trained, tokens generated: in training, all rounds together",
        ),
    )


def named(opened: Opened) -> str:
    """A model in words."""
    if opened.run is None:
        return f"{opened.folder.name} (untrained)"
    config = opened.config.run
    seed = files.read_config(opened.run).run.seed
    return f"{config.objective}, seed {seed} ({opened.run.name})"


def cell(way: Way) -> str:
    """A mean in % with its interval, and what an answer costs."""
    half = mean_interval(way.right)
    spread = "" if half is None else f" ± {100 * half:.1f}"
    return f"{100 * way.right.mean():.1f}{spread} ({way.tokens:.0f})"
