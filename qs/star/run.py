"""STaR as a run: rounds of rationales and training from the original model, in a run folder.

    round_01/generated.jsonl     attempts, with the prompts that made them
    round_01/rationalized.jsonl  the failures again, with the answer as a hint
    round_01/examples.jsonl      what is trained on
    round_01/heldout.jsonl       attempts at held-out problems after training
    step_000001/                 the model after round 1; --keep says how many are kept

round_00/ holds what the untrained model writes for held-out problems. Attempts are appended as
batches are finished, so that a kill loses at most the batch in hand, and the same command then
makes the same examples. Training of a round begins anew.

Source: STaR (arXiv:2203.14465), algorithm 1 and section 4.
"""

import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qs import files
from qs.config import PADDING, Config
from qs.data.completions import Completions
from qs.digests import write_digests
from qs.environment import environment
from qs.files import JsonLines
from qs.inference.decoding import Decoding
from qs.model import folders
from qs.model.weights import holds_thoughts, stored_tensors
from qs.output import progress
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import choose_placement, load
from qs.quietstar.shape import read
from qs.settings import read_record
from qs.star.records import round_records, rounds_table
from qs.star.round import (
    Attempt,
    Example,
    accuracy,
    answer_examples,
    failures,
    generate_rationales,
    kept_examples,
)
from qs.star.tasks import Problem, task_of
from qs.tables import terminal
from qs.training import checkpoint
from qs.training.distributed import LAUNCHERS, launched
from qs.training.optimizer import exact_parameters, make_optimizer
from qs.training.plan import settle
from qs.training.step import train_step

GENERATED, RATIONALIZED = "generated.jsonl", "rationalized.jsonl"
EXAMPLES, HELDOUT = "examples.jsonl", "heldout.jsonl"


class Stopped(Exception):
    """The run was asked to stop; everything finished is on the disk."""


