"""One training run and its folder: model, data, optimiser, where it stands, saving, going on.

With several processes each of them holds a Run; the first one prints and writes.
"""

from __future__ import annotations

import dataclasses
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qs import config, files
from qs.config import Config, thought_lengths
from qs.data.dataset import TokenDataset, Windows, resolve_data
from qs.evaluation.heldout import Score, heldout_score
from qs.evaluation.thoughts import shown, thoughts_shown
from qs.files import environment
from qs.model import weights
from qs.quietstar.load import STORED, choose_placement, load
from qs.training import checkpoint, distributed
from qs.training.step import make_optimizer, train_step

PAGE, PAGE_ROWS = "thoughts.html", 12
SKIPS_ALLOWED = 10  # steps in a row whose loss or gradient is not finite


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
        run = config.run
        self.quiet, self.tokenizer = load(start, config, self.placement)
        for split in (self.train, self.heldout):
            split.check_tokenizer(self.tokenizer)
        self.tokenizer_file = start / "tokenizer.model"
        self.windows = Windows(self.train, config.run.seq, config.run.seed)
        size = sum(p.numel() for p in self.quiet.parameters())
        distributed.shard(self.quiet, self.quiet.model.layers, ["think", "predict"])
        self.optimizer = make_optimizer(self.quiet, config.optim)
        self.names = {p: name for name, p in self.quiet.named_parameters()}
        self.state = State()
        self.saved: int | None = None  # step of the last checkpoint: all processes must agree
        self.log = files.JsonLines(folder / files.LOG)
        self.stop: signal.Signals | None = None
        self.say(f"model   {start}: {size:,} parameters")
        self.say(f"data    {data}: {self.train.tokens:,} tokens, {self.heldout.tokens:,} held out")
        thought, optim = config.thinking, config.optim
        self.say(
            f"steps   {run.steps} of {run.batch} x {run.seq} tokens, lr {optim.lr:g}"
            + (f", {thought_lengths(thought)}" if run.thinks else "")
        )
        self.say(f"device  {self.placement}, {self.ranks.count} process(es)")

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.ranks.first:
            print(text)

    def begin(self, name: str) -> Score | None:
        """Make the run folder, with settings, versions and the score before training."""
        if self.ranks.first:
            self.folder = files.new_run(self.config.run.out, name, self.config)
            self.log = files.JsonLines(self.folder / files.LOG)
            self.log.append([environment(str(self.placement)) | {"processes": self.ranks.count}])
        score = self.evaluate("before")
        self.write("before.json", score and dataclasses.asdict(score))
        return score

    def write(self, name: str, value: Any) -> None:
        """Write JSON into the run folder, once for all processes."""
        if self.ranks.first:
            files.write_json(self.folder / name, value)

    def add_results(self, found: dict[str, Any]) -> None:
        """Write what was found beside what results.json holds, once for all processes."""
        if self.ranks.first:
            files.add_results(self.folder, found)

    def move(self, batch: Any) -> tuple[Tensor, Tensor]:
        """A batch's tokens and documents on the device."""
        device = self.placement.device
        return batch.tokens.to(device), batch.documents.to(device)

    def evaluate(self, label: str) -> Score | None:
        """Score on held-out text, with and without thoughts; None if there is nothing to do."""
        rows = self.config.run.eval_rows
        if not rows or not self.heldout.tokens:
            return None
        return heldout_score(
            self.quiet,
            self.heldout,
            self.tokenizer,
            self.config,
            rows,
            f"held-out text, {label}",
            show=self.ranks.first,
        )

    def show(self, count: int) -> None:
        """Print what was thought in a few passages of held-out text, and write the HTML page."""
        rows = min(PAGE_ROWS, self.config.run.eval_rows)
        if not rows or not self.heldout.tokens or not self.config.run.thinks:
            return
        found = shown(self.quiet, self.heldout, self.tokenizer, self.config, rows)
        if self.ranks.first:
            about = {
                "model": f"{self.config.run.weights}, {self.state.step} steps of "
                + {"quiet": "Quiet-STaR", "pause": "pause training"}[self.config.run.objective],
                "text": f"{self.heldout.folder}, the first {rows} rows of the held-out split",
                "thoughts": thought_lengths(self.config.thinking),
            }
            self.say("\n" + thoughts_shown(found, count, self.folder / PAGE, about))

    def save(self) -> None:
        """Write a checkpoint of this moment; every process takes part, the first one writes."""
        named = checkpoint.gathered({n: p for p, n in self.names.items()}, self.ranks.first)
        moments = checkpoint.optimizer_tensors(self.optimizer, self.names, self.ranks.first)
        if not all(x.isfinite().all() for x in named.values()):
            raise ValueError(
                f"step {self.state.step} left parameters that are not finite, which are not saved; "
                f"{self.last_good()}; lower --lr"
            )
        model = {n.removeprefix("model."): x for n, x in named.items() if n.startswith("model.")}
        thought = {n: x for n, x in named.items() if not n.startswith("model.")}
        settings = {n: getattr(self.config.thought, n) for n in (*STORED, "thoughts", "ahead")}
        settings["objective"] = self.config.run.objective

        def fill(folder: Path) -> None:
            shape = self.quiet.model.config
            if not self.config.run.thinks:
                weights.save(folder, shape, model)
            else:
                weights.save(folder, shape, model, thought, settings, layout="quietstar")
            (folder / "tokenizer.model").write_bytes(self.tokenizer_file.read_bytes())
            checkpoint.save_optimizer(folder, moments)
            files.write_json(folder / files.TRAINER, dataclasses.asdict(self.state))

        if self.ranks.first:
            files.save_step(self.folder, self.state.step, fill)
        self.saved = self.state.step

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint whose weights are loaded already."""
        checkpoint.load_optimizer(folder, self.optimizer, self.names)
        path = folder / files.TRAINER
        stored = files.read_json(path)
        if not isinstance(stored, dict) or any(
            type(v) is not int or v < 0 for v in stored.values()
        ):
            raise ValueError(f"{path}: expected counters by name, found {str(stored)[:60]}")
        config.check_names(str(path), stored, vars(self.state))
        self.state = State(**stored)
        self.saved = self.state.step
        if self.ranks.first:
            done = [r for r in files.read_log(self.folder) if r.get("step", 0) <= self.state.step]
            self.log.rewrite(done)

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
        if self.saved != state.step:
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
        saved = [folder for n, folder in files.saved_steps(self.folder).items() if n <= good]
        if not saved:
            return "no checkpoint was saved before them"
        return f"the last good checkpoint is {saved[-1]} (start again from it with --weights)"

    def one_step(self) -> dict[str, float]:
        """One optimiser step, logged."""
        run, state, began = self.config.run, self.state, time.perf_counter()
        batch, position = self.windows.batch((state.epoch, state.index), run.batch)
        every = run.grad_norms_every
        measure = bool(every) and state.step % every == 0 and run.thinks
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
        if self.config.sampled:
            thought = self.config.thinking
            anchors = thought.anchor_count(run.seq)
            sampled = run.batch * anchors * thought.samples * thought.thoughts
            record["thought_tokens_per_second"] = sampled / seconds
        record["memory_bytes"] = peak_memory(self.placement.device)
        if self.ranks.first:
            self.log.append([record], flushed=False)
        return record


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA held, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(record: dict[str, float]) -> str:
    """The progress bar's numbers: losses and reward in nats, w the mixing weight, g gradients."""
    shown = {
        "loss": "loss",
        "nll_base": "base",
        "nll_talk": "talk",
        "policy": "policy",
        "reward": "reward",
        "weight_mean": "w",
        "weight_std": "+-",
        "grad_norm": "g",
        "grad_norm_base": "g_base",
        "grad_norm_talk": "g_talk",
        "grad_norm_policy": "g_policy",
        "tokens_per_second": "tok/s",
        "thought_tokens_per_second": "thought tok/s",
    }
    parts = [f"{short} {record[key]:.3g}" for key, short in shown.items() if key in record]
    return " ".join([*parts, f"{record['memory_bytes'] / 2**30:.1f} GiB"])
