"""STaR as a run: rounds of rationales and training from the original model, in a run folder.

    round_01/generated.jsonl     attempts, with the prompts that made them
    round_01/rationalized.jsonl  the failures again, with the answer as a hint
    round_01/examples.jsonl      what is trained on
    round_01/heldout.jsonl       attempts at held-out problems after training
    step_000001/                 the model after round 1; only the last round's is kept

round_00/ holds what the untrained model writes for held-out problems. Attempts are appended as
batches are finished, so that a kill loses at most the batch in hand, and the same command then
makes the same examples. Training of a round begins anew.

Source: STaR (arXiv:2203.14465), algorithm 1 and section 4.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qs import files
from qs.config import Config
from qs.data.completions import Completions
from qs.files import JsonLines, environment
from qs.inference.decoding import Decoding
from qs.model import weights
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import choose_placement, load, read
from qs.star.round import (
    Attempt,
    Example,
    accuracy,
    answers,
    attempt,
    attempts,
    batches,
    examples,
    failures,
)
from qs.star.tasks import Problem, task_of
from qs.training import checkpoint
from qs.training.step import make_optimizer, train_step

GENERATED, RATIONALIZED, EXAMPLES, HELDOUT = (
    f"{name}.jsonl" for name in ("generated", "rationalized", "examples", "heldout")
)


class Stopped(Exception):
    """The run was asked to stop; everything finished is on the disk."""


class StarRun:
    """A run of STaR.

    Args:
        folder: of the run; None: a new one.
        config: settings; `run.weights` is the original model.
        name: of a new run folder.

    Raises:
        ValueError: something is missing or does not fit.
    """

    def __init__(self, folder: Path | None, config: Config, name: str = ""):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("--objective star runs in one process: start it without torchrun")
        self.start = weights.resolve(config.run.weights)
        # every batch of rationales has another shape: compiled layers would be compiled for each
        run = dataclasses.replace(config.run, weights=str(self.start), compile=False)
        self.config = dataclasses.replace(config, run=run)
        self.placement = choose_placement(run)
        shape, self.tokenizer = read(self.start, self.config)
        self.task = task_of(config.star, run.seed)
        self.stop: signal.Signals | None = None
        self.folder = folder or files.new_run(run.out, name, self.config)
        self.log = files.JsonLines(self.folder / files.LOG)
        if not self.log.path.is_file():
            self.log.append([environment(str(self.placement))])
        print(f"model   {self.start}: {shape.layers} layers")
        print(f"task    {config.star.task}: {len(self.task.heldout)} held-out problems")
        print(f"device  {self.placement}")
        print(f"run     {self.folder}")

    def go(self) -> list[dict[str, Any]]:
        """Do the rounds that are not done, and return a record of each, the untrained model first.

        Raises:
            Stopped: after SIGINT or SIGTERM.
            ValueError: a round kept nothing.
        """
        records = [r for r in files.read_log(self.folder) if "round" in r]
        if records:
            print("\n".join(["", *rounds_table(records)]), flush=True)
        for number in range(len(records), self.config.star.rounds + 1):
            if number == 0:
                quiet, record = self._load(self.start), {"round": 0}
            else:
                quiet, record = self._round(number)
            record |= self._evaluate(quiet, number)
            self.log.append([record])
            records.append(record)
            rows = rounds_table(records)
            print("\n".join(["", *rows] if number == 0 else rows[-1:]), flush=True)
            self._forget(number)
        return records

    def _forget(self, number: int) -> None:
        """Remove the models of rounds before this one."""
        for step, folder in files.saved_steps(self.folder).items():
            if step < number:
                shutil.rmtree(folder)

    def steps(self, number: int) -> int:
        """Optimiser steps of a round."""
        return round(self.config.run.steps * self.config.star.growth ** (number - 1))

    def _load(self, folder: Path) -> QuietStar:
        return load(folder, self.config, self.placement)[0]

    def _before(self, number: int) -> QuietStar:
        """The model that generates in a round: the last round's, the original one in round 1."""
        return self._load(self.folder / f"step_{number - 1:06d}" if number > 1 else self.start)

    def _round(self, number: int) -> tuple[QuietStar, dict[str, Any]]:
        """Generate, filter, rationalise, train from the original model, save."""
        done = self.folder / f"step_{number:06d}"
        if done.is_dir():  # stopped while it was evaluated
            return self._load(done), files.read_json(done / files.TRAINER)
        began = time.perf_counter()
        problems = self.task.training(number)
        record: dict[str, Any] = {"round": number, "problems": len(problems)}
        if self.config.star.learn == "answers":
            found = answers(problems)
        else:
            found, counts = self._rationales(number, problems)
            record |= counts
        self._write(number, found)
        record["examples"] = len(found)
        record["generating_seconds"] = time.perf_counter() - began
        if not found:
            raise ValueError(
                f"round {number}: expected right answers to train on, found none among "
                f"{len(problems)} problems (what was written is in {self._of(number)}): take a "
                "model that gets some right, or more --problems, --shots or --rationale-tokens"
            )
        quiet = self._load(self.start)
        record |= self._train(quiet, found, number)
        self._save(quiet, number, record)
        return quiet, record

    def _of(self, number: int) -> Path:
        """Where a round's attempts and examples are."""
        return self.folder / f"round_{number:02d}"

    def _write(self, number: int, found: Sequence[Example]) -> None:
        """Write a round's examples, whole or not at all."""
        path = self._of(number) / EXAMPLES
        path.parent.mkdir(exist_ok=True)
        JsonLines(path).rewrite([dataclasses.asdict(e) for e in found])

    def _rationales(
        self, number: int, problems: Sequence[Problem]
    ) -> tuple[list[Example], dict[str, int]]:
        """Every kept rationale of a round, and what was counted."""
        folder, quiet = self._of(number), self._before(number)
        made = self._attempts(quiet, folder / GENERATED, problems, number)
        counts = {
            "too_long": sum(a.rationale is None for a in made),
            "kept": sum(a.kept for a in made),
        }
        if self.config.star.rationalize:
            failed = failures(problems, made)
            hinted = self._attempts(quiet, folder / RATIONALIZED, failed, number, hint=True)
            counts |= {
                "rationalized": len(failed),
                "rationalized_kept": sum(a.kept for a in hinted),
            }
            made = [*made, *hinted]
        counts["generated_tokens"] = sum(a.tokens for a in made)
        return examples(problems, made), counts

    def _attempts(
        self,
        quiet: QuietStar,
        path: Path,
        problems: Sequence[Problem],
        number: int,
        hint: bool = False,
        temperature: float | None = None,
    ) -> list[Attempt]:
        """Attempts at all problems: read what is there, make and append the rest."""
        star, lines = self.config.star, JsonLines(path)
        made = [attempt(line, str(path)) for line in lines.records()]
        # whole batches only: a batch is attempted as it was
        ends = list(itertools.accumulate(map(len, batches(problems, star.rationale_batch))))
        skip = sum(end <= len(made) for end in ends)
        made = made[: ends[skip - 1] if skip else 0]
        if [a.id for a in made] != [p.id for p in problems[: len(made)]]:
            raise ValueError(
                f"{path}: expected attempts at the problems of this run, found others; are the "
                "question files the same? start a new run"
            )
        if path.is_file():
            lines.rewrite(lines.records()[: len(made)])
        drawn = star.rationale_temperature if temperature is None else temperature
        decoding = Decoding(max_tokens=star.rationale_tokens, temperature=drawn, think_when="never")
        seed = self.config.run.seed * 1000 + number
        label = f"round {number}, {path.stem}"
        with tqdm(total=len(problems), desc=label, unit=" problems", leave=False) as bar:
            bar.update(len(made))
            for batch in attempts(
                quiet,
                self.tokenizer,
                self.task,
                problems,
                decoding,
                seed,
                hint,
                star.rationale_batch,
                skip,
            ):
                lines.append([dataclasses.asdict(a) for a in batch])
                made += batch
                bar.update(len(batch))
                bar.set_postfix_str(f"{sum(a.kept for a in made)} right")
                self._pause()
        return made

    def _train(self, quiet: QuietStar, found: Sequence[Example], number: int) -> dict[str, Any]:
        """Train the original model on a round's examples."""
        began, run = time.perf_counter(), self.config.run
        steps = self.steps(number)
        config = dataclasses.replace(self.config, run=dataclasses.replace(run, steps=steps))
        data = Completions(
            [(e.prompt, e.completion) for e in found], self.tokenizer, run.seq, run.seed
        )
        optimizer = make_optimizer(quiet, config.optim)
        device, tokens, skipped, loss = self.placement.device, 0, 0, 0.0
        bar = tqdm(range(steps), f"round {number}, training", unit="step", leave=False)
        for step, batch in zip(bar, data.batches(run.batch), strict=False):
            text, documents, counted = (x.to(device) for x in batch)
            step_record = train_step(
                quiet, optimizer, text, documents, config, step, False, counted=counted
            )
            tokens += int((batch.documents >= 0).sum())
            skipped += int(step_record["skipped"])
            loss = step_record["nll_base"]
            bar.set_postfix_str(f"nll {loss:.3f}")
            self._pause()
        if skipped == steps or not all(p.isfinite().all() for p in quiet.model.parameters()):
            raise ValueError(
                f"round {number}: {skipped} of {steps} steps had a loss or gradient that is not "
                "finite, or left such parameters; lower --lr or use --dtype float32"
            )
        return {
            "examples_too_long": data.too_long,
            "steps": steps,
            "skipped": skipped,
            "trained_tokens": tokens,
            "nll": loss,
            "training_seconds": time.perf_counter() - began,
        }

    def _save(self, quiet: QuietStar, number: int, record: dict[str, Any]) -> None:
        parameters = checkpoint.gathered(dict(quiet.named_parameters()))

        def fill(folder: Path) -> None:
            shape = quiet.model.config
            checkpoint.save_model(folder, shape, parameters, self.config, self.start)
            files.write_json(folder / files.TRAINER, record)

        files.save_step(self.folder, number, fill)

    def _evaluate(self, quiet: QuietStar, number: int) -> dict[str, Any]:
        """Accuracy on held-out problems, greedily decoded."""
        began = time.perf_counter()
        path = self._of(number) / HELDOUT
        made = self._attempts(quiet, path, self.task.heldout, number, temperature=0.0)
        seconds = time.perf_counter() - began
        return {"accuracy": accuracy(made), "heldout_seconds": seconds}

    def _pause(self) -> None:
        if self.stop is not None:
            raise Stopped


def rounds_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Rounds of STaR: what was kept, and accuracy on held-out problems by group, in %."""
    groups = list(records[0]["accuracy"])
    heads = ("round", "problems", "kept", "hinted", "kept", "steps", "minutes", *groups)
    widths = [max(8, len(head)) for head in heads]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = [line(heads)]
    for record in records:
        seconds = sum(value for name, value in record.items() if name.endswith("_seconds"))
        names = ("round", "problems", "kept", "rationalized", "rationalized_kept", "steps")
        cells = [str(record.get(name, "-")) for name in names] + [f"{seconds / 60:.1f}"]
        cells += [f"{100 * record['accuracy'][group]:.1f}" for group in groups]
        lines.append(line(cells))
    return lines
