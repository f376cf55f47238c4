"""The ladder from Quiet-STaR to its heirs, one change a row, trained and set side by side.

The first rows walk from a run's own settings to RLP, each with one change more; the others change
one thing of the run, and what that rules out (`qs/studies/rows.py`). Every row has two trainings
with each seed: of as many optimiser steps as the run, and of as many floating-point operations,
where a step takes others. A training is a run of train.py in a folder of its own under the run;
what is finished stays, what was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qs import files
from qs.cli import listed, typed
from qs.config import Config
from qs.evaluation.heldout import HeldoutScore, other_change, run_scores
from qs.model import folders
from qs.model.config import ModelConfig, read_model_config
from qs.studies.control_runs import check_jobs, run_of, train_all, trained_by, trainings_told
from qs.studies.controls import BaselineRun, keep_comments
from qs.studies.rows import row_config
from qs.tables import Table, results_page
from qs.training.work import operations

FOLDER, LADDER, LADDER_PAGE = "ladder", "ladder.json", "ladder.md"  # of the run
STEPS, OPERATIONS = "At equal optimiser steps", "At equal floating-point operations"
SAME_COST = 0.02  # operations that differ by less are the same: no other training


@dataclass(frozen=True, eq=False)  # a key of dicts, whose own is one
class Rung:
    """A row: what it is called, and what differs from the run."""

    key: str  # of --only and of its folder
    title: str
    changes: dict[str, Any] = field(default_factory=dict)


def walk(*rungs: Rung) -> tuple[Rung, ...]:
    """Rungs that each keep the changes of those before them."""
    kept: dict[str, Any] = {}
    return tuple(Rung(r.key, r.title, kept := kept | r.changes) for r in rungs)


COOL, WARM = ({"sample_temperature": t, "policy_temperature": t} for t in (0.7, 1.0))
ALONE = {"likelihood_weight": 0.0, "beta": 1.0, "length_norm": True}
FAST = 3  # stages that think, each a token less; then one that does not

RUNGS = (
    *walk(
        Rung("quiet", "Quiet-STaR, the run"),
        Rung("others", "+ compared with the other thoughts", {"baseline": "others"}),
        Rung("average", "+ over a moving average's prediction", {"reference": "average"}),
        Rung("alone", "+ the thought alone", {"mix_weight": "one"}),
        Rung("reinforce", "+ no likelihood terms", ALONE),
        Rung("rlp", "+ K = 16: RLP", {"samples": 16, **COOL}),
    ),
    Rung("warm", "temperature 1", WARM),
    Rung("exact", "reward: all right or not", {"reward": "exact"}),
    Rung("probability", "reward: probability", {"reward": "probability"}),
    Rung("drawn", "thoughts that end themselves", {"end": "drawn"}),
    Rung("fast", "Fast Quiet-STaR", {"curriculum": "0"}),
    Rung("pause", "pause tokens", {"objective": "pause"}),
    Rung("plain", "plain training", {"objective": "plain"}),
)


KEYS = ",".join(rung.key for rung in RUNGS)


def rung_list(keys: str) -> list[Rung]:
    """Rows of the ladder, split at commas, in the ladder's order."""
    asked = listed(keys, KEYS.split(","))
    return [rung for rung in RUNGS if rung.key in asked]


def rung_config(rung: Rung, own: Config) -> Config:
    """The settings of a row, from those of the run; a curriculum begins with the run's n and m.

    Raises:
        ValueError: the run has no such row.
    """
    changes = dict(rung.changes)
    if "curriculum" in changes:
        n, m = own.thought.thoughts, own.thought.ahead
        lengths = (max(1, n - less) for less in range(FAST))
        changes["curriculum"] = ",".join([*(f"{length}-{m}" for length in lengths), "0"])
    return row_config(own, rung.key, changes)


def step_operations(config: Config, shape: ModelConfig) -> float:
    """Floating-point operations of a step, in the mean over the stages of a curriculum."""
    stages = [stage for _, stage in config.stages] or [config]
    return float(np.mean([sum(operations(stage, shape).values()) for stage in stages]))


