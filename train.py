"""Train a language model to think before it speaks (Quiet-STaR, arXiv:2403.09629).

    python train.py                                    the bundled model and text, on a laptop
    python train.py --data owm --weights mistral-7b --preset published --thoughts 16
    python train.py --objective plain --data NAME --weights weights/NAME    next-token training
    python train.py --resume runs/NAME                 go on from its last checkpoint

--data is a folder made by `python -m qs.data prepare`, --weights a folder in the layout of Hugging
Face, Mistral or Quiet-STaR, or a run. Everything a run makes is in its folder under runs/: settings
(config.json), a line for each step (log.jsonl), checkpoints (step_*/) and results (results.json).
Ctrl-C finishes the step, saves and says how to go on. In brackets: the value that a preset gives.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from qs import checkpoint, distributed, weights
from qs.build import STORED, Placement, check_fits, choose_placement, load
from qs.config import Config, parse
from qs.data import resolve as resolve_data
from qs.quiet import QuietStar
from qs.report import environment, peak_memory, summary, table
from qs.shards import TokenDataset, Windows, sequential
from qs.tasks import TextScore, text_score
from qs.tokenizer import Tokenizer
from qs.training import make_optimizer, step_generator, train_step

SKIPS_ALLOWED = 10  # steps in a row whose loss or gradient is not finite
OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch (the batch stays the same), --seq, --thoughts or --samples,"
    " or pass --recompute"
)


@dataclasses.dataclass
class State:
    """Where a run stands: what a checkpoint holds beside parameters and optimiser."""

    step: int = 0
    epoch: int = 0
    index: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class Run:
    """One training run: its folder, model, data and optimiser."""

    def __init__(self, folder: Path, config: Config, start: Path):
        """Load everything; `start` is the folder that weights (and optimiser) come from.

        Raises:
            ValueError: something is missing or does not fit.
        """
        self.folder, self.config = folder, config
        self.placement = choose_placement(config.run)
        self.ranks = distributed.start(self.placement.device)
        if config.run.batch % self.ranks.count:
            raise ValueError(
                f"--batch {config.run.batch} does not divide over {self.ranks.count} processes"
            )
        data = resolve_data(config.run.data)
        self.train, self.heldout = TokenDataset(data), TokenDataset(data, "heldout")
        self.quiet, self.tokenizer = load_model(start, config, self.placement)
        for split in (self.train, self.heldout):
            split.check_tokenizer(self.tokenizer)
        self.tokenizer_file = start / "tokenizer.model"
        self.windows = Windows(self.train, config.run.seq, config.run.seed)
        size = sum(p.numel() for p in self.quiet.parameters())
        distributed.shard(self.quiet, self.quiet.model.layers, ["think"])
        self.optimizer = make_optimizer(self.quiet, config.optim)
        self.names = {p: name for name, p in self.quiet.named_parameters()}
        self.state = State()
        self.log = checkpoint.Log(folder)
        self.stop: signal.Signals | None = None
        self.say(f"model   {start}: {size:,} parameters")
        self.say(f"data    {data}: {self.train.tokens:,} tokens, {self.heldout.tokens:,} held out")
        self.say(f"device  {self.placement}, {self.ranks.count} process(es)")

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.ranks.first:
            print(text)

    def begin(self, name: str) -> TextScore | None:
        """Make the run folder, with settings, versions and the score before training."""
        if self.ranks.first:
            self.folder = checkpoint.new_run(self.config.run.out, name, self.config)
            self.log = checkpoint.Log(self.folder)
            self.log.write(environment(str(self.placement)) | {"processes": self.ranks.count})
        score = self.evaluate("before")
        self.write("before.json", score and dataclasses.asdict(score))
        return score

    def write(self, name: str, value: Any) -> None:
        """Write JSON into the run folder, once for all processes."""
        if self.ranks.first:
            checkpoint.write_json(self.folder / name, value)

    def move(self, batch: Any) -> tuple[Tensor, Tensor]:
        """A batch's tokens and documents on the device."""
        device = self.placement.device
        return batch.tokens.to(device), batch.documents.to(device)

    def evaluate(self, label: str) -> TextScore | None:
        """NLL of held-out text, with and without thoughts; None if there is nothing to do."""
        run = self.config.run
        if not run.eval_rows or not self.heldout.tokens:
            return None
        rows = run.micro_batch or run.batch
        batches = list(sequential(self.heldout, run.seq, rows, run.eval_rows))

        def bar() -> Iterator[tuple[Tensor, Tensor]]:
            quiet = not self.ranks.first
            for batch in tqdm(batches, f"held-out text, {label}", leave=False, disable=quiet):
                yield self.move(batch)

        generator = step_generator(run.seed, 0)
        return text_score(self.quiet, bar(), generator, think=run.objective != "plain")

    def save(self) -> None:
        """Write a checkpoint of this moment; every process takes part, the first one writes."""
        named = {n: distributed.whole(p.detach()).cpu() for p, n in self.names.items()}
        moments = checkpoint.optimizer_tensors(self.optimizer, self.names)
        model = {n.removeprefix("model."): x for n, x in named.items() if n.startswith("model.")}
        thought = {n: x for n, x in named.items() if not n.startswith("model.")}
        settings = {key: getattr(self.config.thought, key) for key in STORED}

        def write(folder: Path) -> None:
            shape = self.quiet.model.config
            if self.config.run.objective == "plain":
                weights.save(folder, shape, model)
            else:
                weights.save(folder, shape, model, thought, settings, layout="quietstar")
            (folder / "tokenizer.model").write_bytes(self.tokenizer_file.read_bytes())
            checkpoint.save_optimizer(folder, moments)
            checkpoint.write_json(folder / checkpoint.TRAINER, dataclasses.asdict(self.state))

        if self.ranks.first:
            checkpoint.save_step(self.folder, self.state.step, write)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint whose weights are loaded already."""
        checkpoint.load_optimizer(folder, self.optimizer, self.names)
        path = folder / checkpoint.TRAINER
        stored = checkpoint.read_json(path)
        if not isinstance(stored, dict) or any(
            type(v) is not int or v < 0 for v in stored.values()
        ):
            raise ValueError(f"{path}: expected counters by name, found {str(stored)[:60]}")
        checkpoint.check_names(str(path), stored, vars(self.state))
        self.state = State(**stored)
        if self.ranks.first:
            self.log.cut(self.state.step)

    def go(self) -> None:
        """Train until the last step, or until SIGINT or SIGTERM.

        Raises:
            ValueError: too many steps in a row were not finite.
        """
        run, state = self.config.run, self.state
        with tqdm(
            total=run.steps,
            initial=state.step,
            unit="step",
            desc="training",
            disable=not self.ranks.first,
        ) as bar:
            while state.step < run.steps and not self.asked_to_stop():
                record = self.one_step()
                bar.set_postfix_str(summary(record))
                bar.update()
                if state.skipped_in_a_row >= SKIPS_ALLOWED:
                    raise ValueError(
                        f"{SKIPS_ALLOWED} steps in a row had a loss or gradient that is not finite "
                        f"(last: step {state.step}); {self.last_good()}; lower --lr or use --dtype "
                        "float32"
                    )
                if run.save_every and state.step % run.save_every == 0:
                    self.save()
        if not (run.save_every and state.step % run.save_every == 0):
            self.save()

    def asked_to_stop(self) -> bool:
        """Whether any process was sent a signal; all of them then stop after the same step."""
        asked = torch.tensor(int(self.stop is not None), device=self.placement.device)
        return bool(distributed.total(asked))

    def last_good(self) -> str:
        """Where to go on after steps that were not finite, in words."""
        began = self.state.step - self.state.skipped_in_a_row
        # the parameters have not changed since: those saved at that step are these
        good = began if all(p.isfinite().all() for p in self.quiet.parameters()) else began - 1
        saved = [folder for n, folder in checkpoint.saved_steps(self.folder).items() if n <= good]
        if not saved:
            return "no checkpoint was saved before them"
        return f"the last good checkpoint is {saved[-1]} (start again from it with --weights)"

    def one_step(self) -> dict[str, float]:
        """One optimiser step, logged."""
        run, state, began = self.config.run, self.state, time.perf_counter()
        batch, position = self.windows.batch((state.epoch, state.index), run.batch)
        every = run.grad_norms_every
        measure = bool(every) and state.step % every == 0 and run.objective != "plain"
        share = run.batch // self.ranks.count
        mine = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        tokens, documents = (x[mine] for x in self.move(batch))
        record = train_step(
            self.quiet,
            self.optimizer,
            tokens,
            documents,
            self.config,
            state.step,
            measure,
            self.ranks,
        )
        state.step += 1
        state.epoch, state.index = position
        state.skipped += int(record["skipped"])
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if record["skipped"] else 0
        seconds = time.perf_counter() - began
        record = {"step": state.step} | record
        record["tokens_per_second"] = run.batch * run.seq / seconds
        if run.objective != "plain":
            thought = self.config.thought
            anchors = max(1, round(run.seq * thought.anchor_share))
            sampled = run.batch * anchors * thought.samples * thought.thoughts
            record["thought_tokens_per_second"] = sampled / seconds
        record["memory_bytes"] = peak_memory(self.placement.device)
        if self.ranks.first:
            self.log.write(record)
        return record


def load_model(start: Path, config: Config, placement: Placement) -> tuple[QuietStar, Tokenizer]:
    """Read the model and refuse what does not fit it."""
    run = config.run
    quiet, tokenizer = load(start, config.thought, placement, run.seed, run.recompute)
    check_fits(quiet.model.config, tokenizer, config, start)
    return quiet, tokenizer


def read_score(path: Path) -> TextScore | None:
    """A score that was written as JSON.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    stored = checkpoint.read_json(path)
    try:
        return None if stored is None else TextScore(**stored)
    except TypeError:
        raise ValueError(f"{path}: expected a score, found {str(stored)[:60]}") from None


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the whole usage."""
        raise ValueError(f"{message}; see python train.py --help")


def settings(argv: list[str]) -> tuple[Config | None, Path | None]:
    """The command line: new settings, or the run folder to resume.

    Raises:
        ValueError: a setting is unknown, out of range, or given beside --resume.
    """
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on with, as it was set")
    if any(arg == "--resume" or arg.startswith("--resume=") for arg in argv):
        given, others = parser.parse_known_args(argv)
        if others:
            raise ValueError(
                f"--resume takes every setting from {given.resume}/config.json; drop {others[0]}"
            )
        return None, Path(given.resume)
    return parse(argv, parser), None


@contextlib.contextmanager
def stopping(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM ask the run to stop after its step; a second one ends it at once."""

    def ask_to_stop(number: int, frame: Any) -> None:
        run.stop = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask_to_stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def train(argv: list[str]) -> int:
    """Build, train, evaluate, report. Returns the exit status."""
    config, folder = settings(argv)
    if folder is not None:
        config = checkpoint.read_config(folder)
        start = checkpoint.newest_step(folder)
        before = read_score(folder / "before.json")
        run = Run(folder, config, start)
        run.restore(start)
        run.say(f"resume  {start}: {run.state.step} of {config.run.steps} steps done")
    else:
        start = weights.resolve(config.run.weights)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{config.run.objective}-{Path(config.run.data).name}"
        run = Run(Path(config.run.out) / name, config, start)
        before = run.begin(name)
    run.say(f"run     {run.folder}")
    with stopping(run):
        run.go()
    done = f"{run.state.step} of {config.run.steps} steps"
    if run.asked_to_stop():
        number = run.stop or signal.SIGTERM  # of this process, or of another one
        again = f"go on with: python train.py --resume {run.folder}"
        run.say(f"stopped by {number.name} after {done}, saved; {again}")
        return 128 + number
    after = run.evaluate("after")
    scores = {"before": before, "after": after}
    results = {name: score and dataclasses.asdict(score) for name, score in scores.items()}
    run.write("results.json", results | {"skipped": run.state.skipped})
    run.say("\n" + table(before, after))
    if run.state.skipped:
        run.say(f"{run.state.skipped} steps were skipped: their loss or gradient was not finite")
    run.say(f"\nrun folder: {run.folder} (settings, log.jsonl, checkpoint, results.json)")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `train`, with one line instead of a traceback for what a person can mend."""
    try:
        return train(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while loading or evaluating: training itself ends with its step
        print("error: interrupted; go on from the last checkpoint with --resume", file=sys.stderr)
        return 128 + signal.SIGINT
    except (torch.OutOfMemoryError, MemoryError):
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what PyTorch's CPU allocator says
            raise
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
    finally:
        distributed.finish()
    return 2


if __name__ == "__main__":
    sys.exit(main())
