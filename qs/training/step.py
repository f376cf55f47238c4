"""One optimiser step: think, count, score in micro-batches, measure gradients, clip, update.

Thoughts are sampled for the whole batch first. Then every count is known, and each micro-batch adds
its share of one mean: how a batch is split changes memory, not results.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from qs.config import Config, OptimConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.anchors import draw
from qs.quietstar.distil import Lesson, learn, teach
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import Step, Targets, Terms, count_terms, targets_of
from qs.training.average import Average
from qs.training.distributed import ALONE, Ranks, gathered, total, whole
from qs.training.memory import PartMemory


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step (0-based): linear warm-up, then constant or cosine.

    The first step takes 1 / (warmup + 1) of the peak: no step is spent at 0.
    """
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    if config.decay == "constant":
        return rise
    done = max(0, step - config.warmup) / max(1, steps - config.warmup)
    return rise * 0.5 * (1 + math.cos(math.pi * done))


class Part(NamedTuple):
    """Some rows with the thoughts of some anchors, and targets.

    Attributes:
        tokens, documents, anchors, thoughts, targets: as of `QuietStar.forward`.
        first: whether these are the first anchors of their rows, with which the NLL without
            thoughts counts.
        lesson: what is learnt by a step that is distilled, of the thoughts of its teacher.
    """

    tokens: Tensor
    documents: Tensor
    anchors: Tensor
    thoughts: Tensor
    targets: Targets
    first: bool
    lesson: Lesson | None = None

    @property
    def counts(self) -> Terms:
        """How many positions each loss term has."""
        K, n = self.thoughts.shape[2:]
        return self.of(count_terms(self.targets.next_valid, self.targets.valid, K, n))

    def split(self, rows: int, anchors: int) -> list[Part]:
        """Parts of so many rows, and anchors of a row."""
        parts = []
        B, A = self.thoughts.shape[:2]
        for row in range(0, B, rows):
            for first in range(0, max(1, A), max(1, anchors)):
                at = slice(row, row + rows), slice(first, first + anchors)
                targets = self.targets.of(*at)
                text = self.tokens[at[0]], self.documents[at[0]]
                thought = self.anchors[at], self.thoughts[at]
                parts.append(Part(*text, *thought, targets, first == 0))
        return parts

    def text_only(self) -> Part:
        """The text without its anchors, for the base term."""
        targets = self.targets.of(slice(None), slice(0))
        anchors, thoughts = self.anchors[:, :0], self.thoughts[:, :0]
        return self._replace(anchors=anchors, thoughts=thoughts, targets=targets, lesson=None)

    def of(self, terms: Terms) -> Terms:
        """What counts here of the terms of these rows: the base term counts once."""
        return terms if self.first else terms._replace(base=torch.zeros_like(terms.base))

    def scored(self, quiet: QuietStar, counts: Terms) -> tuple[Step, Terms]:
        """Stages 3 to 5, with gradient, and the terms divided by the counts of the whole batch."""
        if self.lesson:
            step = learn(quiet, *self[:5], self.lesson)
        else:
            text = self.tokens, self.documents
            step = quiet(*text, None, self.anchors, self.thoughts, targets=self.targets)
        return step, self.of(quiet.means(step, counts))


def think(
    quiet: QuietStar,
    tokens: Tensor,
    documents: Tensor,
    config: Config,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    counted: Tensor | None = None,
    average: Average | None = None,
) -> list[Part]:
    """Split a batch into micro-batches and let each think (plain training has no thoughts).

    With several ranks (B, T) is one rank's share; the numbers of the ranks before it are passed by.
    Rewards are over the prediction of `average` where the settings say so.
    """
    B, T = tokens.shape
    if config.run.thinks:
        draw(quiet.config, ranks.rank * B, T, generator)
    parts = []
    size, model, bound = config.run.micro_batch or B, quiet.model, config.run.activations
    width = model.compute_dtype.itemsize
    memory = PartMemory(config, model.config, width, model.recompute, model.compiled)
    if bound is None:
        bound = memory.cpu_bound() if tokens.device.type == "cpu" else 0
    some = memory.split(bound, size)
    for rows in (slice(first, first + size) for first in range(0, B, size)):
        text = tokens[rows], documents[rows]
        if config.run.thinks:
            with gathered(quiet.model.layers):
                anchors, thoughts = quiet.think(*text, generator=generator)
        else:
            anchors = tokens[rows, :0]
            thoughts = anchors.new_zeros((*anchors.shape, quiet.config.samples, 0))
        counting = None if counted is None else counted[rows]
        targets = targets_of(*text, anchors, quiet.config.ahead, counting)
        if config.thinking.reference == "average":
            targets = average.judge(quiet, *text, targets)
        batch = Part(*text, anchors, thoughts, targets, True)
        parts += batch.split(*some)
    return parts