Trainings = dict[str, dict[Rung, list[BaselineRun]]]
"""By table and row the training of each seed; one of the run's own cost stands in both tables."""


def trainings(run: Path, rungs: Sequence[Rung], seeds: int) -> Trainings:
    """What has to be trained for some rows, the run's own seed first.

    Raises:
        ValueError: the run does not think, or `seeds` is below 1.
    """
    own = files.read_config(run).changed(save_every=0)
    if own.run.objective != "quiet" or seeds < 1:
        raise ValueError(
            "ladder needs a run trained with --objective quiet and --seeds of 1 or more, got "
            f"{own.run.objective} and {seeds}"
        )
    shape = read_model_config(folders.resolve(own.run.weights))
    found: Trainings = {STEPS: {}, OPERATIONS: {}}
    for rung in rungs:
        config = rung_config(rung, own)
        cost = step_operations(config, shape) / step_operations(own, shape)
        least = max(1, len(config.stages))
        steps = {STEPS: own.run.steps, OPERATIONS: max(least, round(own.run.steps / cost))}
        if abs(cost - 1) < SAME_COST:
            steps[OPERATIONS] = own.run.steps
        for table, count in steps.items():
            name = rung.key if count == own.run.steps else f"{rung.key}-{count}"
            row = config.changed(steps=count)
            found[table][rung] = [
                BaselineRun(name, row.changed(seed=seed, out=_folder(run, name, seed)))
                for seed in range(own.run.seed, own.run.seed + seeds)
            ]
    return found


def kept_trainings(run: Path, rungs: Sequence[Rung], seeds: int) -> Trainings:
    """Those of some rows, of the run itself, and of every row and seed that was begun before."""
    names, first = {rung.key for rung in rungs} | {RUNGS[0].key}, files.read_config(run).run.seed
    names |= {path.name.partition("-")[0] for path in (run / FOLDER).glob("*-seed-*")}
    while any((run / FOLDER).glob(f"*-seed-{first + seeds}")):
        seeds += 1
    return trainings(run, [rung for rung in RUNGS if rung.key in names], seeds)


def _jobs(rows: Trainings, own: str) -> list[BaselineRun]:
    """Each training once, without that of the run itself, whose folder would be `own`."""
    every = [job for row in rows.values() for jobs in row.values() for job in jobs]
    return list({job.config.run.out: job for job in every if job.config.run.out != own}.values())


def _folder(run: Path, name: str, seed: int) -> str:
    return str(run / FOLDER / f"{name}-seed-{seed}")


def run_ladder(
    run: Path, rungs: Sequence[Rung], seeds: int, at_once: int, script: Path, command: str
) -> str:
    """Train the rows, seed by seed, and write the tables; what is trained already stays in them.

    Args:
        run: folder of a finished run that thinks; ladder.md and ladder.json are written into it
            after every seed.
        rungs: the rows.
        seeds: how many; the run's own is the first, and is the run itself.
        at_once: trainings at a time, each by `script`, which is train.py.
        command: what a person typed.

    Returns:
        The page.

    Raises:
        ValueError: the run cannot be compared, or a training failed.
    """
    rows = trainings(run, rungs, seeds)
    told = kept_trainings(run, rungs, seeds)
    config, page = files.read_config(run), ""
    first = config.run.seed
    own = _folder(run, RUNGS[0].key, first)
    jobs = _jobs(rows, own)
    check_jobs(run, _jobs(told, own))
    _scores(run)  # its rows are measured on the same text
    shape = read_model_config(folders.resolve(config.run.weights))

    def work(job: BaselineRun) -> float:
        steps = job.config.run.steps / config.run.steps
        return steps * step_operations(job.config, shape) / step_operations(config, shape)

    print(trainings_told(run, jobs, at_once, work))
    for seed in range(first, first + seeds):
        train_all([job for job in jobs if job.config.run.seed == seed], script, at_once)
        page = write_ladder(run, told, command)
    return page


