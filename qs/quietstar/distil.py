"""The plain prediction learns from a mixed one: thoughts are left away, what they gave may stay.

    loss = (1 - X) NLL of the true tokens + X cross-entropy with a teacher's mixed prediction

The teacher is the model as it was when it last thought. This is a step of Quiet-STaR with K = m = 1
and no policy, a base term of weight 1 - X, and that cross-entropy in place of the talk term.

Source: the last stage of Fast Quiet-STaR (arXiv:2505.17746); the distillation is our own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import linear_nll
from qs.quietstar.mixer import Mixed, mixed_cross_entropy
from qs.quietstar.terms import Step, Targets


class Lesson(NamedTuple):
    """What (B, A) anchors learn, a constant: mixtures (B, A, 1, 1), and their head (V, D)."""

    mixed: Mixed
    head: Tensor


@torch.no_grad()
def teach(
    quiet: QuietStar,
    tokens: Tensor,
    documents: Tensor,
    anchors: Tensor,
    thoughts: Tensor,
    head: Tensor,
) -> Lesson:
    """What a module with this head predicts of x[t+1]; the others as of `QuietStar.forward`."""
    base, branch = quiet.score(tokens, documents, anchors, thoughts)
    return Lesson(quiet.mix(anchors, base, quiet.after(branch, thoughts)), head)


def learn(
    quiet: QuietStar,
    tokens: Tensor,
    documents: Tensor,
    anchors: Tensor,
    thoughts: Tensor,
    targets: Targets,
    lesson: Lesson,
) -> Step:
    """A step that reads the text alone; its `nll_mix` is the cross-entropy with the lesson."""
    base, _ = quiet.score(tokens, documents, anchors[:, :0], thoughts[:, :0])
    head, at = quiet.model.head, anchors[..., None].expand(-1, -1, base.shape[-1])
    nll = linear_nll(base, head, targets.next)
    outputs = base.gather(1, at)[:, :, None, None]  # (B, A, 1, 1, D)
    taught = mixed_cross_entropy(*lesson, outputs, head, quiet.config.mix_space)
    nothing = torch.zeros_like(taught[..., 0]).detach()
    return Step(
        nll_base=nll.where(targets.next_valid, 0.0),
        nll_mix=taught.where(targets.valid[:, :, None], 0.0),
        log_p=nothing,
        reward=nothing,
        weight=lesson.mixed.weight,
        base_valid=targets.next_valid,
        valid=targets.valid,
        anchors=anchors,
        thoughts=thoughts,
        outputs=base.detach(),
    )
