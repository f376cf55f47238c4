"""Train what a run is compared with, each in a folder of its own under it, and measure them all."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qs import files
from qs.cli import to_args, typed
from qs.config import RunConfig
from qs.data.dataset import TokenDataset, resolve_data
from qs.environment import environment
from qs.evaluation.heldout import Measured, heldout_data, measure_heldout, run_scores
from qs.evaluation.synthetic import heldout_text, rewarded
from qs.evaluation.tokens import TextRows
from qs.model import folders
from qs.model.tokenizer import Tokenizer
from qs.output import progress
from qs.quietstar.load import ROWS, choose_placement, load
from qs.settings import is_of
from qs.studies import controls
from qs.studies.controls import (
    EVERYTHING,
    OWN,
    UNREWARDED,
    UNTRAINED,
    BaselineRun,
    Control,
    ControlRow,
    Selection,
)
from qs.tables import results_page, words
from qs.training.checks import check_data, check_trains

NOTHING_MISSING = "nothing has to be trained"
FOLDER, CONTROLS, CONTROLS_PAGE = "controls", "controls.json", "controls.md"  # of the run


def run_controls(
    run: Path,
    selection: Selection,
    seeds: int,
    rows: int | None,
    at_once: int,
    script: Path,
    command: str,
) -> str:
    """Train what a run is compared with (what is trained already stays), and measure all of it.

    Args:
        run: folder of a finished run that thinks; the page returned is written into it.
        selection: what is trained and measured; names of files tell where it is not everything.
        seeds: how many; the run's own is the first.
        rows: of held-out text, at most; None: as many as the run itself reads.
        at_once: trainings at a time, each by `script`, which is train.py.
        command: what a person typed.

    Raises:
        ValueError: the run cannot be compared, or a training failed.
    """
    jobs = training_jobs(run, seeds, selection)
    check_jobs(run, jobs)
    config = files.read_config(run)
    rows = rows or config.run.eval_rows or ROWS
    tokenizer = Tokenizer(files.newest_step(run))
    text = text_with_answers(config.changed(eval_rows=rows).run, tokenizer)
    here = environment(str(choose_placement(config.run)))
    own = BaselineRun(OWN, config)
    planned = controls.control_tables(run, {own: run} | dict.fromkeys(jobs, run), selection)
    print(time_told(run, jobs, planned, len(text.tokens), at_once))
    trained = {own: run} | train_all(jobs, script, at_once)
    made_by = trained_by(list(trained.values()))
    tables = measure_controls(trained, text, selection)
    named = {title: [dataclasses.asdict(row) for row in table] for title, table in tables.items()}
    results = {"command": command, "environment": here, "trained": made_by, "tables": named}
    files.write_json(told_file(run / CONTROLS, selection), results)
    notes = controls.controls_notes(text, config.thought.sample_temperature)
    about = f"Measured with {words(here)}.\nTrained with {made_by}.\n\n{notes}"
    shown = [controls.controls_table(title, table) for title, table in tables.items()]
    page = results_page("Controls", command, about, shown)
    controls.keep_comments(told_file(run / CONTROLS_PAGE, selection), page)
    return page


def told_file(path: Path, selection: Selection) -> Path:
    """Where results of a selection are written, where those of everything are at `path`."""
    return path.with_stem(path.stem + selection.told)


def controls_missing(run: Path) -> bool:
    """Whether a run that can have `CONTROLS` has none: it thinks, about text of known answers."""
    if files.read_config(run).run.objective != "quiet" or (run / CONTROLS).is_file():
        return False
    _, after = run_scores(run)
    return after is not None and bool(after.answers)


def time_told(
    run: Path,
    jobs: Sequence[BaselineRun],
    tables: Mapping[str, Sequence[Control]],
    rows: int,
    at_once: int,
) -> str:
    """How long trainings that are missing, and measuring `rows` rows of text, take at a run's rate.

    Measuring a position, with one thought and without learning, takes less than training on it.
    """
    seconds, config = _training_seconds(run), files.read_config(run)
    controls_measured = {control for table in tables.values() for control in table}
    passes = sum(len(control.configs) for control in controls_measured)
    seq, trained_rows = config.run.seq, config.run.steps * config.run.batch
    share = config.thought.anchor_count(seq) / seq  # of positions that are trained on
    measuring = seconds * passes * rows / (trained_rows * share)
    return (
        f"{trainings_told(run, jobs, at_once)}; then {passes} measurements, at most "
        f"{measuring / 60:.1f} minutes"
    )


def trainings_told(
    run: Path,
    jobs: Sequence[BaselineRun],
    at_once: int,
    work: Callable[[BaselineRun], float] | None = None,
) -> str:
    """How long trainings that are missing take at a run's rate.

    `work`: floating-point operations of a training in those of the run; without it each counts as
    the run.
    """
    if not (missing := missing_of(jobs)):
        return NOTHING_MISSING
    minutes = _training_seconds(run) / 60
    total = minutes * sum(map(work, missing) if work else [1] * len(missing)) / at_once
    alike = " for as many floating-point operations" if work else ""
    return (
        f"{len(missing)} of {len(jobs)} trainings to be done, {at_once} at a time: if each takes "
        f"the {minutes:.1f} minutes of the run's own steps{alike}, {total:.0f} minutes"
    )


def training_jobs(run: Path, seeds: int, selection: Selection = EVERYTHING) -> list[BaselineRun]:
    """Everything that has to be trained to compare a run over several seeds, its own the first.

    The settings of each hold its seed and the folder that its run folder is made in.

    Raises:
        ValueError: the run does not think, or `seeds` is below 1.
    """
    config = files.read_config(run)
    if config.run.objective != "quiet" or seeds < 1:
        raise ValueError(
            f"controls needs a run trained with --objective quiet and --seeds of 1 or more, got "
            f"{config.run.objective} and {seeds}"
        )
    own = BaselineRun(OWN, config.changed(eval_rows=0, save_every=0))
    jobs = []
    for seed in range(config.run.seed, config.run.seed + seeds):
        for baseline in [own, *controls.baselines(own.config, selection)]:
            if baseline.name != OWN or seed != config.run.seed:
                slug = "".join(c if c.isalnum() else "-" for c in baseline.name.lower())
                out = str(run / FOLDER / f"{slug}-seed-{seed}")
                jobs.append(BaselineRun(baseline.name, baseline.config.changed(seed=seed, out=out)))
    return jobs


def run_of(job: BaselineRun) -> Path | None:
    """The run folder that a training made, finished or not."""
    folders = (path.parent for path in Path(job.config.run.out).glob(f"*/{files.CONFIG}"))
    # the one that got furthest; else the newest, unless a clock was set back
    return max(
        folders, key=lambda made: (max(files.saved_steps(made), default=0), made), default=None
    )


def missing_of(jobs: Iterable[BaselineRun]) -> list[BaselineRun]:
    """The trainings that are not finished."""
    return [job for job in jobs if not (made := run_of(job)) or not files.finished(made)]


def check_jobs(run: Path, jobs: Sequence[BaselineRun]) -> None:
    """Refuse what could not be compared, before hours of training.

    Raises:
        ValueError: the run is not finished, its data has changed, a training would train nothing,
            or its folder holds one with other settings or data.
    """
    config = files.read_config(run).run
    if not files.finished(run):
        raise ValueError(
            f"{run}: expected a finished run, with the checkpoint of step "
            f"{config.steps}; finish it with {typed('train.py', '--resume', run)}"
        )
    data = TokenDataset(resolve_data(config.data))
    check_data(run, files.made_by(run), data, "or train the run again")
    for job in jobs:
        try:
            check_trains(job.config)
        except ValueError as error:
            raise ValueError(f"{job}: {error}") from None
        made, out = run_of(job), job.config.run.out
        stored = job.config if made is None else files.read_config(made).changed(out=out)
        flags, wanted = to_args(stored), to_args(job.config)  # those that change something
        if flags != wanted:
            wrong = " ".join(flag for flag in flags if flag not in wanted) or "fewer flags"
            right = " ".join(flag for flag in wanted if flag not in flags) or "fewer flags"
            raise ValueError(
                f"{made}: expected the {job}, with {right}, found {wrong}; move {out} away to "
                "train it again"
            )
        if made is not None:
            check_data(made, files.made_by(made), data, f"or move {out} away to train it again")


def train_all(jobs: Sequence[BaselineRun], script: Path, at_once: int) -> dict[BaselineRun, Path]:
    """Train what is not trained yet by a `script`, and give the run folder of each job.

    At most `at_once` processes; each gets its share of the cores, or what OMP_NUM_THREADS says.

    Raises:
        ValueError: a training failed.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))} | os.environ

    def train(job: BaselineRun, made: Path | None) -> None:
        flags = to_args(job.config)
        if made is not None and files.saved_steps(made):
            flags = ["--resume", str(made)]
        command = [sys.executable, str(script), *flags]
        heard: dict[str, Any] = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with subprocess.Popen(command, env=environment, **heard) as process:
            running.append(process)
            if interrupted.is_set():
                process.terminate()
            said = process.communicate()[1]
        if process.returncode:
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(f"{job}, failed: {last}")

    missing, running = missing_of(jobs), list[subprocess.Popen[str]]()
    interrupted = threading.Event()
    if not missing:
        return {job: made for job in jobs if (made := run_of(job)) is not None}
    with ThreadPoolExecutor(at_once) as pool:  # whose map cancels what waits, where one fails
        trainings = pool.map(lambda job: train(job, run_of(job)), missing)
        try:
            list(progress(trainings, "training", len(missing), unit=" runs"))
        except KeyboardInterrupt:  # not heard by trainings where it was sent to this process alone
            pool.shutdown(wait=False, cancel_futures=True)
            interrupted.set()  # first: a training not yet in `running` ends itself
            for process in running:
                process.terminate()  # which saves and ends
            raise
    return {job: made for job in jobs if (made := run_of(job)) is not None}


