"""What run-smollm2.sh runs, in one process so that every pass is compiled once.

Results are written after each piece, and pieces that no time is left for are skipped and named.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset, Windows
from qs.data.question_sets import read_questions
from qs.evaluation import question_sets
from qs.evaluation.exam_results import Exam
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.tokens import TokenTable, measure_tokens, nll_score, windows
from qs.inference.decoding import thought_text
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import pauses
from qs.quietstar.load import allocate, begin_vector, choose_placement, first_tokens, load
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import targets_of
from qs.training.optimizer import exact_parameters, make_optimizer
from qs.training.step import train_step
from qs.training.work import operations

BEGAN = time.perf_counter()
REHEARSE = "--rehearse" in sys.argv
MODEL, DATA, QUESTIONS = map(Path, sys.argv[1:4])
SECONDS, OUT = float(sys.argv[4]), Path(sys.argv[5])
T, B, N = (24, 2, 2) if REHEARSE else (256, 8, 8)
ROWS, ASKED, RATE_STEPS = (4, 2, 2) if REHEARSE else (128, 96, 20)
FOUND: dict[str, Any] = {}

THOUGHT = ThoughtConfig(thoughts=N, ahead=4, samples=2, beta=100.0)
RUN = RunConfig(data=str(DATA), weights=str(MODEL), seq=T, batch=B, grad_norms_every=0)


def left() -> float:
    return SECONDS - (time.perf_counter() - BEGAN)


def note(name: str, what: Any) -> None:
    """Write down one result."""
    FOUND[name] = what
    (OUT / "smollm2.json").write_text(json.dumps(FOUND, indent=1))
    print(f"-- {time.perf_counter() - BEGAN:.0f} s, {name}: {json.dumps(what)[:1500]}", flush=True)


class Study:
    """The model that is trained, another that reads text of any length, and where both began."""

    def __init__(self) -> None:
        config = Config(THOUGHT, OptimConfig(warmup=5), RUN)
        self.placement = choose_placement(config.run)
        training = self.placement.for_training(offload=False, alone=True)
        self.quiet, self.tokenizer = load(MODEL, config, training)
        self.config = config
        self.begun = {n: x.detach().clone() for n, x in exact_parameters(self.quiet).items()}
        self.train, heldout = TokenDataset(DATA), TokenDataset(DATA, "heldout")
        self.heldout = windows(heldout, T, ROWS)
        eager = dataclasses.replace(self.placement, compile=False, attention="structured")
        self.reader = allocate(self.quiet.model.config, config, eager)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin again."""
        own = dict(self.quiet.named_parameters())
        for name, tensor in exact_parameters(self.quiet).items():
            tensor.copy_(self.begun[name])
            own[name].copy_(self.begun[name])
        self.quiet.pause, self.quiet.config = False, self.config.thought

    # Room

    @torch.no_grad()
    def room(self, kind: str, text: str, again: bool, K: int) -> dict:
        """Rewards of untrained thoughts at fixed mixing weights.

        Args:
            kind: own, shuffled, or pauses.
            text: that start and end vectors begin from.
            again: the end slot reads the anchor's own token instead.
            K: thoughts a position.
        """
        quiet, rows = self.quiet, min(4, ROWS)
        ids = first_tokens(self.tokenizer, text)
        for name in ("start", "end"):
            begin_vector(quiet, name, ids)
        tokens, documents = (
            x[:rows].to(quiet.start.device) for x in (self.heldout.tokens, self.heldout.documents)
        )
        embed = quiet.embed_branches

        def anchored(tokens: Tensor, anchors: Tensor, thoughts: Tensor) -> Tensor:
            x = embed(tokens, anchors, thoughts)
            x[:, :, :, N + 1] = quiet.model.embed(tokens.gather(1, anchors))[:, :, None]
            return x

        if again:
            quiet.embed_branches = anchored
        with quiet.with_settings(samples=K):
            anchors, thoughts = quiet.think(tokens, documents, generator=step_generator(0, 0))
            if kind == "shuffled":
                order = torch.randperm(T, generator=torch.Generator().manual_seed(0))
                thoughts = thoughts[:, order.to(thoughts.device)]
            elif kind == "pauses":
                thoughts = pauses(thoughts.shape, thoughts.device)
            targets = targets_of(tokens, documents, anchors, quiet.config.ahead)
            base, branch = quiet.score(tokens, documents, anchors, thoughts)
            found: dict[str, Any] = {}
            for weight in (0.1, 0.3, 1.0):
                mixed = quiet.mix(anchors, base, branch, weight)
                step = quiet.judge(targets, anchors, thoughts, base, branch, mixed)
                reward = step.reward[step.valid.all(-1)]  # (positions, K)
                found[str(weight)] = {
                    "mean": reward.mean().item(),
                    "best": reward.amax(1).mean().item(),
                    "oracle": reward.amax(1).clamp(min=0).mean().item(),
                    "within": reward.var(1).mean().sqrt().item(),
                    "between": reward.mean(1).std().item(),
                }
            found["loss"] = (
                step.nll_mix[step.valid[:, :, None].expand_as(step.nll_mix)].mean().item()
            )
        if again:
            del quiet.embed_branches
        return found

    # Training

    def trained(
        self,
        optim: OptimConfig,
        steps: int,
        seed: int = 0,
        objective: str = "quiet",
        **thought: Any,
    ) -> list[dict]:
        """Train from the beginning; a record of each step."""
        self.reset()
        config = self.config.changed(
            steps=steps, seed=seed, objective=objective, **dataclasses.asdict(optim), **thought
        )
        self.quiet.config, self.quiet.pause = config.thinking, config.run.pauses
        optimizer = make_optimizer(self.quiet, config.optim)
        data, position, records = Windows(self.train, T, 0), (0, 0), []
        for step in range(steps):
            batch, position = data.batch(position, B)
            text = (x.to(self.quiet.start.device) for x in (batch.tokens, batch.documents))
            records.append(train_step(self.quiet, optimizer, *text, config, step))
        return records

    def measured(self, rows: int = ROWS, thinks: bool = True, shuffled: bool = True) -> dict:
        """Held-out NLL with and without thoughts, and what they are like."""
        text = dataclasses.replace(
            self.heldout,
            tokens=self.heldout.tokens[:rows],
            documents=self.heldout.documents[:rows],
        )
        run = dataclasses.replace(RUN, objective="quiet" if thinks else "plain")
        table = measure_tokens(self.quiet, text, run, entropies=rows == ROWS)
        found = dataclasses.asdict(nll_score(table.row_sums(table.scored), thinks))
        found["rows"] = table.row_sums(table.scored)
        if not thinks:
            return found
        found |= collapse(table)
        if rows == ROWS:
            found["deciles"] = deciles(table)
            if shuffled and not self.quiet.pause:
                other = measure_tokens(self.quiet, text, run, elsewhere)
                found["shuffled"] = dataclasses.asdict(nll_score(other.row_sums(other.scored)))
                both = zip(table.row_sums(table.scored), other.row_sums(other.scored), strict=True)
                (count, _), _, (own, foreign), _ = both
                own_gain = ratio_estimate(foreign - own, count)
                found["own_over_shuffled"] = list(own_gain)
            found["said"] = []
            for t in range(20, T, 28):
                before = self.tokenizer.decode(table.tokens[0, t - 15 : t + 1].tolist())
                thought = thought_text(self.tokenizer, [], table.thoughts[0, t].tolist())
                found["said"].append((before, thought))
        return found

    def asked(self, name: str) -> dict:
        """Gold answer probability, thoughts off and on."""
        with torch.no_grad():
            exact = exact_parameters(self.quiet)
            for n, p in self.reader.named_parameters():
                p.copy_(exact[n])
        found = {}
        for task in ("gsm8k", "commonsense_qa"):
            with self.reader.with_settings(
                thoughts=N, ahead=1, samples=1, beta=0.0, baseline="none"
            ):
                exam = Exam(task, str(MODEL), name, N, samples=2, batch=32)
                questions = read_questions(task, "heldout", QUESTIONS, ASKED)
                out = OUT / "answers" / name
                summed = question_sets.run(exam, self.reader, self.tokenizer, questions, out)
                found[task] = json.loads(json.dumps(summed, default=str))
        return found