class StarRun:
    """A run of STaR in `folder`, or in a new one that is called `name`.

    Raises:
        ValueError: something is missing or does not fit.
    """

    def __init__(self, folder: Path | None, config: Config, name: str = ""):
        if (count := launched()) > 1:
            raise ValueError(
                f"--objective star runs in one process: start it without torchrun (a launcher says "
                f"that there are {count}: {' or '.join(LAUNCHERS)} is set)"
            )
        if config.run.tensorboard:
            raise ValueError("--tensorboard is not of --objective star: its log is of rounds")
        if config.run.compile:  # every batch of rationales has another shape
            raise ValueError("--compile is not of --objective star: layers run eagerly there")
        self.start = folders.resolve(config.run.weights)
        self.config = config.changed(weights=str(self.start), compile=False)
        self.placement = choose_placement(self.config.run)
        shape, self.tokenizer = read(self.start, self.config)
        self.chosen, self.trains, self.plan = settle(self.config, shape, self.placement)
        self.config = self.config.changed(moments=self.plan.moments)  # whatever machine it goes on
        self.task = task_of(config.star, config.run.seed)
        self.stop: signal.Signals | None = None
        self.folder = folder or files.new_run(config.run.out, name, self.config)
        self.log = JsonLines(self.folder / files.LOG)
        if folder is None:
            files.write_json(self.folder / files.MADE, environment(str(self.placement)))
        print(f"model   {self.start}: {shape.layers} layers")
        if holds_thoughts(stored_tensors(self.start)):
            print(
                "        its thought vectors and mixing head are not used: STaR writes its thoughts"
            )
        print(f"task    {config.star.task}: {len(self.task.heldout)} held-out problems")
        print(f"device  {self.placement}")
        if changes := self.tokenizer.changes():
            print(f"warning: {changes}")
        print(f"run     {self.folder}")

    def go(self) -> list[dict[str, Any]]:
        """Do the rounds that are not done, and return a record of each, the untrained model first.

        Raises:
            Stopped: after SIGINT or SIGTERM.
            ValueError: a round kept nothing.
        """
        records = round_records(self.folder, max(files.saved_steps(self.folder), default=0))
        if records:
            print(f"\n{terminal(rounds_table(records))}", flush=True)
        begin = records[-1]["round"] + 1 if records else 0
        if 0 < begin <= self.config.star.rounds:  # accuracy is to be of the same problems
            self._made(begin - 1, HELDOUT, self.task.heldout)
        for number in range(begin, self.config.star.rounds + 1):
            if number == 0:
                quiet, record = self._load(self.start), {"round": 0}
            else:
                quiet, record = self._round(number)
            began = time.perf_counter()
            greedy = self._resume(lambda q=quiet: q, number, HELDOUT, self.task.heldout, 0.0)
            del quiet  # the next round loads its own: memory is planned for one
            record["accuracy"] = accuracy(greedy)
            record["heldout_too_long"] = sum(a.rationale is None for a in greedy)
            record["heldout_seconds"] = time.perf_counter() - began
            self.log.append([record])
            records.append(record)
            lines = terminal(rounds_table(records)).splitlines()
            print("\n".join(["", *lines] if number == 0 else lines[-1:]), flush=True)
            if number == 0 and (over := record["heldout_too_long"]):
                problems = f"{over} of {len(greedy)} held-out problems"
                print(f"{problems} leave this model no room for an answer and count as wrong")
            checkpoint.remove_old_steps(self.folder, self.config.run.keep)
        return records

    def steps(self, number: int) -> int:
        """Optimiser steps of a round."""
        return round(self.config.run.steps * self.config.star.growth ** (number - 1))

    def _load(self, folder: Path, trains: bool = False) -> QuietStar:
        return load(folder, self.chosen, self.trains if trains else self.placement)[0]

    def _step(self, number: int) -> Path:
        return self.folder / f"step_{number:06d}"

    def _texts(self, number: int) -> Path:
        return self.folder / f"round_{number:02d}"

    def _round(self, number: int) -> tuple[QuietStar, dict[str, Any]]:
        """Generate, filter, rationalise, train from the original model, save."""
        done = self._step(number)
        if done.is_dir():  # stopped while it was evaluated
            if not (found := folders.damage_of_step(done, training=False)):
                return self._load(done), files.read_object(done / files.TRAINER)
            print(f"{found}; training round {number} again", file=sys.stderr)
            checkpoint.set_aside(self.folder, number - 1)
        began = time.perf_counter()
        problems = self.task.training(number)
        record: dict[str, Any] = {"round": number, "problems": len(problems)}
        if self.config.star.learn == "answers":
            examples = answer_examples(problems)
        else:
            examples, counts = self._rationales(number, problems)
            record |= counts
        self._texts(number).mkdir(exist_ok=True)
        JsonLines(self._texts(number) / EXAMPLES).rewrite([dataclasses.asdict(e) for e in examples])
        record["examples"] = len(examples)
        record["generating_seconds"] = time.perf_counter() - began
        if not examples:
            raise ValueError(
                f"round {number}: expected right answers to train on, found none among "
                f"{len(problems)} problems (what was written is in {self._texts(number)}): take a "
                "model that gets some right, or more --problems, --shots or --rationale-tokens"
            )
        quiet = self._load(self.start, trains=True)
        record |= self._train(quiet, examples, number)
        parameters = exact_parameters(quiet)
        with files.new_folder(done) as folder:
            shape = quiet.model.config
            checkpoint.save_model(folder, shape, parameters, self.config, self.start, {})
            files.write_json(folder / files.TRAINER, record)
            write_digests(folder)
        return quiet, record

    def _rationales(
        self, number: int, problems: Sequence[Problem]
    ) -> tuple[list[Example], dict[str, int]]:
        """Every kept rationale of a round by the model of the one before, and what was counted."""

        @functools.cache
        def quiet() -> QuietStar:
            return self._round(number - 1)[0] if number > 1 else self._load(self.start)

        temperature = self.config.star.rationale_temperature
        made = self._resume(quiet, number, GENERATED, problems, temperature)
        counts = {"too_long": 0, "kept": sum(a.kept for a in made)}
        if self.config.star.rationalize:
            failed = failures(problems, made)
            hinted = self._resume(quiet, number, RATIONALIZED, failed, temperature, hint=True)
            counts["rationalized"] = len(failed)
            counts["rationalized_kept"] = sum(a.kept for a in hinted)
            made = [*made, *hinted]
        counts["too_long"] = sum(a.rationale is None for a in made)
        counts["generated_tokens"] = sum(a.tokens for a in made)
        return kept_examples(problems, made), counts

    def _resume(
        self,
        quiet: Callable[[], QuietStar],
        number: int,
        name: str,
        problems: Sequence[Problem],
        temperature: float,
        hint: bool = False,
    ) -> list[Attempt]:
        """Attempts at all problems: read those that a file of the round holds, append the rest."""
        star, path = self.config.star, self._texts(number) / name
        lines, size = JsonLines(path), star.rationale_batch
        made = self._made(number, name, problems, hint)
        if len(made) < len(problems):
            # whole batches only: a batch is attempted as it was
            made = made[: len(made) // size * size]
        if path.is_file():
            lines.rewrite([dataclasses.asdict(a) for a in made])
        if len(made) == len(problems):
            return made
        decoding = Decoding(star.rationale_tokens, temperature, think_when="never")
        asked = self.task, problems, decoding, self.config.run.seed * 1000 + number, hint, size
        rest = generate_rationales(quiet(), self.tokenizer, *asked, done=len(made))
        label = f"round {number}, {path.stem}"
        with progress(None, label, len(problems), unit=" problems", leave=False) as bar:
            bar.update(len(made))
            for batch in rest:
                lines.append([dataclasses.asdict(a) for a in batch])
                made += batch
                right = sum(a.kept for a in made)
                bar.set_postfix_str(f"{right} right", refresh=False)
                bar.update(len(batch))
                self._raise_if_stopped()
        return made

    def _made(
        self, number: int, name: str, problems: Sequence[Problem], hint: bool = False
    ) -> list[Attempt]:
        """Attempts that a file of a round holds, none where there is no file.

        Raises:
            ValueError: they are at other problems.
        """
        path = self._texts(number) / name
        made = [read_record(str(path), Attempt, line) for line in JsonLines(path).records()]
        asked = [(p.id, p.hinted if hint else p.prompt, p.gold) for p in problems[: len(made)]]
        if [(a.id, a.prompt, a.gold) for a in made] != asked:
            raise ValueError(
                f"{path}: expected attempts at the problems of this run, found others; are the "
                "question files the same? start a new run"
            )
        return made

    def _train(self, quiet: QuietStar, examples: Sequence[Example], number: int) -> dict[str, Any]:
        began, run, steps = time.perf_counter(), self.config.run, self.steps(number)
        config = self.chosen.changed(steps=steps)
        pairs = [(example.prompt, example.completion) for example in examples]
        data = Completions(pairs, self.tokenizer, run.seq, run.seed)
        optimizer = make_optimizer(quiet, config.optim, self.plan.offload, self.plan.eight_bits)
        batches, tokens, skipped, loss = data.batches(run.batch), 0, 0, 0.0
        bar = progress(range(steps), f"round {number}, training", unit=" steps", leave=False)
        for step in bar:
            text, documents, counted = (x.to(self.placement.device) for x in next(batches))
            record = train_step(quiet, optimizer, text, documents, config, step, counted=counted)
            tokens += int((documents != PADDING).sum())
            skipped += int(record["skipped"])
            loss = record["nll_base"]
            bar.set_postfix_str(f"nll {loss:.3f}", refresh=False)
            self._raise_if_stopped()
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

    def _raise_if_stopped(self) -> None:
        if self.stop is not None:
            raise Stopped
