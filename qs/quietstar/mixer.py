"""The mixing head: how much of the prediction after a thought goes into the mixed prediction.

    w = head(concat(h_base, h_thought)),    mixed output = (1 - w) h_base + w h_thought

`lm_head` is linear without bias, so mixing outputs is mixing logits. The head's last layer starts
at zero: with the linear weight the mixed prediction of step 0 is the base prediction exactly.

Source: Quiet-STaR (arXiv:2403.09629), section 4.3; the released code mixes outputs after the final
norm with an unbounded weight. The paper's text interpolates log-probabilities, which is the same
thing up to normalisation; `mix_nll` is the normalised mixture of probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qs.model.products import product
from qs.quietstar.losses import LOGITS_AT_ONCE, linear_cross_entropy, linear_nll
from qs.thinking import ThoughtConfig


class MixingHead(nn.Sequential):
    """Linear(2D, D), ReLU, Linear(D, D), ReLU, Linear(D, 1, bias=False); last layer zero.

    Runs in float32 or wider, whatever the model computes in.
    """

    def __init__(self, dim: int):
        super().__init__(
            nn.Linear(2 * dim, dim),
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Linear(dim, 1, bias=False),
        )
        nn.init.zeros_(self[4].weight)

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """Score of each mixing.

        Args:
            base: (..., D) output of the plain text that predicts a token.
            thought: (..., D) output of the branch that predicts the same token.

        Returns:
            (...) score; `mixing_weight` makes the weight of it.
        """
        return super().forward(torch.cat([base, thought], -1)).squeeze(-1)


def mixing_weight(score: Tensor, kind: str) -> Tensor:
    """Weight of the thought: the score itself (`linear`, unbounded), its sigmoid, or `one`."""
    if kind == "one":
        return torch.ones_like(score)
    return score.sigmoid() if kind == "sigmoid" else score


def mix_outputs(base: Tensor, thought: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) base + w thought for (..., D) outputs and (...) weights."""
    weight = weight[..., None]
    return (1 - weight) * base + weight * thought


def mix_nll(nll_base: Tensor, nll_thought: Tensor, score: Tensor) -> Tensor:
    """NLL in nats under the mixture (1 - w) p_base + w p_thought with w = sigmoid(score).

    All arguments are (...) and describe the same token.
    """
    return -torch.logaddexp(F.logsigmoid(-score) - nll_base, F.logsigmoid(score) - nll_thought)


def check_fixed(weight: float | None, config: ThoughtConfig) -> None:
    """Refuse a weight to use instead of the head's that probabilities cannot be mixed by.

    Raises:
        ValueError: a mixture would have probabilities below 0.
    """
    if config.mix_space == "probability" and weight is not None and not 0 <= weight <= 1:
        raise ValueError(
            f"--fixed-weight: expected 0 to 1, as --mix-space probability needs, got {weight}"
        )


class Mixed(NamedTuple):
    """Two predictions of the same tokens, without and after each thought, and how they are mixed.

    Attributes:
        base: (..., D) outputs of the plain text.
        after: (..., D) outputs of the branches.
        score: (...) of the mixing head.
        weight: (...) made of the score.
    """

    base: Tensor
    after: Tensor
    score: Tensor
    weight: Tensor

    @staticmethod
    def by(
        base: Tensor,
        after: Tensor,
        score: Tensor,
        config: ThoughtConfig,
        fixed_weight: float | None = None,
    ) -> Mixed:
        """Mixed by weights made of the scores as `config` says, or by one weight instead.

        Raises:
            ValueError: as `check_fixed` does.
        """
        weight = mixing_weight(score, config.mix_weight)
        if fixed_weight is not None:
            check_fixed(fixed_weight, config)
            weight = torch.full_like(weight, fixed_weight)
            score = torch.special.logit(weight)
        return Mixed(base, after, score, weight)


def mixed_nll(mixed: Mixed, head: Tensor, targets: Tensor, space: str) -> Tensor:
    """NLL in nats of (...) targets under the mixture; (V, D) head; space as `--mix-space` says."""
    if space == "probability":
        plain, after = (linear_nll(x, head, targets) for x in (mixed.base, mixed.after))
        return mix_nll(plain, after, mixed.score)
    return linear_nll(mix_outputs(mixed.base, mixed.after, mixed.weight), head, targets)


def mixed_cross_entropy(
    mixed: Mixed, mixed_head: Tensor, outputs: Tensor, head: Tensor, space: str
) -> Tensor:
    """Cross-entropy in nats of the mixture, a constant, with the prediction of (..., D) outputs."""
    if space == "probability":  # it is linear in the probabilities of the mixture
        plain, after = (
            linear_cross_entropy(outputs, head, x, mixed_head) for x in (mixed.base, mixed.after)
        )
        return torch.lerp(plain, after, mixed.weight.detach())
    teacher = mix_outputs(mixed.base, mixed.after, mixed.weight)
    return linear_cross_entropy(outputs, head, teacher, mixed_head)


@torch.no_grad()
def foretold(mixed: Mixed, head: Tensor, targets: Tensor, space: str) -> Tensor:
    """Whether each of (...) targets is the likeliest token; other arguments as of `mixed_nll`."""
    rows = max(1, LOGITS_AT_ONCE // head.shape[0])
    flat = zip(*(x.flatten(0, targets.ndim - 1).split(rows) for x in mixed), strict=True)
    pieces = [mixed_log_p(Mixed(*some), head, space)[1].argmax(-1) for some in flat]
    return torch.cat(pieces).view(targets.shape) == targets


def mixed_log_p(mixed: Mixed, head: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities (..., V) without thoughts and with them; for few positions only."""
    head = head.to(mixed.base.dtype)
    base = product(mixed.base, head).log_softmax(-1)
    if space == "probability":
        after = product(mixed.after, head).log_softmax(-1)
        return base, -mix_nll(-base, -after, mixed.score[..., None])
    outputs = mix_outputs(mixed.base, mixed.after, mixed.weight)
    return base, product(outputs, head).log_softmax(-1)