class Sums(NamedTuple):
    """What is logged of a batch, before it is divided; () each."""

    base: Tensor
    talk: Tensor
    policy: Tensor
    gain: Tensor
    gained: Tensor
    reward: Tensor
    rewarded: Tensor
    weight: Tensor
    weight_square: Tensor
    weighed: Tensor

    @staticmethod
    @torch.no_grad()
    def of(step: Step, means: Terms) -> Sums:
        """Those of a micro-batch, whose terms are divided by the counts of the whole batch."""
        counts = step.valid[:, :, None].expand_as(step.weight)
        weight = step.weight.where(counts, 0.0)
        gain = step.nll_base.gather(1, step.anchors)[..., None] - step.nll_mix[..., 0]
        return Sums(
            *(mean.detach() for mean in means),
            gain=gain.sum(),  # both are 0 where there is no target
            gained=counts[..., 0].sum(),
            reward=step.reward.sum(),
            rewarded=step.valid.all(-1).sum() * step.reward.shape[2],
            weight=weight.sum(),
            weight_square=weight.square().sum(),
            weighed=counts.sum(),
        )


def thought_statistics(parts: Sequence[Part], config: Config, size: int) -> dict[str, Tensor]:
    """What shows that thoughts have collapsed, over all sampled tokens of a batch; () each.

    Args:
        parts: micro-batches that have thought.
        config: nothing is measured where no thought is sampled.
        size: of the vocabulary.

    Returns:
        thought_entropy: of how often each token was sampled, in nats; thought_top: share of the
        commonest one; thought_same: share of positions whose K thoughts are equal, for K > 1;
        thought_length: mean tokens of a thought, where they end themselves.
    """
    if not config.sampled:
        return {}
    thoughts = [part.thoughts for part in parts]
    counts = torch.zeros(size, device=thoughts[0].device)
    for each in thoughts:
        counts += (each.flatten() + 1).clamp(min=0).bincount(minlength=size + 1)[1:]  # no ENDED
    tokens = total(counts)
    share = tokens / tokens.sum().clamp(min=1)
    found = {"thought_entropy": -share.xlogy(share).sum(), "thought_top": share.max()}
    if config.thinking.end == "drawn":
        sampled = torch.tensor(sum(each[..., 0].numel() for each in thoughts))
        found["thought_length"] = tokens.sum() / total(sampled.to(counts))
    if config.thought.samples > 1 and config.thought.sample_temperature > 0:
        same = sum((each == each[:, :, :1]).all(-1).all(-1).sum() for each in thoughts)
        positions = torch.tensor(sum(each[:, :, 0, 0].numel() for each in thoughts))
        found["thought_same"] = total(same) / total(positions.to(counts))
    return found


Summed = TypeVar("Summed", Terms, Sums)


def sum_over_ranks(records: Sequence[Summed]) -> Summed:
    """Field by field the sum over micro-batches and ranks; as many records on every rank."""
    return type(records[0])(*(total(sum(field)) for field in zip(*records, strict=True)))


def accumulate(quiet: QuietStar, parts: list[Part], counts: Terms, ranks: Ranks) -> list[Sums]:
    """Fill every parameter's `.grad` with the gradient of the loss of all micro-batches.

    Args:
        quiet: the module.
        parts: micro-batches that have thought.
        counts: what each term is divided by, over the whole batch of all ranks.
        ranks: FSDP2 takes the mean over ranks, while the counts are of all of them.
    """
    sums = []
    for part in parts:
        step, means = part.scored(quiet, counts)
        (quiet.loss(means) * ranks.count).backward()
        sums.append(Sums.of(step, means))
    return sums


