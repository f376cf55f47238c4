"""One optimiser step: think, count, score in micro-batches, measure gradients, clip, update.

Thoughts are sampled for the whole batch first. Then every count is known, and each micro-batch adds
its share of one mean: how a batch is split changes memory, not results.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import Config, OptimConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.anchors import draw
from qs.quietstar.losses import Step, Targets, Terms, count_terms, targets_of, term_weights
from qs.quietstar.sampler import step_generator
from qs.training.distributed import ALONE, Ranks, total, whole


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
    """One micro-batch with its thoughts and targets."""

    tokens: Tensor
    documents: Tensor
    anchors: Tensor
    thoughts: Tensor
    targets: Targets


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
    if config.run.thinks:
        draw(quiet.config, ranks.rank * len(tokens), tokens.shape[1], generator)
    rows = config.run.micro_batch or len(tokens)
    parts = []
    counting = [None] * len(tokens) if counted is None else counted.split(rows)
    split = zip(tokens.split(rows), documents.split(rows), counting, strict=False)
    for *some, target in split:
        if not config.run.thinks:
            anchors = some[0][:, :0]
            thoughts = anchors.new_zeros((*anchors.shape, quiet.config.samples, 0))
        else:
            anchors, thoughts = quiet.think(*some, generator=generator)
        targets = targets_of(*some, anchors, quiet.config.ahead, target)
        parts.append(Part(*some, anchors, thoughts, targets))
    return parts


def count(part: Part) -> Terms:
    """How many positions each loss term of a micro-batch has (`losses.count_terms`)."""
    return count_terms(part.targets.next_valid, part.targets.valid, *part.thoughts.shape[2:])


def gradients(
    quiet: QuietStar,
    parameters: list[Tensor],
    parts: list[Part],
    counts: Terms,
    config: Config,
    apart: bool,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fill every parameter's `.grad` with the gradient of the loss of all micro-batches.

    Args:
        quiet: the module.
        parameters: what is trained.
        parts: micro-batches that have thought.
        counts: what each sum is divided by, over the whole batch of all ranks.
        config: settings.
        apart: also measure each term's own gradient, at one backward pass and one copy of the
            gradients a term.

    Returns:
        loss () and what was measured, detached () tensors: the terms, reward, mixing weight and,
        if `apart`, the gradient norm of each weighted term.
    """
    weights = term_weights(quiet.config)
    active = [name for name in Terms._fields if getattr(weights, name)]
    groups = [[name] for name in active] if apart else [active]
    buffers: list[list[Tensor | None]] = [[None] * len(parameters) for _ in groups]
    measured: dict[str, Tensor] = {}
    for part in parts:
        text = part.tokens, part.documents
        step = quiet(*text, None, part.anchors, part.thoughts, targets=part.targets)
        means = quiet.means(step, counts)
        for index, (group, buffer) in enumerate(zip(groups, buffers, strict=True)):
            for parameter, gradient in zip(parameters, buffer, strict=True):
                parameter.grad = gradient
            loss = sum(getattr(weights, name) * getattr(means, name) for name in group)
            loss = loss * ranks.count  # FSDP2 takes the mean over ranks, the counts are of all
            loss.backward(retain_graph=index + 1 < len(groups))
            buffers[index] = [parameter.grad for parameter in parameters]
        for key, value in _measure(step, means).items():
            measured[key] = measured.get(key, 0) + value
    measured = {key: total(value) for key, value in measured.items()}
    for name, buffer in zip(active, buffers, strict=False) if apart else ():
        found = [g for g in buffer if g is not None]
        measured[f"grad_norm_{name}"] = whole(torch.nn.utils.get_total_norm(found))
    for parameter, *found in zip(parameters, *buffers, strict=True):
        found = [g for g in found if g is not None]
        parameter.grad = sum(found[1:], found[0]) if found else None
    loss = sum(getattr(weights, name) * measured[name] for name in Terms._fields)
    return loss, measured


@torch.no_grad()
def _measure(step: Step, means: Terms) -> dict[str, Tensor]:
    """Sums over a micro-batch that `train_step` makes means of."""
    there = step.valid[:, :, None].expand_as(step.weight)
    weight = step.weight.where(there, 0.0)
    return {
        **{name: value.detach() for name, value in means._asdict().items()},
        "reward_sum": step.reward.sum(),
        "reward_count": step.valid.all(-1).sum() * step.reward.shape[2],
        "weight_sum": weight.sum(),
        "weight_square_sum": weight.square().sum(),
        "weight_count": there.sum(),
    }


def train_step(
    quiet: QuietStar,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    documents: Tensor,
    config: Config,
    step: int,
    measure_terms: bool,
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
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * schedule(step, config.run.steps, config.optim)
    generator = step_generator(config.run.seed, step)
    parts = think(quiet, tokens, documents, config, generator, ranks, counted)
    counts = [count(part) for part in parts]
    counts = Terms(*(total(sum(each)) for each in zip(*counts, strict=True)))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss, measured = gradients(quiet, parameters, parts, counts, config, measure_terms, ranks)
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip))
    measured.update(loss=loss, grad_norm=norm)
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _record(values, config.optim.lr * schedule(step, config.run.steps, config.optim), finite)


def _record(values: dict[str, float], lr: float, finite: bool) -> dict[str, float]:
    """Names of the log, in the order a reader wants them."""
    record = {"loss": values["loss"], "nll_base": values["base"]}
    if values["weight_count"]:
        mean = values["weight_sum"] / values["weight_count"]
        variance = values["weight_square_sum"] / values["weight_count"] - mean**2
        record |= {
            "nll_talk": values["talk"],
            "policy": values["policy"],
            "reward": values["reward_sum"] / max(1, values["reward_count"]),
            "weight_mean": mean,
            "weight_std": math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan,
        }
    norms = {key: value for key, value in values.items() if key.startswith("grad_norm")}
    return record | norms | {"lr": lr, "skipped": int(not finite)}
