"""The losses: non-myopic likelihood, reward, and REINFORCE with its baseline. Pure functions.

Log-probabilities, losses and rewards are in nats, float32 or wider. Every mean is a sum divided
once by a count that is known before the forward pass, so that splitting a batch changes nothing.

Source: Quiet-STaR (arXiv:2403.09629), section 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qs.config import PADDING, ThoughtConfig
from qs.quietstar.masks import every_position

LOGITS_AT_ONCE = 2**26  # 256 MiB of float32


def linear_nll(
    outputs: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    forbidden: Sequence[int] = (),
    chunk: int | None = None,
) -> Tensor:
    """NLL of each target under softmax(outputs @ head.T / temperature).

    Logits are made a chunk of rows at a time, and again in the backward pass: they are never all
    held at once.

    Args:
        outputs: (..., D).
        head: (V, D).
        targets: (...) ids.
        temperature: divides the logits.
        forbidden: ids with probability 0.
        chunk: rows at a time; by default LOGITS_AT_ONCE / V.

    Returns:
        (...) NLL in nats, float32 or wider.
    """
    shape = targets.shape
    outputs, targets = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    head = head.to(outputs.dtype)

    def some(rows: Tensor, ids: Tensor) -> Tensor:
        logits = rows @ head.T / temperature
        for token in forbidden:
            logits[:, token] = -torch.inf
        return F.cross_entropy(logits, ids, reduction="none")

    chunk = chunk or max(1, LOGITS_AT_ONCE // head.shape[0])
    if len(targets) <= chunk:
        return some(outputs, targets).view(shape)
    parts = zip(outputs.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(some, *part, use_reentrant=False) for part in parts]).view(shape)


def targets_ahead(
    tokens: Tensor,
    documents: Tensor,
    anchors: Tensor,
    ahead: int,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The true tokens after each anchor, and which of them count.

    Args:
        tokens: (B, T) ids.
        documents: (B, T) document of each position.
        anchors: (B, A) positions t.
        ahead: m.
        counted: (B, T) True where a token counts as a target (None: everywhere).

    Returns:
        targets (B, A, m): x[t+1] .. x[t+m]; and valid (B, A, m): t + i is inside the row, in the
        anchor's document, not padding, and counted. Targets that are not valid are arbitrary ids.
    """
    T = tokens.shape[1]
    at = anchors[:, :, None] + torch.arange(1, ahead + 1, device=tokens.device)  # (B, A, m)
    inside = at < T
    at = at.clamp(max=T - 1).flatten(1)

    def there(x: Tensor) -> Tensor:
        return x.gather(1, at).unflatten(1, (-1, ahead))

    home = documents.gather(1, anchors)[:, :, None]
    valid = inside & (there(documents) == home) & (home != PADDING)
    if counted is not None:
        valid = valid & there(counted)
    return there(tokens), valid


class Targets(NamedTuple):
    """The true tokens that a step predicts, and which of them count.

    Attributes:
        next: (B, T) x[t+1] and
        next_valid: (B, T) whether it counts, for the prediction without thoughts.
        ahead: (B, A, m) x[t+1] .. x[t+m] after each anchor and
        valid: (B, A, m) which of them count.
    """

    next: Tensor
    next_valid: Tensor
    ahead: Tensor
    valid: Tensor


def targets_of(
    tokens: Tensor,
    documents: Tensor,
    anchors: Tensor,
    ahead: int,
    counted: Tensor | None = None,
) -> Targets:
    """Every target of a step. Arguments as of `targets_ahead`."""
    everywhere = every_position(tokens)
    targets, valid = targets_ahead(tokens, documents, everywhere, ahead, counted)  # (B, T, m)
    at = anchors[:, :, None].expand(-1, -1, ahead)
    return Targets(targets[..., 0], valid[..., 0], targets.gather(1, at), valid.gather(1, at))


def rewards(nll_base: Tensor, nll_mix: Tensor, valid: Tensor) -> Tensor:
    """How much likelier each thought made the true tokens that follow.

    Args:
        nll_base: (B, A, m) NLL of x[t+i] without a thought.
        nll_mix: (B, A, K, m) NLL of x[t+i] with thought k.
        valid: (B, A, m) which targets count.

    Returns:
        (B, A, K) sum over i of `nll_base - nll_mix` in nats, a constant for the gradient; 0 for
        positions of which any target is not valid.
    """
    gain = (nll_base[:, :, None] - nll_mix).sum(-1)
    return gain.where(valid.all(-1)[:, :, None], 0.0).detach()


Baseline = Callable[[Tensor], Tensor]
"""Rewards (..., K) of a position's own thoughts -> what each is compared with, (..., 1 or K)."""


def mean_baseline(reward: Tensor) -> Tensor:
    """(..., 1) mean over a position's own K thoughts.

    It includes the thought itself, which scales the expected policy gradient by (1 - 1/K).

    Raises:
        ValueError: K < 2, where every advantage would be 0.
    """
    if reward.shape[-1] < 2:
        raise ValueError(
            "the mean baseline needs K >= 2 thoughts at a position, got K = 1: sample more "
            "thoughts or use the baseline 'none'"
        )
    return reward.mean(-1, keepdim=True)


