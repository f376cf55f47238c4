"""One optimiser step: think, count, score in micro-batches, measure gradients, clip, update.

Thoughts are sampled for the whole batch first. Then every count is known, and each micro-batch adds
its share of one mean: how a batch is split changes memory, not results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from qs.config import Config, OptimConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.anchors import draw
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import Step, Targets, Terms, count_terms, targets_of
from qs.training.distributed import ALONE, Ranks, total, whole
from qs.training.plan import ACTIVATIONS


def make_optimizer(quiet: QuietStar, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with a learning rate for each of model, mixing head, and start and end vectors.

    Weight decay touches matrices only.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in quiet.named_parameters():
        lr = config.lr
        if name.startswith("mixer."):
            lr = config.mixer_lr
        elif name in ("start", "end"):
            lr = config.thought_lr
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        (
            {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ),
        betas=(0.9, config.beta2),
    )


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
    """

    tokens: Tensor
    documents: Tensor
    anchors: Tensor
    thoughts: Tensor
    targets: Targets
    first: bool

    @property
    def counts(self) -> Terms:
        """How many positions each loss term has."""
        K, n = self.thoughts.shape[2:]
        return self.of(count_terms(self.targets.next_valid, self.targets.valid, K, n))

    def of(self, terms: Terms) -> Terms:
        """What counts here of the terms of these rows: the base term counts once."""
        return terms if self.first else terms._replace(base=torch.zeros_like(terms.base))

    def scored(self, quiet: QuietStar, counts: Terms) -> tuple[Step, Terms]:
        """Stages 3 to 5, with gradient, and the terms divided by the counts of the whole batch."""
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
) -> list[Part]:
    """Split a batch into micro-batches and let each think (plain training has no thoughts).

    With several ranks (B, T) is one rank's share; the numbers of the ranks before it are passed by.
    """
    B, T = tokens.shape
    if config.run.thinks:
        draw(quiet.config, ranks.rank * B, T, generator)
    parts = []
    size = config.run.micro_batch or B
    for rows in (slice(first, first + size) for first in range(0, B, size)):
        text = tokens[rows], documents[rows]
        if config.run.thinks:
            anchors, thoughts = quiet.think(*text, generator=generator)
        else:
            anchors = tokens[rows, :0]
            thoughts = anchors.new_zeros((*anchors.shape, quiet.config.samples, 0))
        counting = None if counted is None else counted[rows]
        A = anchors_at_once(quiet, thoughts, config.run.activations)
        for first in range(0, max(1, anchors.shape[1]), A):
            at = slice(first, first + A)
            some = anchors[:, at], thoughts[:, at]
            targets = targets_of(*text, some[0], quiet.config.ahead, counting)
            parts.append(Part(*text, *some, targets, first == 0))
    return parts


def anchors_at_once(quiet: QuietStar, thoughts: Tensor, mebibytes: int | None) -> int:
    """How many anchors of (B, A, K, n) thoughts are scored at a time, in parts of about one size.

    The text of the rows is read again with each part: a small share of its slots.
    """
    (B, A, K, n), config = thoughts.shape, quiet.config
    if config.base_weight == 1 and config.beta == 0:
        return max(1, A)  # parts after the first would have nothing to train
    if mebibytes is None:
        mebibytes = ACTIVATIONS if thoughts.device.type == "cpu" else 0
    shape, width = quiet.model.config, quiet.model.compute_dtype.itemsize
    # of a layer: its inputs and those of its products; queries and what they attended to
    floats = shape.dim if quiet.model.recompute else 10 * shape.dim + 3 * shape.hidden_dim
    slots = B * A * K * (n + quiet.config.ahead + 1)
    parts = slots * shape.layers * floats * width / (mebibytes * 2**20) if mebibytes else 1
    return max(1, math.ceil(A / max(1, math.ceil(parts))))