def term_norms(
    quiet: QuietStar, parts: list[Part], counts: Terms, ranks: Ranks
) -> dict[str, Tensor]:
    """The norm of each term's gradient as weighted in the loss.

    Each is computed on its own: no graph and no second gradient is held, and the step that follows
    is what it would have been. Arguments as of `accumulate`, which must come after it.
    """
    norms = {}
    for name in Terms._fields:
        for part in parts:
            if name == "base":
                if not part.first:  # FSDP2 loses gradients by a pass that none follows back
                    continue
                part = part.text_only()
            _, means = part.scored(quiet, counts)
            term = getattr(quiet.weighted(means), name)
            if term.requires_grad:
                (term * ranks.count).backward()
        gradients = [p.grad for p in quiet.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad_norm_{name}"] = whole(get_total_norm(gradients))
        quiet.zero_grad()
    return norms


def train_step(
    quiet: QuietStar,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    documents: Tensor,
    config: Config,
    step: int,
    measure_terms: bool = False,
    ranks: Ranks = ALONE,
    counted: Tensor | None = None,
    average: Average | None = None,
) -> dict[str, float]:
    """One optimiser step on a batch (B, T).

    A step whose loss or gradient is not finite changes nothing and says `skipped: 1`.

    Args:
        step: 0-based; decides learning rate and randomness.
        measure_terms: also measure the gradient norm of each loss term.
        ranks: who this is of how many; (B, T) is its share of the batch.
        counted: (B, T) True where a token counts as a target; None: everywhere.
        average: of the weights, which moves along, in stages that do not need it too; or the
            teacher of a step that is distilled.

    Returns:
        What goes into the log: losses and rewards in nats, mixing weight, gradient norms, lr.
    """
    share = schedule(step, config.run.steps, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    generator = step_generator(config.run.seed, step)
    distils = config.run.distil > 0
    assert average or not (config.thinking.reference == "average" or distils)
    with average.in_place(quiet) if average and distils else contextlib.nullcontext():
        parts = think(quiet, tokens, documents, config, generator, ranks, counted, average)
        if distils:
            head = quiet.model.head.detach().clone()
            parts = [part._replace(lesson=teach(quiet, *part[:4], head)) for part in parts]
    counts = sum_over_ranks([part.counts for part in parts])
    norms = term_norms(quiet, parts, counts, ranks) if measure_terms else {}
    sums = accumulate(quiet, parts, counts, ranks)
    norms["grad_norm"] = whole(clip_grad_norm_(quiet.parameters(), config.optim.clip))

    norms |= thought_statistics(parts, config, quiet.model.config.vocab_size)
    measured = sum_over_ranks(sums)
    loss = quiet.loss(Terms(measured.base, measured.talk, measured.policy))
    # together, to wait for the device once
    value, *values = torch.stack([loss, *measured, *norms.values()]).tolist()
    count = len(measured)
    lengths = dict(zip(norms, values[count:], strict=True))
    record = _record(value, Sums(*values[:count]), lengths, distils)
    finite = math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])
    if finite:
        optimizer.step()
        if average:
            average.update(quiet)
    quiet.zero_grad()
    return record | {"lr": config.optim.lr * share, "skipped": int(not finite)}


def _record(loss: float, sums: Sums, norms: dict[str, float], distils: bool) -> dict[str, float]:
    """Names of the log, in the order a reader wants them."""
    record = {"loss": loss, "nll_base": sums.base}
    if distils:
        record["distil"] = sums.talk
    elif sums.weighed:
        mean = sums.weight / sums.weighed
        variance = sums.weight_square / sums.weighed - mean**2
        record |= {
            "nll_talk": sums.talk,
            "policy": sums.policy,
            "gain": sums.gain / max(1, sums.gained),
            "reward": sums.reward / max(1, sums.rewarded),
            "weight_mean": mean,
            "weight_std": math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan,
        }
    return record | norms
