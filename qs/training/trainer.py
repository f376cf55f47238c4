"""One training run and its folder: model, data, optimiser, where it stands, saving, going on.

The loop is in train.py. With several processes each of them holds a Trainer; the first one prints
and writes.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path

import torch

from qs import files
from qs.config import Config
from qs.data.dataset import TokenDataset, Windows, resolve_data
from qs.environment import environment
from qs.model.config import read_model_config
from qs.quietstar.load import choose_placement, load
from qs.quietstar.parts import Parts, own_names, parts_of
from qs.quietstar.stored import lost_end
from qs.settings import check_names, checked
from qs.training import checkpoint, distributed
from qs.training.average import Average
from qs.training.checks import check_begun_with, check_mixes, check_trains
from qs.training.optimizer import exact_parameters, make_optimizer, names_of_updated
from qs.training.plan import settle
from qs.training.scalars import find_writer, write_scalars
from qs.training.step import train_step

SKIPS_ALLOWED = 10  # steps in a row whose loss or gradient is not finite


@dataclasses.dataclass
class State:
    """Where a run stands: what a checkpoint holds beside parameters and optimiser."""

    step: int = 0
    epoch: int = 0
    index: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class Trainer:
    """A run in progress.

    Args:
        config: its settings.
        start: folder that weights come from; None: the run goes on from its newest checkpoint
            that is whole.
        folder: of the run, which exists if it goes on.
        parts: reward, baseline, mixing head and visibility of one's own.

    Attributes:
        quiet, tokenizer: the model.
        chosen: its settings where nothing is left for the machine to decide.
        heldout: text that is never trained on.
        state: where the run stands.
        stop: the signal that asked this process to stop, if any.

    Raises:
        ValueError: something is missing or does not fit.
    """

    @checked()
    def __init__(
        self,
        config: Config,
        start: Path | None,
        folder: Path,
        parts: Parts = Parts(),  # noqa: B008
    ):
        run = config.run
        check_trains(config)
        self.make_writer = find_writer() if run.tensorboard else None  # refused before any work
        self.writer = None
        placement = choose_placement(run)
        self.ranks = distributed.start(placement.device)
        start = start or checkpoint.newest_whole(folder, self.ranks.first)
        self.start, self.folder, self.saved = start, folder, time.monotonic()
        shape = read_model_config(start)
        self.chosen, self.placement, plan = settle(config, shape, placement, self.ranks.count)
        # what changes results is the same on whatever machine it goes on
        self.config = config.changed(moments=plan.moments)
        if run.batch % self.ranks.count:
            raise ValueError(
                f"--batch {run.batch} does not divide over {self.ranks.count} processes"
            )
        data = resolve_data(run.data)
        self.train, self.heldout = TokenDataset(data), TokenDataset(data, "heldout")
        self.quiet, self.tokenizer = load(start, self.chosen, self.placement, parts)
        check_mixes(self.chosen, self.quiet.mixer)
        for split in (self.train, self.heldout):
            split.check_tokenizer(self.tokenizer)
        self.windows = Windows(self.train, run.seq, run.seed)
        size = sum(p.numel() for p in self.quiet.parameters())
        own = sum(p.numel() for p in self.quiet.model.parameters())
        layers = self.quiet.model.layers
        distributed.shard(self.quiet, layers, self.placement.dtype, ["think", "predict"])
        self.average = None
        averages = config.thinking.reference == "average"
        if self.ranks.count > 1 and (averages or run.distil):
            raise ValueError("--reference average and --distil: expected one process; leave it out")
        if averages:
            self.average = Average(self.quiet, config.thinking.average_decay)
        self.optimizer = make_optimizer(self.quiet, config.optim, plan.offload, plan.eight_bits)
        self.names = names_of_updated(self.quiet)
        self.state = State()
        self.stop: signal.Signals | None = None
        self.say(f"model   {start}: {own:,} parameters, {size - own:,} added for thinking")
        self.say(f"data    {data}: {self.train.tokens:,} tokens, {self.heldout.tokens:,} held out")
        lengths = f", {config.thinking.lengths}" if run.thinks else ""
        size = f"{run.batch} x {run.seq} tokens"
        self.say(f"steps   {run.steps} of {size}, lr {config.optim.lr:g}{lengths}")
        self.say(f"device  {self.placement}, {self.ranks.count} process(es)")
        if self.placement.device.type == "cuda":
            self.say(f"memory  {plan}")
        if changes := self.tokenizer.changes():
            self.say(f"warning: {changes}")
        if self.ranks.first and (lost := lost_end(start, config)):
            print(f"warning: {lost}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.ranks.first:
            print(text)

    @property
    def log(self) -> files.JsonLines:
        """`log.jsonl` of the run folder."""
        return files.JsonLines(self.folder / files.LOG)

    def begin(self) -> None:
        """Make the run folder, with settings and versions."""
        if self.ranks.first:
            self.folder = files.new_run(self.folder.parent, self.folder.name, self.config)
            here = environment(str(self.placement))
            made_of = {"processes": self.ranks.count, "data": self.train.digest}
            made_of["parts"] = parts_of(self.quiet)
            files.write_json(self.folder / files.MADE, here | made_of)
            self.log.append([])  # there from the beginning
            self._open_writer()

    def resume(self) -> None:
        """Go on from the checkpoint whose weights are loaded already.

        Raises:
            ValueError: its optimiser or its counters are missing or damaged, or it was begun with
                other data or parts of one's own.
        """
        records = files.read_log(self.folder) if self.ranks.first else []
        made = files.made_by(self.folder) if self.ranks.first else {}
        check_begun_with(self.folder, made, self.train, self.quiet)
        path = self.start / files.TRAINER
        stored = files.read_json(path)
        sound = isinstance(stored, dict) and all(type(v) is int and v >= 0 for v in stored.values())
        if not sound:
            raise ValueError(f"{path}: expected counters by name, found {str(stored)[:60]}")
        check_names(str(path), stored, vars(self.state))
        self.state = State(**stored)
        updates = self.state.step - self.state.skipped
        checkpoint.load_optimizer(self.start, self.optimizer, self.names, updates)
        if self.state.step > self.config.distilled_from:
            self.average = Average(self.quiet, 1.0, whole=True)
        if self.average:
            self.average.load(self.start)
        here = environment(str(self.placement)) | {"processes": self.ranks.count}
        if changes := [
            f"{name} {made[name]}, now {here[name]}"
            for name in ("threads", "processes", "device", "torch")
            if made.get(name, here[name]) != here[name]
        ]:
            self.say(
                f"warning: begun with {'; '.join(changes)}: it rounds in another order, so what "
                "follows is not bit for bit what an uninterrupted run gives"
            )
        if self.ranks.first:  # what a resumed run logs equals what an uninterrupted one does
            if made:
                files.write_json(self.folder / files.MADE, made)  # of old runs it was in the log
            checkpoint.set_aside(self.folder, self.state.step)
            self.log.rewrite(checkpoint.records_until(records, self.state.step, self.log.path))
            self._open_writer()
        self.say(f"resume  {self.start}: {self.state.step} of {self.config.run.steps} steps done")

    def _open_writer(self) -> None:
        """Begin TensorBoard's file; what earlier ones say of steps still to come is void."""
        if self.make_writer:
            folder = str(self.folder / "tensorboard")
            self.writer = self.make_writer(folder, purge_step=self.state.step + 1)

    @property
    def due(self) -> bool:
        """Whether it is time to save; the same on all ranks."""
        run, minutes = self.config.run, (time.monotonic() - self.saved) / 60
        late = self.ranks.first and run.save_minutes and minutes >= run.save_minutes
        every = run.save_every and self.state.step % run.save_every == 0
        return distributed.anywhere(bool(every or late))

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.config.run.steps

    @property
    def asked_to_stop(self) -> bool:
        """Whether any process was sent a signal; all of them then stop after the same step."""
        return distributed.anywhere(self.stop is not None)

    def step(self) -> dict[str, float]:
        """One optimiser step, logged.

        Raises:
            ValueError: all steps are done, or too many in a row were not finite.
        """
        run, state, began = self.config.run, self.state, time.perf_counter()
        if self.finished:
            raise ValueError(f"this run is finished (step {state.step} of {run.steps})")
        stage, config = self.chosen.stage(state.step)
        batch, position = self.windows.batch((state.epoch, state.index), run.batch)
        share = run.batch // self.ranks.count
        mine = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        device = self.placement.device
        tokens, documents = (x[mine].to(device) for x in (batch.tokens, batch.documents))
        every = run.grad_norms_every if config.run.thinks else 0
        measure_terms = bool(every) and state.step % every == 0
        if state.step == self.config.distilled_from:  # the teacher: no stage needs an average now
            self.average = Average(self.quiet, 1.0, whole=True)
        with self.quiet.with_settings(**dataclasses.asdict(config.thinking)):
            given = tokens, documents, config, state.step, measure_terms, self.ranks
            record = train_step(self.quiet, self.optimizer, *given, average=self.average)
        state.step += 1
        state.epoch, state.index = position
        state.skipped += int(record["skipped"])
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if record["skipped"] else 0
        rates = self._rates(config, time.perf_counter() - began)
        record = {"step": state.step} | ({"stage": stage} if stage else {}) | record | rates
        if self.ranks.first:
            self.log.append([record], flushed=False)
        if self.writer:
            write_scalars(self.writer, record)
        if state.skipped_in_a_row >= SKIPS_ALLOWED:
            problem = (
                f"{SKIPS_ALLOWED} steps in a row had a loss or gradient that is not finite (last: "
                f"step {state.step}); {self._last_good()}; lower --lr or use --dtype float32"
            )
            raise ValueError(distributed.from_first(problem))
        return record

    def _rates(self, config: Config, seconds: float) -> dict[str, float]:
        run, thought = config.run, config.thinking
        rates = {"tokens_per_second": run.batch * run.seq / seconds}
        if config.sampled:
            anchors = run.batch * thought.anchor_count(run.seq)
            sampled = anchors * thought.samples * thought.thoughts
            rates["thought_tokens_per_second"] = sampled / seconds
        return rates | {"memory_bytes": peak_memory(self.placement.device)}

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one; every process takes part.

        Raises:
            ValueError: parameters are not finite, or the run was never begun.
            OSError: the disk refuses.
        """
        step, first = self.state.step, self.ranks.first
        if distributed.anywhere(first and not (self.folder / files.CONFIG).exists()):
            raise ValueError(f"{self.folder}: expected a run that was begun; call begin() first")
        if distributed.anywhere(first and step in files.saved_steps(self.folder)):
            return
        if not self._finite():
            problem = (
                f"step {step} left parameters that are not finite, which are not saved; "
                f"{self._last_good()}; lower --lr"
            )
            raise ValueError(distributed.from_first(problem))

        parameters = exact_parameters(self.quiet)
        moments = checkpoint.optimizer_tensors(self.optimizer, self.names)

        def fill(folder: Path | None) -> None:
            shape = self.quiet.model.config
            # of a resumed run the first checkpoint may be removed by now: newer ones are its own
            start = self.start if self.start.is_dir() else files.newest_step(self.folder)
            own = own_names(self.quiet)
            checkpoint.save_model(folder, shape, parameters, self.config, start, own)
            checkpoint.save_optimizer(folder, moments)
            if self.average:
                self.average.save(folder)
            if folder:
                files.flush(self.log.path)  # to the disk no later than what it tells of
                if self.writer:
                    self.writer.flush()
                files.write_json(folder / files.TRAINER, dataclasses.asdict(self.state))

        held = [*parameters.values(), *moments.values()]
        held += self.average.weights.values() if self.average else []
        # the last good one stays as long as every step since is skipped
        keep = 0 if self.state.skipped_in_a_row else self.config.run.keep
        checkpoint.save_step(self.folder, step, fill, first, held, keep)
        self.saved = time.monotonic()

    def _finite(self) -> bool:
        """Whether every parameter is finite, on all ranks: they must go the same way."""
        exact = exact_parameters(self.quiet).values()
        wrong = any(not distributed.local(p).isfinite().all() for p in exact)
        return not distributed.anywhere(wrong)

    def _last_good(self) -> str:
        """Where to go on after steps that were not finite, in words."""
        began = self.state.step - self.state.skipped_in_a_row
        # the parameters have not changed since: those saved at that step are these
        good = began if self._finite() else began - 1
        saved = [folder for n, folder in files.saved_steps(self.folder).items() if n <= good]
        if not saved:
            return "no checkpoint was saved before them"
        return f"the last good checkpoint is {saved[-1]} (start again from it with --weights)"


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that CUDA held, or the largest resident size of this process.

    None on Windows, where the standard library does not know it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
