"""What a step computed, and the terms of its loss: sums, and the counts that they are divided by.

Every mean is a sum divided once by a count that is known before the forward pass, so that splitting
a batch changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import PADDING, ThoughtConfig
from qs.quietstar.ends import actions
from qs.quietstar.losses import Baseline, reinforce
from qs.quietstar.masks import every_position


def targets_ahead(
    tokens: Tensor, documents: Tensor, anchors: Tensor, ahead: int, counted: Tensor | None = None
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
        reference: (B, T) NLL of x[t+1] without thoughts that rewards are over, 0 where it does not
            count; None: the model's own.
    """

    next: Tensor
    next_valid: Tensor
    ahead: Tensor
    valid: Tensor
    reference: Tensor | None = None

    def of(self, rows: slice, anchors: slice) -> Targets:
        """Those of some rows, and of some of their anchors."""
        reference = None if self.reference is None else self.reference[rows]
        text, thought = (x[rows] for x in self[:2]), (x[rows, anchors] for x in self[2:4])
        return Targets(*text, *thought, reference)


def targets_of(
    tokens: Tensor, documents: Tensor, anchors: Tensor, ahead: int, counted: Tensor | None = None
) -> Targets:
    """Every target of a step. Arguments as of `targets_ahead`."""
    everywhere = every_position(tokens)
    targets, valid = targets_ahead(tokens, documents, everywhere, ahead, counted)  # (B, T, m)
    at = anchors[:, :, None].expand(-1, -1, ahead)
    return Targets(targets[..., 0], valid[..., 0], targets.gather(1, at), valid.gather(1, at))


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

    @property
    def counts(self) -> Terms:
        """`count_terms` of these rows, if they are a whole batch."""
        return count_terms(self.base_valid, self.valid, *self.thoughts.shape[2:])


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
        log_p, n = step.log_p, step.thoughts.shape[-1]
        if config.length_norm:  # a mean over its own tokens, times the n that it is divided by
            log_p = log_p * (n / actions(step.thoughts).clamp(min=1))
        # a baseline of one's own may leave an advantage where nothing can be earned
        log_p = log_p.where(step.valid.all(-1)[:, :, None], 0.0)
        policy = reinforce(log_p, step.reward, baseline, config.keep_negative)
    return Terms(step.nll_base.sum(), step.nll_mix.sum((0, 1, 2)), policy)


def term_weights(config: ThoughtConfig) -> Terms:
    """What each mean of the terms weighs in the loss."""
    base, both = config.base_weight, config.likelihood_weight
    return Terms(both * base, both * (1 - base), config.beta)


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
