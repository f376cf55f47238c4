"""Train what a run is compared with, each in a folder of its own under it, and measure them all."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from qs import checkpoint
from qs.answers import Marked, Measured, marked, measure
from qs.build import choose_placement, load
from qs.config import Config
from qs.controls import (
    LENGTHS,
    OWN,
    REPLACED,
    Replaced,
    Rival,
    Row,
    rivals,
    row,
    with_seed,
    with_thought,
)
from qs.data import resolve as resolve_data
from qs.shards import TokenDataset
from qs.tokenizer import Tokenizer
from qs.training import step_generator

FOLDER, CONTROLS = "controls", "controls.json"  # in the folder of the run
RESULTS = "results.json"  # is there when a run is finished
SAME = "Same weights, other thoughts"
LENGTH = "Same weights, another thought length at evaluation"
TRAINED = "Trained on the same rows for the same number of steps"


class Job(NamedTuple):
    """One training: what, with which seed, and in which folder its run folder is made."""

    rival: Rival
    seed: int
    out: Path


def jobs(run: Path, seeds: int) -> list[Job]:
    """Everything that has to be trained to compare a run over several seeds.

    Args:
        run: a run that thinks.
        seeds: how many; the run's own is the first.

    Raises:
        ValueError: the run does not think, or `seeds` is below 1.
    """
    config = checkpoint.read_config(run)
    if config.run.objective != "quiet" or seeds < 1:
        raise ValueError(
            f"--controls needs a run trained with --objective quiet and --seeds of 1 or more, got "
            f"{config.run.objective} and {seeds}"
        )
    settings = dataclasses.replace(config.run, eval_rows=0, save_every=0)
    config = dataclasses.replace(config, run=settings)
    found = []
    for seed in range(config.run.seed, config.run.seed + seeds):
        for rival in [Rival(OWN, config), *rivals(config)]:
            if rival.name != OWN or seed != config.run.seed:
                name = "".join(c if c.isalnum() else "-" for c in rival.name.lower())
                found.append(Job(rival, seed, run / FOLDER / f"{name}-seed-{seed}"))
    return found


def run_in(out: Path) -> Path | None:
    """The run folder that a job made, finished or not."""
    found = sorted(p.parent for p in out.glob(f"*/{checkpoint.CONFIG}"))
    return found[-1] if found else None


def train_all(todo: Sequence[Job], script: Path, at_once: int) -> None:
    """Train what is not trained yet, each job in a process of its own; finished ones are kept.

    Args:
        todo: jobs.
        script: train.py.
        at_once: processes; each gets its share of the cores.

    Raises:
        ValueError: a training failed.
    """
    missing = []
    for job in todo:
        found = run_in(job.out)
        if found is None or not (found / RESULTS).is_file():
            missing.append(job)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}

    def train(job: Job) -> None:
        config = with_seed(job.rival.config, job.seed)
        run = dataclasses.replace(config.run, out=str(job.out))
        flags = dataclasses.replace(config, run=run).to_args()
        found = run_in(job.out)
        if found is not None and checkpoint.saved_steps(found):
            flags = ["--resume", str(found)]
        command = [sys.executable, str(script), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(f"training {job.rival.name}, seed {job.seed}, failed: {last}")

    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(train, job) for job in missing]
        try:
            for done in tqdm(as_completed(waiting), "training", len(waiting), unit=" runs"):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def seconds(run: Path) -> float:
    """How long the steps of a run took."""
    config = checkpoint.read_config(run).run
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return sum(config.batch * config.seq / json.loads(line)["tokens_per_second"] for line in lines)


def measured(run: Path, config: Config, rows: int, replaced: Replaced = REPLACED[0]) -> Measured:
    """Measure the newest checkpoint of a run on the questions of its held-out text.

    Args:
        run: folder.
        config: how to think.
        rows: of held-out text, at most.
        replaced: whose thoughts to use.

    Raises:
        ValueError: the data does not say where its answers are.
    """
    folder = checkpoint.newest_step(run)
    text = questions(config, Tokenizer.load(folder), rows)
    quiet, _ = load(folder, config, choose_placement(config.run))
    size = config.run.micro_batch or config.run.batch
    return measure(
        quiet,
        text,
        (slice(start, start + size) for start in range(0, len(text.tokens), size)),
        step_generator(0, 0),
        replaced.change,
        replaced.fixed_weight,
        think=config.run.thinks,
    )


def questions(config: Config, tokenizer: Tokenizer, rows: int) -> Marked:
    """Held-out text of a run's data with its questions."""
    data = TokenDataset(resolve_data(config.run.data), "heldout")
    text = marked(data.folder, tokenizer, config.run.seq, rows)
    if text is None:
        raise ValueError(
            f"{data.folder}: expected world.json, which says where the answers are; controls are "
            "measured on text that python -m qs.synthetic made"
        )
    return text


def compare(run: Path, seeds: int, rows: int) -> dict[str, list[Row]]:
    """Measure a run, its thoughts replaced, other lengths of thought, and all that was trained.

    Args:
        run: folder; everything `jobs` names is trained.
        seeds: how many.
        rows: of held-out text, at most.

    Returns:
        The tables by title.
    """
    config = checkpoint.read_config(run)
    todo: dict[str, list[Job]] = {}
    for job in jobs(run, seeds):
        todo.setdefault(job.rival.name, []).append(job)
    own = [run, *(_finished(job) for job in todo.pop(OWN, []))]
    settings = [with_seed(config, config.run.seed + i) for i in range(seeds)]
    time = float(np.mean([seconds(r) for r in own]))
    lengths = sorted({*LENGTHS, config.thought.thoughts})
    bar = tqdm(total=len(REPLACED) + len(lengths) + len(todo), desc="measuring", unit=" rows")

    def mine(replaced: Replaced, n: int) -> list[Measured]:
        bar.update()
        thought = {"thoughts": n, "beta": config.thought.beta if n else 0.0}
        return [
            measured(r, with_thought(c, **thought), rows, replaced)
            for r, c in zip(own, settings, strict=True)
        ]

    same = []
    for replaced in REPLACED:
        sampled = replaced.change is None and replaced.fixed_weight != 0.0
        found = mine(replaced, config.thought.thoughts)
        trained = time if replaced.name == OWN else None
        same.append(row(replaced.name, found, sampled=sampled, seconds=trained))
    curve = [row(f"n = {n}", mine(REPLACED[0], n), sampled=n > 0) for n in lengths]
    others = [same[0]]
    for name, group in todo.items():
        folders = [_finished(job) for job in group]
        found = [
            measured(folder, with_seed(job.rival.config, job.seed), rows)
            for folder, job in zip(folders, group, strict=True)
        ]
        sampled = group[0].rival.sampled
        spent = float(np.mean([seconds(folder) for folder in folders]))
        others.append(row(name, found, group[0].rival.thinks, sampled, spent))
        bar.update()
    bar.close()
    return {SAME: same, LENGTH: curve, TRAINED: others}


def _finished(job: Job) -> Path:
    found = run_in(job.out)
    assert found is not None, "train_all went before"
    return found