class Line(NamedTuple):
    """A row of a table; lists have a number for each seed that is trained, None where it has none.

    Attributes:
        title: of the rung.
        steps: optimiser steps.
        operations: floating-point operations of a training, 10^12.
        gold: probability of the gold answer, with thoughts where there are any.
        off: the same with thoughts off.
        useful: share of thoughts that hold the steps.
        nll: at the answers, in nats.
        other: what training changed in the NLL of all other tokens, in nats a token.
    """

    title: str
    steps: int
    operations: float
    gold: list[float]
    off: list[float]
    useful: list[float | None]
    nll: list[float]
    other: list[float]


def write_ladder(run: Path, rows: Trainings, command: str) -> str:
    """Tables of what is trained so far, as ladder.json and ladder.md of the run."""
    shape = read_model_config(folders.resolve(files.read_config(run).run.weights))
    tables: dict[str, list[Line]] = {title: [] for title in rows}
    made: dict[Path, None] = {}  # each once, in order
    for title, row in rows.items():
        for rung, jobs in row.items():
            trained = [folder for job in jobs if (folder := _trained(run, job))]
            if trained:
                made |= dict.fromkeys(trained)
                tables[title].append(_line(rung.title, jobs[0].config, shape, trained))
    lines = {title: [line._asdict() for line in table] for title, table in tables.items()}
    files.write_json(run / LADDER, {"command": command, "tables": lines})
    about = f"Trained with {trained_by(list(made))}.\n"
    page = results_page("Ladder", command, about, [_table(*pair) for pair in tables.items()])
    keep_comments(run / LADDER_PAGE, page)
    return page


def read_ladder(run: Path) -> dict[str, list[Line]]:
    """The tables that `write_ladder` wrote.

    Raises:
        ValueError: they are damaged, or of another version.
    """
    path = run / LADDER
    try:
        tables = files.read_json(path)["tables"]
        return {title: [Line(**line) for line in tables[title]] for title in (STEPS, OPERATIONS)}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the tables of a ladder, found something else ({error!r}); run "
            f"{typed('evaluate.py ladder', run)} again"
        ) from None


def _trained(run: Path, job: BaselineRun) -> Path | None:
    """The folder of a training that has been measured after its last step."""
    own = files.read_config(run).run
    mine = job.config.run.out == _folder(run, RUNGS[0].key, own.seed)
    folder = run if mine else run_of(job)
    return folder if folder and files.read_results(folder).get("after") else None


def _scores(run: Path) -> tuple[HeldoutScore, HeldoutScore]:
    """Of a run's answers, before and after training.

    Raises:
        ValueError: they were not measured.
    """
    before, after = run_scores(run)
    if not before or not after or not after.answers:
        raise ValueError(
            f"{run / files.RESULTS}: expected scores of answers before and after training; this is "
            "measured on text that python -m qs.data synthetic made, with --eval-rows above 0"
        )
    return before, after


def _line(title: str, config: Config, shape: ModelConfig, trained: Sequence[Path]) -> Line:
    seeds = []
    for folder in trained:
        before, after = _scores(folder)
        answers, change = after.answers[-1], other_change(before, after)
        gold, nll = answers.gold_mix, answers.nll_mix
        if not after.thinks:
            gold, nll = answers.gold_base, answers.nll_base
        seeds.append((gold, answers.gold_base, answers.useful, nll, change and change.mean))
    cost = step_operations(config, shape) * config.run.steps / 1e12
    return Line(title, config.run.steps, cost, *map(list, zip(*seeds, strict=True)))


HEADS = (
    *("", "seeds", "steps", "10^12 operations", "gold answer probability", "thoughts off"),
    *("thoughts that hold the steps", "NLL at the answers", "NLL of other tokens, change"),
)


def _table(title: str, lines: Sequence[Line]) -> Table:
    def cell(values: Sequence[float | None], spec: str = ".3f") -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        mean = f"{np.mean(known):{spec}}"
        return mean if len(known) == 1 else f"{mean} ({min(known):{spec}} to {max(known):{spec}})"

    rows = [
        (
            *(line.title, str(len(line.gold)), str(line.steps), f"{line.operations:.2f}"),
            *map(cell, (line.gold, line.off, line.useful, line.nll)),
            cell(line.other, "+.4f"),
        )
        for line in lines
    ]
    return Table(title, HEADS, rows, ["Mean over seeds, in brackets the smallest and the largest."])
