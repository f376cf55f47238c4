"""A pretrained model under study: trained from where it began, and measured (see smollm2.md).

`Study` holds one model, so that every pass is compiled once, and what the arms of `run_smollm2.py`
are made of: phases of training, the room that thoughts have, held-out text, questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2_thoughts import elsewhere, others_thoughts, silent, thinks_after, true_thoughts
from torch import Tensor

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset, Windows
from qs.data.question_sets import BenchmarkQuestion
from qs.evaluation.gold_probability import item
from qs.evaluation.statistics import paired, ratio_estimate
from qs.evaluation.tokens import TextRows, TokenTable, measure_tokens, nll_score, windows
from qs.inference.cache import read_texts
from qs.inference.decoding import thought_text
from qs.inference.loglikelihood import Thinking, score
from qs.quietstar.ends import pauses
from qs.quietstar.load import begin_vector, choose_placement, eager, first_tokens, load
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import targets_ahead, targets_of
from qs.training.optimizer import exact_parameters, make_optimizer
from qs.training.step import train_step


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    seq: int = 256  # T
    batch: int = 8
    share: float = 1.0  # of a row's positions that think in training
    thoughts: int = 8  # n
    steps: int = 100  # of every arm
    lr: float = 1e-5  # of the model
    rows: int = 128  # of held-out text
    asked: int | None = 256  # questions of a set; None: all
    batch_asked: int = 256
    room_rows: int = 8
    room_share: float = 0.25
    room_samples: int = 8  # K
    bridge_steps: int = 600  # of plain training on written workings
    bridge_thoughts: int = 24  # n
    easy_thoughts: int = 16  # n: the longest workings
    easy_steps: int = 60  # of plain training: some of the workings are right then
    problems: int = 256  # held out of the bridge
    activations: int = 20480  # MiB: three of these processes share a GPU of 80 GB


GPU = Sizes()
CPU = Sizes(  # forty minutes an arm and core
    seq=128, share=0.125, rows=64, asked=32, batch_asked=16, room_samples=4, problems=48,
    activations=4096,
)  # fmt: skip
SMALL = Sizes(  # what a CPU can do in minutes
    seq=128, batch=4, share=0.125, steps=16, lr=3e-5, rows=1, asked=32, batch_asked=16,
    room_rows=6, room_samples=4, bridge_steps=60, easy_steps=60, problems=48, activations=0,
)  # fmt: skip
REHEARSAL = Sizes(
    seq=24, batch=2, thoughts=2, steps=3, rows=2, asked=2, batch_asked=2,
    room_rows=2, room_samples=2, bridge_steps=2, bridge_thoughts=2, easy_thoughts=2, easy_steps=2,
    problems=2, activations=0,
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Some of an arm's steps.

    Attributes:
        settings: fields of the config that differ from the study's.
        share: of the arm's steps; those of all phases together are 1.
        true: thoughts are the true continuation, and ever fewer of them as the phase goes on.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    true: bool = False


class Study:
    """One model, its text, and where it began."""

    def __init__(self, model: Path, data: Path, sizes: Sizes, **settings: Any) -> None:
        self.sizes = sizes
        thought = ThoughtConfig(
            thoughts=sizes.thoughts,
            ahead=4,
            samples=2,
            beta=1.0,
            anchors="all" if sizes.share == 1 else "random",
            anchor_share=sizes.share,
        )
        # vectors are stored divided by 100: this moves them 0.001 a step; embeddings deviate 0.14
        optim = OptimConfig(lr=sizes.lr, mixer_lr=1e-3, thought_lr=1e-5, warmup=5)
        run = RunConfig(
            data=str(data),
            weights=str(model),
            seq=sizes.seq,
            batch=sizes.batch,
            steps=sizes.steps,
            grad_norms_every=0,
            activations=sizes.activations,
        )
        self.config = Config(thought, optim, run).changed(**settings)
        self.placement = choose_placement(self.config.run)
        training = self.placement.for_training(offload=False, alone=True)
        self.quiet, self.tokenizer = load(model, self.config, training)
        self.begun = self.values()
        self.data = data

    # Where training begins

    def values(self) -> dict[str, Tensor]:
        """A copy of all that is trained."""
        return {n: x.detach().clone() for n, x in exact_parameters(self.quiet).items()}

    @torch.no_grad()
    def reset(self, values: dict[str, Tensor] | None = None) -> None:
        """Go back to where it began, or to other values."""
        own = dict(self.quiet.named_parameters())
        self.quiet.model.requires_grad_(True)
        for name, tensor in exact_parameters(self.quiet).items():
            tensor.copy_((self.begun if values is None else values)[name])
            own[name].copy_(tensor)
        self.quiet.pause, self.quiet.config = False, self.config.thought

    def begin_vectors(self, start: str, end: str) -> None:
        """Take start and end vectors from some texts."""
        for name, text in (("start", start), ("end", end)):
            begin_vector(self.quiet, name, first_tokens(self.tokenizer, text))

    # Training

    def train(
        self,
        phases: Sequence[Phase],
        steps: int,
        seed: int = 0,
        data: Path | None = None,
        after: Sequence[int] = (),
        watch: Callable[[list[dict]], None] | None = None,
    ) -> list[dict]:
        """Train in phases on the same rows as every other arm; a record of each step.

        Args:
            after: ids that a position has to end with to think first.
            watch: called after every step with the records so far.
        """
        source = Windows(TokenDataset(data or self.data), self.sizes.seq, 0)
        position, records = (0, 0), []
        for phase in phases:
            many = round(phase.share * steps)
            config = self.config.changed(**{"steps": many, "seed": seed} | phase.settings)
            self.quiet.config, self.quiet.pause = config.thinking, config.run.pauses
            # on a GPU frozen weights would have every pass compiled again
            trains = self.quiet.model.compiled or config.optim.lr > 0
            self.quiet.model.requires_grad_(trains)
            optimizer = make_optimizer(self.quiet, config.optim)
            for step in range(many):
                batch, position = source.batch(position, self.sizes.batch)
                text = (x.to(self.quiet.start.device) for x in (batch.tokens, batch.documents))
                shown = 1 - step / many if phase.true else 0.0
                with thinks_after(self.quiet, after), true_thoughts(self.quiet, shown):
                    records.append(train_step(self.quiet, optimizer, *text, config, step))
                if watch:
                    watch(records)
        self.quiet.model.requires_grad_(True)
        return records

    # Room

    @torch.no_grad()
    def room(
        self,
        K: int | None = None,
        text: TextRows | None = None,
        anchors: Tensor | None = None,
        others: dict[str, Tensor] | None = None,
    ) -> tuple[dict, Tensor, dict]:
        """What thoughts of these weights earn at fixed mixing weights, and at the head's.

        Args:
            K: thoughts a position.
            text: rows; by default of the held-out split.
            anchors: (B, A) who thinks; by default a random share.
            others: thoughts (B, A, k, n) of other kinds; by default the true continuation.

        Returns:
            For own thoughts, those of other positions, pauses and others, at each weight: the mean
            reward, the best of K, spread within and between positions; and what own ones earn
            beyond the rest, with the half-width of its 95 % interval over positions. Then the own
            thoughts (B, A, K, n), and rewards (positions, K) by kind and weight.
        """
        quiet, K = self.quiet, K or self.sizes.room_samples
        text = text or self.heldout(self.sizes.room_rows)
        x, documents = (y.to(quiet.start.device) for y in (text.tokens, text.documents))
        random = {"anchors": "random", "anchor_share": self.sizes.room_share}
        with eager(quiet), quiet.with_settings(samples=K, **random if anchors is None else {}):
            anchors, own = quiet.think(x, documents, anchors, step_generator(0, 0))
            side = 1 if anchors.shape[1] > 1 else 0
            kinds = {
                "own": own,
                "shuffled": own.roll(own.shape[side] // 2, side),
                "pauses": pauses(own.shape, own.device)[:, :, :1],
            }
            true = {"true": targets_ahead(x, documents, anchors, own.shape[3])[0][:, :, None]}
            kinds |= {name: z.to(own.device) for name, z in (others or true).items()}
            rewards = {kind: self.earned(x, documents, anchors, z) for kind, z in kinds.items()}
        found: dict[str, Any] = {}
        for weight, own_rewards in rewards["own"].items():
            found[weight] = {kind: spread(each[weight]) for kind, each in rewards.items()}
            for other in rewards.keys() - {"own"}:
                means = (r.mean(1).tolist() for r in (rewards[other][weight], own_rewards))
                found[weight][f"own over {other}"] = list(paired(*means))
        found["said"] = [
            (self.tokenizer.decode(x[b, max(0, t - 14) : t + 1].tolist()), self.said(own[b, i, 0]))
            for b in range(min(4, len(x)))
            for i, t in list(enumerate(anchors[b].tolist()))[::8]
        ]
        return found, own, rewards

    def earned(self, x: Tensor, documents: Tensor, anchors: Tensor, thoughts: Tensor) -> dict:
        """Rewards (positions, K) on the CPU at each mixing weight."""
        quiet = self.quiet
        targets = targets_of(x, documents, anchors, quiet.config.ahead)
        base, branch = quiet.score(x, documents, anchors, thoughts)
        found = {}
        for weight in (0.1, 0.3, 1.0, None):
            mixed = quiet.mix(anchors, base, quiet.after(branch, thoughts), weight)
            step = quiet.judge(targets, anchors, thoughts, base, branch, mixed)
            found[str(weight or "head")] = step.reward[step.valid.all(-1)].double().cpu()
        return found

    # Held-out text

    def heldout(self, rows: int, data: Path | None = None) -> TextRows:
        return windows(TokenDataset(data or self.data, "heldout"), self.sizes.seq, rows)

    def measured(self, thinks: bool = True, data: Path | None = None) -> tuple[dict, dict]:
        """Held-out NLL with and without thoughts, and what they are like; and its rows' sums."""
        text = self.heldout(self.sizes.rows, data)
        run = dataclasses.replace(self.config.run, objective="quiet" if thinks else "plain")
        table = measure_tokens(self.quiet, text, run, entropies=thinks)
        sums = table.row_sums(table.scored)
        found = dataclasses.asdict(nll_score(sums, thinks))
        rows = {name: column.tolist() for name, column in sums._asdict().items()}
        if not thinks:
            return found, rows
        found |= collapse(table) | {"deciles": deciles(table)}
        if not self.quiet.pause:
            for name, change in {"shuffled": elsewhere, "pauses": silent}.items():
                other = measure_tokens(self.quiet, text, run, change)
                instead = other.row_sums(other.scored)
                found[name] = dataclasses.asdict(nll_score(instead))
                gain = ratio_estimate(instead.nll_mix - sums.nll_mix, sums.tokens)
                found[f"own over {name}"] = list(gain)
        found["said"] = [
            (self.tokenizer.decode(text.tokens[0, max(0, t - 14) : t + 1].tolist()), self.said(z))
            for t, z in list(enumerate(table.thoughts[0]))[:: max(1, self.sizes.seq // 9)]
        ]
        return found, rows

    def said(self, thought: Tensor) -> str:
        return thought_text(self.tokenizer, [], thought.tolist())

    # Questions

    @torch.no_grad()
    def asked(self, questions: Sequence[BenchmarkQuestion], thinks: bool = True) -> dict:
        """Gold answer probability without thoughts, with own and with those of other questions."""
        items = [item(question, self.tokenizer) for question in questions]
        items.sort(key=lambda x: len(x.text.ids))
        ways = [Thinking("never"), Thinking("always", 2, 1.0)][: 1 + thinks]
        gold: dict[str, list[float]] = {"without": [], "own": [], "shuffled": []}
        settings = {"ahead": 1, "samples": 1, "beta": 0.0, "baseline": "none"}
        with eager(self.quiet), self.quiet.with_settings(**settings):
            for first in range(0, len(items), self.sizes.batch_asked):
                some = items[first : first + self.sizes.batch_asked]
                texts = [x.text for x in some]
                reading = read_texts(self.quiet.model, [text.ids for text in texts])
                scores = score(self.quiet, texts, ways, reading)
                if thinks:
                    with others_thoughts(self.quiet):
                        scores += score(self.quiet, texts, ways[1:], reading)
                for name, each in zip(gold, scores, strict=False):
                    gold[name] += [x.gold(s) for x, s in zip(some, each, strict=True)]
        found = {"questions": len(items), "chance": float(np.mean([x.chance for x in items]))}
        found |= {name: float(np.mean(p)) for name, p in gold.items() if p}
        if thinks:
            for other in ("without", "shuffled"):
                one, own = (np.array(gold[name]) for name in (other, "own"))
                found[f"own over {other}"] = list(paired(one, own))
                found[f"own over {other}, nats"] = list(paired(np.log(one), np.log(own)))
        return found


# What is told of numbers


def spread(rewards: Tensor) -> dict[str, float]:
    """Of rewards (positions, K) in nats."""
    several = rewards.shape[1] > 1
    return {
        "mean": rewards.mean().item(),
        "best": rewards.amax(1).mean().item(),
        "oracle": rewards.amax(1).clamp(min=0).mean().item(),  # that may also not think
        "within": rewards.var(1).mean().sqrt().item() if several else 0.0,
        "between": rewards.mean(1).std().item(),
        "positions": len(rewards),
    }


def collapse(table: TokenTable) -> dict[str, float]:
    """How many thoughts are distinct, the share of the most frequent token, entropy of tokens."""
    thoughts = table.thoughts[table.scored]
    if not thoughts.numel():
        return {}
    _, counts = thoughts.flatten().unique(return_counts=True)
    share = counts / counts.sum()
    distinct = len(thoughts.unique(dim=0)) / len(thoughts)
    nats = -float(share.xlogy(share).sum())
    return {"distinct": distinct, "commonest": float(share.max()), "entropy": nats}


def deciles(table: TokenTable) -> list[dict[str, float]]:
    """Gain by decile of the entropy of the prediction without thoughts."""
    base, mix, nats = (
        x[table.scored].double().numpy() for x in (table.nll_base, table.nll_mix, table.entropy)
    )
    order = np.argsort(nats, kind="stable")
    parts = [(base[i], (base - mix)[i]) for i in np.array_split(order, 10)]
    return [{"nll": b.mean(), "gain": g.mean(), "se": g.std() / len(g) ** 0.5} for b, g in parts]


def last(records: list[dict], many: int = 10) -> dict[str, float]:
    """Means over the last steps."""
    names = (
        "nll_base", "nll_talk", "policy", "reward", "weight_mean", "grad_norm", "thought_entropy",
    )  # fmt: skip
    kept = records[-many:]
    return {n: float(np.mean([r[n] for r in kept])) for n in names if all(n in r for r in kept)}
