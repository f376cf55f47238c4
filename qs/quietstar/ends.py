"""Thoughts that end themselves: how long they are, where their slots stand, what was chosen.

A thought has n places. With `--end drawn` the model may draw `<end>` at each of them, and then the
places that are left hold ENDED. A thought that fills its n places ends by itself, as nobody chose.

A branch closes up: `<end>` and the true tokens follow the last token of the thought at once, and
the n - l slots that a thought of l tokens does not use come last,

    <start> z_1 .. z_l <end> x_{t+1} .. x_{t+m-1} (n - l slots)

deeper than all others of their branch, so that by the one rule (`masks.sees`) no other slot sees
them, and rotary positions, which follow from depth, have no gap. Shapes stay those of n tokens, and
no realisation of the rule has to know how long a thought is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qs.quietstar.losses import linear_nll

PAUSE = -1  # in place of a thought's token: the start vector once more (Goyal et al. 2023)
ENDED = -2  # in a place that a thought which ended before it has left over


def pauses(shape: Sequence[int], device: torch.device) -> Tensor:
    """Thoughts of pauses, of any shape."""
    return torch.full(tuple(shape), PAUSE, device=device)


def lengths(thoughts: Tensor) -> Tensor:
    """(..., n) thoughts -> (...) tokens that each has, pauses included."""
    return (thoughts != ENDED).sum(-1)


def actions(thoughts: Tensor) -> Tensor:
    """(..., n) thoughts -> (...) choices that each is made of: its tokens, and its end if drawn."""
    return (lengths(thoughts) + 1).clamp(max=thoughts.shape[-1])


def log_p_of(
    thoughts: Tensor, outputs: Tensor, head: Tensor, temperature: float, forbidden: Sequence[int]
) -> Tensor:
    """Log-probability of what was chosen in each thought: its tokens, and its end where drawn.

    Args:
        thoughts: (..., n).
        outputs: (..., n, D) that its places were drawn from, in closed branches.
        head: (V, D), or (V + 1, D) with the output vector of `<end>`.
        temperature: divides the logits.
        forbidden: ids with probability 0.

    Returns:
        (...) in nats, summed over places; nobody chose a pause, or the end of a full thought.
    """
    places = torch.arange(thoughts.shape[-1], device=thoughts.device)
    chosen = (places <= lengths(thoughts)[..., None]) & (thoughts != PAUSE)
    ids = thoughts.where(thoughts != ENDED, len(head) - 1).clamp(min=0)
    nll = linear_nll(outputs, head, ids, temperature, forbidden)
    return -nll.where(chosen, 0.0).sum(-1)


def close_up(slots: Tensor, thoughts: Tensor) -> Tensor:
    """Move what follows a thought's places to where its tokens end.

    Args:
        slots: (..., n + m + 1, D) start, n places, end and m - 1 true tokens.
        thoughts: (..., n).

    Returns:
        (..., n + m + 1, D), of which the last n - l hold nothing that counts.
    """
    used, n, L = lengths(thoughts)[..., None], thoughts.shape[-1], slots.shape[-2]
    at = torch.arange(L, device=slots.device)
    at = torch.where(at > used, at + n - used, at).clamp(max=L - 1)  # (..., L)
    return slots.take_along_dim(at[..., None], -2)


def after_end(outputs: Tensor, thoughts: Tensor, ahead: int) -> Tensor:
    """(..., n + m + 1, D) outputs of closed branches -> (..., m, D): at `<end>`, x[t+1], .."""
    at = lengths(thoughts)[..., None] + torch.arange(1, ahead + 1, device=outputs.device)
    return outputs.take_along_dim(at[..., None], -2)