BASELINES: dict[str, Baseline] = {"mean": mean_baseline, "none": torch.zeros_like}


def advantages(
    reward: Tensor, baseline: str | Baseline = "mean", keep_negative: bool = False
) -> Tensor:
    """Reward relative to a baseline.

    Args:
        reward: (..., K) in nats.
        baseline: a name in BASELINES, or a function of its own.
        keep_negative: if False, thoughts below the baseline contribute nothing (biased; as
            published).

    Raises:
        ValueError: the mean baseline with K < 2.
    """
    compared = BASELINES[baseline] if isinstance(baseline, str) else baseline
    advantage = reward - compared(reward)
    return advantage if keep_negative else advantage.clamp(min=0)


def reinforce(
    log_p: Tensor,
    reward: Tensor,
    baseline: str | Baseline = "mean",
    keep_negative: bool = False,
) -> Tensor:
    """REINFORCE (Williams 1992): thoughts that earned more than the baseline become likelier.

    Args:
        log_p: (..., K) log-probability in nats of thought k, summed over its tokens.
        reward: (..., K) a constant for the gradient.
        baseline, keep_negative: see `advantages`.

    Returns:
        () surrogate loss, summed over thoughts and positions; only its gradient means anything.

    Raises:
        ValueError: if the shapes differ, or K < 2 with the mean baseline.
    """
    if log_p.shape != reward.shape:
        raise ValueError(f"log_p {tuple(log_p.shape)} and reward {tuple(reward.shape)} differ")
    return -(advantages(reward.detach(), baseline, keep_negative) * log_p).sum()


class Terms(NamedTuple):
    """Sums of the loss terms over positions, or the counts that they are divided by.

    Attributes:
        base: () over text positions.
        talk: (m,) over positions and thoughts, for each look-ahead.
        policy: () over positions, thoughts and thought tokens.
    """

    base: Tensor
    talk: Tensor
    policy: Tensor

    def means(self, counts: Terms) -> Terms:
        """Each sum over its count; the m talk means are averaged. Empty terms are 0."""
        return Terms(
            self.base / counts.base.clamp(min=1),
            (self.talk / counts.talk.clamp(min=1)).mean(),
            self.policy / counts.policy.clamp(min=1),
        )

    def weighted(self, weights: Terms) -> Terms:
        """Each mean times its weight; one of weight 0 is measured, but not trained."""
        pairs = zip(self, weights, strict=True)
        return Terms(*(w * mean if w else torch.zeros_like(mean) for mean, w in pairs))


class Step(NamedTuple):
    """What one step computed, position by position. NLL and rewards in nats.

    Attributes:
        nll_base: (B, T) NLL of x[t+1] without thoughts; 0 where it does not count.
        nll_mix: (B, A, K, m) NLL of x[t+i] after thought k; 0 where it does not count.
        log_p: (B, A, K) log-probability of each thought at the policy temperature.
        reward: (B, A, K) what each thought earned.
        weight: (B, A, K, m) mixing weights, constants for the gradient.
        base_valid: (B, T) and
        valid: (B, A, m) which targets count.
        anchors: (B, A) positions that thought.
        thoughts: (B, A, K, n) tokens thought.
        outputs: (B, T, D) of the text without thoughts, constants for the gradient.
    """

    nll_base: Tensor
    nll_mix: Tensor
    log_p: Tensor
    reward: Tensor
    weight: Tensor
    base_valid: Tensor
    valid: Tensor
    anchors: Tensor
    thoughts: Tensor
    outputs: Tensor


def loss_terms(step: Step, config: ThoughtConfig, baseline: Baseline | None = None) -> Terms:
    """The sums of a step's loss terms.

    Args:
        step: of some rows.
        config: weights and baseline are used.
        baseline: instead of the one that `config` names.
    """
    policy = step.nll_base.new_zeros(())
    if config.beta > 0:
        baseline = baseline or config.baseline
        policy = reinforce(step.log_p, step.reward, baseline, config.keep_negative)
    return Terms(step.nll_base.sum(), step.nll_mix.sum((0, 1, 2)), policy)


def term_weights(config: ThoughtConfig) -> Terms:
    """What each mean of the terms weighs in the loss."""
    return Terms(config.base_weight, 1 - config.base_weight, config.beta)


def count_terms(base_valid: Tensor, valid: Tensor, samples: int, thoughts: int) -> Terms:
    """What each sum of `Terms` is divided by.

    Args:
        base_valid: (B, T) text positions whose next token counts.
        valid: (B, A, m) look-ahead targets that count.
        samples: K.
        thoughts: n.
    """
    return Terms(
        base_valid.sum(),
        valid.sum((0, 1)) * samples,
        valid.all(-1).sum() * (samples * thoughts),
    )


def entropy(log_p: Tensor) -> Tensor:
    """(..., V) log-probabilities -> (...) entropy in nats."""
    return -(log_p.exp() * log_p).sum(-1)