def trained_by(runs: Sequence[Path]) -> str:
    """What trainings were made by and on, as their own logs say."""
    counts = Counter(words(files.made_by(run)) for run in runs)
    return "; ".join(f"{made} ({count} run{'s' * (count > 1)})" for made, count in counts.items())


def text_with_answers(run: RunConfig, tokenizer: Tokenizer) -> TextRows:
    """The held-out text that a run is measured on, with its questions.

    Raises:
        ValueError: its data does not say where the answers are, or another tokenizer prepared it.
    """
    data = heldout_data(run, tokenizer)
    text = heldout_text(data, tokenizer, run.seq, run.eval_rows)
    if text.questions is None:
        raise ValueError(
            f"{data.folder}: expected world.json, which says where the answers are; this is "
            "measured on text that python -m qs.data synthetic made"
        )
    return text


def measure_controls(
    trained: Mapping[BaselineRun, Path], text: TextRows, selection: Selection = EVERYTHING
) -> dict[str, list[ControlRow]]:
    """Rows of tables, by title: a run, its thoughts replaced, other lengths, and what was trained.

    The run's own folder is the first that was `trained`; the text has questions.
    """
    own = next(iter(trained))
    steps = {job: files.newest_step(run) for job, run in trained.items()}
    before = folders.resolve(own.config.run.weights)
    tables = controls.control_tables(before, steps, selection)
    measured: dict[Control, list[Measured]] = {row: [] for rows in tables.values() for row in rows}
    for control, by_seed in progress(measured.items(), "measuring", unit=" rows"):
        change, fixed_weight = control.intervention.change, control.intervention.fixed_weight
        for folder, config in zip(control.checkpoints, control.configs, strict=True):
            quiet, _ = load(folder, config, choose_placement(config.run))
            by_seed.append(measure_heldout(quiet, text, config, "", change, fixed_weight))
    references = {control.name: measured[control] for control in tables[controls.TRAINED]}
    untrained, unrewarded = references[UNTRAINED], references.get(UNREWARDED, ())

    def row(control: Control) -> ControlRow:
        line = controls.control_row(
            control,
            measured[control],
            before=() if control.name == UNTRAINED else untrained,
            unrewarded=() if control.name in (UNTRAINED, UNREWARDED) else unrewarded,
        )
        if not control.trained:
            return line
        config = control.configs[0]
        seconds = float(np.mean([_training_seconds(c.parent) for c in control.checkpoints]))
        explores = config.run.objective == "quiet" and config.thought.beta > 0
        share = rewarded(text, config.thought.ahead) if explores else None
        return dataclasses.replace(line, seconds=seconds, rewarded=share)

    return {title: [row(control) for control in table] for title, table in tables.items()}


def _training_seconds(run: Path) -> float:
    """How long the steps of a run took, as its log says."""
    config = files.read_config(run).run
    speeds = [step.get("tokens_per_second") for step in files.read_log(run)]
    if not (known := [speed for speed in speeds if is_of(speed, float) and speed > 0]):
        raise ValueError(f"{run / files.LOG}: expected tokens_per_second of steps, found none")
    return float(np.mean([config.batch * config.seq / speed for speed in known])) * config.steps