def elsewhere(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, numbers: torch.Generator
) -> Tensor:
    """The thoughts of other positions of the row."""
    order = torch.randperm(thoughts.shape[1], generator=numbers)
    return thoughts[:, order.to(thoughts.device)]


def collapse(table: TokenTable) -> dict:
    """How many thoughts are distinct, and the share of the most frequent token."""
    thoughts = table.thoughts[table.scored]
    _, counts = thoughts.flatten().unique(return_counts=True)
    distinct = len(thoughts.unique(dim=0)) / max(1, len(thoughts))
    return {"distinct": distinct, "commonest": float(counts.max() / counts.sum())}


def deciles(table: TokenTable) -> list[dict]:
    """Gain by decile of the entropy of the prediction without thoughts."""
    base, mix, entropy = (
        x[table.scored].double().numpy() for x in (table.nll_base, table.nll_mix, table.entropy)
    )
    order = np.argsort(entropy, kind="stable")
    parts = [(base[i], (base - mix)[i]) for i in np.array_split(order, 10)]
    return [{"nll": b.mean(), "gain": g.mean(), "se": g.std() / len(g) ** 0.5} for b, g in parts]


def compared(one: dict, other: dict, column: str) -> list[float]:
    """Mean difference in nats a token between two arms, paired by row, and half its interval."""
    a, b = one["rows"], other["rows"]
    return list(ratio_estimate(getattr(b, column) - a.nll_base, a.tokens))


