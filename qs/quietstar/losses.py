"""The losses: non-myopic likelihood, reward, and REINFORCE with its baseline. Pure functions.

Log-probabilities, losses and rewards are in nats, float32 or wider.

Source: Quiet-STaR (arXiv:2403.09629), section 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qs.model.products import BLOCKS, product
from qs.quietstar.kernels import LinearNLL

LOGITS_AT_ONCE = 2**26  # 256 MiB of float32


def logit_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of logits that are made at a time: LOGITS_AT_ONCE numbers or less, but a row.

    On a CPU a sixteenth, which stays in cache, in whole blocks of `products`: what is left of a
    block runs at half the rate.
    """
    rows = max(1, LOGITS_AT_ONCE // vocab_size)
    if device.type == "cpu":
        rows = max(1, rows // 16 // BLOCKS[-1]) * BLOCKS[-1]
    return rows


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
        chunk: rows at a time; by default `logit_rows`.

    Returns:
        (...) NLL in nats, float32 or wider.
    """
    shape = targets.shape
    outputs, targets = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    head = head.to(outputs.dtype)

    rows = chunk or logit_rows(len(head), outputs.device)
    never = torch.tensor(tuple(forbidden), dtype=torch.int64, device=outputs.device)
    return LinearNLL.apply(outputs, head, targets, temperature, never, rows).view(shape)


def linear_cross_entropy(
    outputs: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, chunk: int | None = None
) -> Tensor:
    """-sum_v p_v log q_v with q = softmax(outputs @ head.T) and p, a constant, the teacher's.

    As in `linear_nll` logits are made a chunk of rows at a time, and again in the backward pass.

    Args:
        outputs, head: (..., D) and (V, D).
        teacher, teacher_head: (..., D) and (V, D), of which p is made as q is.
        chunk: rows at a time; by default LOGITS_AT_ONCE / 4 V, since there are four of their size.

    Returns:
        (...) in nats, float32 or wider.
    """
    wide = torch.promote_types(outputs.dtype, torch.float32)
    rows = chunk or max(1, LOGITS_AT_ONCE // (4 * len(head)))
    head, teacher_head = head.to(wide), teacher_head.detach().to(wide)

    def of_some(x: Tensor, y: Tensor) -> Tensor:
        p = product(y.to(wide), teacher_head).softmax(-1)
        return -(p * product(x.to(wide), head).log_softmax(-1)).sum(-1)

    pairs = (x.flatten(0, -2).split(rows) for x in (outputs, teacher.detach()))
    pieces = [
        checkpoint(of_some, *pair, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(*pairs, strict=True)
    ]
    return torch.cat(pieces).view(outputs.shape[:-1])


def rewards(
    nll_base: Tensor,
    nll_mix: Tensor,
    valid: Tensor,
    kind: str = "information-gain",
    right: Tensor | None = None,
) -> Tensor:
    """What each thought earns by the true tokens that follow.

    Args:
        nll_base: (B, A, m) NLL of x[t+i] without a thought.
        nll_mix: (B, A, K, m) NLL of x[t+i] with thought k.
        valid: (B, A, m) which targets count.
        kind: "information-gain": the sum over i of `nll_base - nll_mix` in nats; "exact": 1 if all
            m predictions are right, else 0; "probability": the mean of exp(-nll_mix).
        right: (B, A, K, m) whether x[t+i] is the likeliest token with thought k; for "exact".

    Returns:
        (B, A, K), a constant for the gradient; 0 for positions of which any target is not valid.

    Source: exact: Reinforcement Pre-Training (arXiv:2506.08007); probability: as of answers in RLPR
    (arXiv:2506.18254); information gain over a moving average: RLP (arXiv:2510.01265).
    """
    if kind == "exact":
        earned = right.all(-1).to(nll_mix.dtype)
    elif kind == "probability":
        earned = (-nll_mix).exp().mean(-1)
    else:
        earned = (nll_base[:, :, None] - nll_mix).sum(-1)
    return earned.where(valid.all(-1)[:, :, None], 0.0).detach()


Reward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What each thought earns, of the first three arguments of `rewards`: (B, A, K).

NLL is 0 where a target does not count; what is said of positions where one does not is not used."""

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


def others_baseline(reward: Tensor) -> Tensor:
    """(..., K) mean over a position's other K - 1 thoughts: leave-one-out, without that scale.

    Raises:
        ValueError: K < 2.
    """
    K, mean = reward.shape[-1], mean_baseline(reward)
    return (K * mean - reward) / (K - 1)


BASELINES: dict[str, Baseline] = {
    "mean": mean_baseline,
    "others": others_baseline,
    "none": torch.zeros_like,
}


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
    log_p: Tensor, reward: Tensor, baseline: str | Baseline = "mean", keep_negative: bool = False
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


def entropy(log_p: Tensor) -> Tensor:
    """(..., V) log-probabilities -> (...) entropy in nats."""
    return -(log_p.exp() * log_p).sum(-1)