class Sums(NamedTuple):
    """What is logged of a batch, before it is divided; () each."""

    base: Tensor
    talk: Tensor
    policy: Tensor
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
        return Sums(
            *(mean.detach() for mean in means),
            reward=step.reward.sum(),
            rewarded=step.valid.all(-1).sum() * step.reward.shape[2],
            weight=weight.sum(),
            weight_square=weight.square().sum(),
            weighed=counts.sum(),
        )


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


def accumulate_apart(
    quiet: QuietStar, parameters: list[Tensor], parts: list[Part], counts: Terms, ranks: Ranks
) -> tuple[list[Sums], dict[str, Tensor]]:
    """The same one term at a time, and the norm of each term's gradient as weighted in the loss.

    It costs a backward pass and a copy of the gradients for each term. Arguments as of
    `accumulate`; `parameters`: what is trained.
    """
    sums = []
    gradients: dict[str, list[Tensor | None]] = {}
    for part in parts:
        step, means = part.scored(quiet, counts)
        weighted = quiet.weighted(means)
        active = [name for name, term in weighted._asdict().items() if term.requires_grad]
        for name in active:
            kept = gradients.setdefault(name, [None] * len(parameters))
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient
            # through .grad, not autograd.grad: it is what FSDP2 reduces over ranks
            term = getattr(weighted, name) * ranks.count
            term.backward(retain_graph=name != active[-1])
            gradients[name] = [parameter.grad for parameter in parameters]
        sums.append(Sums.of(step, means))
    norms = {
        f"grad_norm_{name}": whole(get_total_norm([g for g in kept if g is not None]))
        for name, kept in gradients.items()
    }
    for parameter, *kept in zip(parameters, *gradients.values(), strict=True):
        kept = [gradient for gradient in kept if gradient is not None]
        parameter.grad = sum(kept[1:], kept[0]) if kept else None
    return sums, norms


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
) -> dict[str, float]:
    """One optimiser step on a batch (B, T).

    A step whose loss or gradient is not finite changes nothing and says `skipped: 1`.

    Args:
        step: 0-based; decides learning rate and randomness.
        measure_terms: also measure the gradient norm of each loss term.
        ranks: who this is of how many; (B, T) is its share of the batch.
        counted: (B, T) True where a token counts as a target; None: everywhere.

    Returns:
        What goes into the log: losses and rewards in nats, mixing weight, gradient norms, lr.
    """
    share = schedule(step, config.run.steps, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    generator = step_generator(config.run.seed, step)
    parts = think(quiet, tokens, documents, config, generator, ranks, counted)
    counts = sum_over_ranks([part.counts for part in parts])
    norms: dict[str, Tensor] = {}
    if measure_terms:
        sums, norms = accumulate_apart(quiet, parameters, parts, counts, ranks)
    else:
        sums = accumulate(quiet, parts, counts, ranks)
    norms["grad_norm"] = whole(clip_grad_norm_(parameters, config.optim.clip))

    measured = sum_over_ranks(sums)
    loss = quiet.loss(Terms(measured.base, measured.talk, measured.policy))
    # together, to wait for the device once
    value, *values = torch.stack([loss, *measured, *norms.values()]).tolist()
    count = len(measured)
    lengths = dict(zip(norms, values[count:], strict=True))
    record = _record(value, Sums(*values[:count]), lengths)
    finite = math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return record | {"lr": config.optim.lr * share, "skipped": int(not finite)}


def _record(loss: float, sums: Sums, norms: dict[str, float]) -> dict[str, float]:
    """Names of the log, in the order a reader wants them."""
    record = {"loss": loss, "nll_base": sums.base}
    if sums.weighed:
        mean = sums.weight / sums.weighed
        variance = sums.weight_square / sums.weighed - mean**2
        record |= {
            "nll_talk": sums.talk,
            "policy": sums.policy,
            "reward": sums.reward / max(1, sums.rewarded),
            "weight_mean": mean,
            "weight_std": math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan,
        }
    return record | norms