def shown(measures: dict) -> dict:
    return {name: value for name, value in measures.items() if name != "rows"}


def last(records: list[dict], many: int = 10) -> dict:
    names = ("nll_base", "nll_talk", "policy", "reward", "weight_mean", "grad_norm")
    kept = records[-many:]
    return {n: float(np.mean([r[n] for r in kept])) for n in names if n in kept[0]}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def main() -> None:
    study = Study()
    note(
        "setting", {"model": str(MODEL), "placement": str(study.placement), "T": T, "B": B, "n": N}
    )
    before = study.measured()
    note("as it is", shown(before))
    K = 2 if REHEARSE else 8
    starts = [("---", False), ("\n", False), (" so", False), ("---", True), ("\n", True)]
    for text, again in starts[3:4] if REHEARSE else starts:
        for kind in ("own", "shuffled", "pauses"):
            name = f"room, from {text!r}, {kind}" + ", anchor's token at the end" * again
            note(name, study.room(kind, text, again, K))
    study.reset()

    rates = {}
    for lr in (3e-5,) if REHEARSE else (3e-6, 3e-5):
        for head in (1e-4, 1e-3):
            optim = OptimConfig(lr=lr, mixer_lr=head, thought_lr=head, warmup=5)
            records, seconds = timed(lambda optim=optim: study.trained(optim, RATE_STEPS))
            measures = study.measured(min(32, ROWS))
            rates[lr, head] = optim, measures["nll_mix"], seconds / RATE_STEPS
            note(f"rates, model {lr:g}, head {head:g}", last(records, 5) | shown(measures))
    optim, _, seconds = min(rates.values(), key=lambda rate: rate[1])
    # every arm the same steps: what is left holds four that think, and measuring
    steps = RATE_STEPS if REHEARSE else int(max(20, min(200, (left() - 120) / 4 / seconds)))
    note("chosen", dataclasses.asdict(optim) | {"steps": steps, "seconds_a_step": seconds})

    arms = {
        "plain": ({"objective": "plain"}, 0),
        "quiet, seed 0": ({}, 0),
        "quiet, seed 1": ({}, 1),
        "pause": ({"objective": "pause"}, 0),
        "beta 0": ({"beta": 0.0}, 0),
    }
    plain, logs = None, {}
    for name, (changes, seed) in arms.items():
        if left() < 20 + steps * seconds and not REHEARSE:
            note(name, {"skipped": f"{left():.0f} s left"})
            continue
        records, took = timed(lambda c=changes, s=seed: study.trained(optim, steps, s, **c))
        measures = study.measured(thinks=name != "plain")
        found = {"seconds": took, "last": last(records)} | shown(measures)
        if name == "plain":
            plain = measures
        elif plain:
            found["with_thoughts_against_plain"] = compared(plain, measures, "nll_mix")
            found["without_thoughts_against_plain"] = compared(plain, measures, "nll_base")
        note(name, found)
        logs[name] = records
        (OUT / "logs.json").write_text(json.dumps(logs))
        if name == "quiet, seed 0" and left() > 60:
            note(f"questions, {name}", study.asked("quiet"))
    if left() > 40 or REHEARSE:
        study.reset()
        note("questions, as it is", study.asked("begun"))
    shape, quiet_config = study.quiet.model.config, study.config
    ratio = sum(operations(quiet_config, shape).values()) / sum(
        operations(quiet_config.changed(objective="plain"), shape).values()
    )
    more = round(steps * ratio)
    fits = left() - 10 > more * 0.06
    if fits or REHEARSE:
        more = min(more, 5) if REHEARSE else more
        records, took = timed(lambda: study.trained(optim, more, 0, "plain"))
        measures = shown(study.measured(thinks=False))
        note("plain, same operations", {"steps": more, "seconds": took} | measures)
    else:
        note("plain, same operations", {"skipped": f"{more} steps, {left():.0f} s left"})
    print(f"{time.perf_counter() - BEGAN:.0f} s")


if __name__ == "__main__":
    main()
