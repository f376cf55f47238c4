"""Train what a run is compared with, each in a folder of its own under it, and measure them all."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from qs import files
from qs.config import Config
from qs.data.dataset import TokenDataset, resolve_data
from qs.evaluation.heldout import measured
from qs.evaluation.synthetic import Marked, Measured, marked, rewarded
from qs.model import weights
from qs.model.tokenizer import Tokenizer
from qs.quietstar.load import choose_placement, load
from qs.studies.controls import (
    BEFORE,
    EVALUATED,
    OWN,
    REPLACED,
    UNREWARDED,
    Replaced,
    Rival,
    Row,
    rivals,
    row,
    with_seed,
    with_thought,
)

FOLDER, CONTROLS = "controls", "controls.json"  # in the folder of the run
SAME = "Same weights, other thoughts"
LENGTH = "Same weights, another thought length at evaluation"
TRAINED = "Trained on the same rows for the same number of steps"


class Job(NamedTuple):
    """One training: what, with which seed, and in which folder its run folder is made."""

    rival: Rival
    seed: int
    out: Path

    @property
    def config(self) -> Config:
        """All settings of the training."""
        config = with_seed(self.rival.config, self.seed)
        return dataclasses.replace(config, run=dataclasses.replace(config.run, out=str(self.out)))


def jobs(run: Path, seeds: int) -> list[Job]:
    """Everything that has to be trained to compare a run over several seeds.

    Args:
        run: a run that thinks.
        seeds: how many; the run's own is the first.

    Raises:
        ValueError: the run does not think, or `seeds` is below 1.
    """
    config = files.read_config(run)
    if config.run.objective != "quiet" or seeds < 1:
        raise ValueError(
            f"controls needs a run trained with --objective quiet and --seeds of 1 or more, got "
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
    found = sorted(p.parent for p in out.glob(f"*/{files.CONFIG}"))
    return found[-1] if found else None


def check(run: Path, todo: Sequence[Job], rows: int) -> None:
    """Refuse what could not be compared, before hours of training.

    Args:
        run: folder.
        todo: what `jobs` names.
        rows: of held-out text, at most.

    Raises:
        ValueError: the run is not finished, its text does not say where its answers are, or a
            folder holds a training with other settings.
    """
    config = files.read_config(run)
    if not files.finished(run):
        raise ValueError(
            f"{run}: expected a finished run, with the checkpoint of step {config.run.steps}; "
            f"finish it with python train.py --resume {run}"
        )
    questions(run, rows)
    for job in todo:
        if (found := run_in(job.out)) is None:
            continue
        wanted, stored = job.config.to_json(), files.read_config(found).to_json()
        wrong = [
            f"{name} {stored[group][name]} instead of {value}"
            for group, settings in wanted.items()
            for name, value in settings.items()
            if name != "out" and stored[group][name] != value
        ]
        if wrong:
            raise ValueError(
                f"{found}: expected the training {job.rival.name}, seed {job.seed}, found "
                f"{', '.join(wrong)}; move {job.out} away to train it again"
            )


def train_all(todo: Sequence[Job], script: Path, at_once: int) -> None:
    """Train what is not trained yet, each job in a process of its own; finished ones are kept.

    Args:
        todo: jobs.
        script: train.py.
        at_once: processes; each gets its share of the cores, or what OMP_NUM_THREADS says.

    Raises:
        ValueError: a training failed.
    """
    missing = []
    for job in todo:
        found = run_in(job.out)
        if found is None or not files.finished(found):
            missing.append(job)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))} | os.environ

    def train(job: Job) -> None:
        flags = job.config.to_args()
        found = run_in(job.out)
        if found is not None and files.saved_steps(found):
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


def trained_by(run: Path, seeds: int) -> str:
    """What the trainings that are compared were made by and on, as their own logs say."""
    runs = [run, *(_finished(job) for job in jobs(run, seeds))]
    first = [files.read_log(folder)[0] for folder in runs]
    found = Counter(", ".join(f"{key} {value}" for key, value in x.items()) for x in first)
    return "; ".join(f"{made} ({count} runs)" for made, count in found.items())


def seconds(run: Path) -> float:
    """How long the steps of a run took, as its log says."""
    config = files.read_config(run).run
    steps = files.read_log(run)[1:]
    return sum(config.batch * config.seq / step["tokens_per_second"] for step in steps)


def questions(run: Path, rows: int) -> Marked:
    """Held-out text of a run's data with its questions.

    Raises:
        ValueError: the data does not say where its answers are.
    """
    config, tokenizer = files.read_config(run), Tokenizer.load(files.newest_step(run))
    data = TokenDataset(resolve_data(config.run.data), "heldout")
    text = marked(data.folder, tokenizer, config.run.seq, rows)
    if text is None:
        raise ValueError(
            f"{data.folder}: expected world.json, which says where the answers are; controls are "
            "measured on text that python -m qs.data synthetic made"
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
    config, text = files.read_config(run), questions(run, rows)
    todo: dict[str, list[Job]] = {}
    for job in jobs(run, seeds):
        todo.setdefault(job.rival.name, []).append(job)
    own = [run, *(_finished(job) for job in todo.pop(OWN, []))]
    settings = [with_seed(config, config.run.seed + i) for i in range(seeds)]
    lengths = sorted({*EVALUATED, config.thought.thoughts})
    bar = tqdm(total=1 + len(REPLACED) + len(lengths) + len(todo), desc="measuring", unit=" rows")

    def found(
        checkpoints: Sequence[Path], configs: Sequence[Config], replaced: Replaced = REPLACED[0]
    ) -> list[Measured]:
        some = zip(checkpoints, configs, strict=True)
        done = [_measured(folder, config, text, replaced) for folder, config in some]
        bar.update()
        return done

    def cost(runs: Sequence[Path]) -> float:
        return float(np.mean([seconds(folder) for folder in runs]))

    own_steps = [files.newest_step(folder) for folder in own]
    before = found([weights.resolve(config.run.weights)] * seeds, settings)
    trained = {
        name: found(
            [files.newest_step(_finished(job)) for job in group],
            [job.config for job in group],
        )
        for name, group in todo.items()
    }
    pairs = {"before": before, "unrewarded": trained.get(UNREWARDED, ())}

    same = []
    for replaced in REPLACED:
        sampled = replaced.change is None and replaced.fixed_weight != 0.0
        extra = {}
        if replaced.name == OWN:
            extra = {"seconds": cost(own), "rewarded": _rewarded(config, text)}
        here = found(own_steps, settings, replaced)
        same.append(row(replaced.name, here, sampled=sampled, **extra, **pairs))
    curve = []
    for n in lengths:
        beta = config.thought.beta if n else 0.0
        here = found(own_steps, [with_thought(c, thoughts=n, beta=beta) for c in settings])
        curve.append(row(f"n = {n}", here, sampled=n > 0, **pairs))
    others = [row(BEFORE, before, sampled=config.sampled), same[0]]
    for name, group in todo.items():
        others.append(
            row(
                name,
                trained[name],
                group[0].rival.thinks,
                group[0].rival.sampled,
                cost([_finished(job) for job in group]),
                rewarded=_rewarded(group[0].config, text),
                before=before,
                unrewarded=() if name == UNREWARDED else pairs["unrewarded"],
            )
        )
    bar.close()
    return {SAME: same, LENGTH: curve, TRAINED: others}


def _measured(folder: Path, config: Config, text: Marked, replaced: Replaced) -> Measured:
    """Measure a checkpoint on the questions of held-out text, as `config` thinks."""
    quiet, _ = load(folder, config, choose_placement(config.run))
    return measured(quiet, text, config, "", replaced.change, replaced.fixed_weight)


def _rewarded(config: Config, text: Marked) -> float | None:
    """Share of the answers whose thoughts earn a reward; None without REINFORCE."""
    rewards = config.run.objective == "quiet" and config.thought.beta > 0
    return rewarded(text, config.thought.ahead) if rewards else None


def _finished(job: Job) -> Path:
    found = run_in(job.out)
    assert found is not None, "train_all went before"
    return found
