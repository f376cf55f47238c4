"""Who thinks, and the random numbers of a step: drawn row after row, however a batch is split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import PADDING, ThoughtConfig
from qs.model.mistral import Mistral
from qs.quietstar.losses import entropy
from qs.quietstar.masks import every_position


class Numbers(NamedTuple):
    """What B rows draw by, in [0, 1).

    Attributes:
        orders: (B, T) by which random anchors are chosen; (B, 0) where none are.
        uniforms: (B, A, K, n) by which tokens are drawn, float64.
    """

    orders: Tensor
    uniforms: Tensor


def draw(
    config: ThoughtConfig,
    B: int,
    T: int,
    generator: torch.Generator | None,
    anchors: Tensor | None = None,
) -> Numbers:
    """The random numbers of B rows: splitting a batch draws the same ones.

    Args:
        config: how many anchors, thoughts and tokens.
        B, T: rows and positions.
        generator: on the CPU.
        anchors: (B, A) positions that think; None: as `config.anchors` will choose.
    """
    ordered = T if anchors is None and config.anchors == "random" else 0
    A = config.anchor_count(T) if anchors is None else anchors.shape[1]
    orders = torch.empty(B, ordered)
    uniforms = torch.empty((B, A, config.samples, config.thoughts), dtype=torch.float64)
    for row in range(B):
        orders[row].uniform_(generator=generator)
        uniforms[row].uniform_(generator=generator)
    return Numbers(orders, uniforms)


def choose_anchors(
    kind: str, documents: Tensor, numbers: Numbers, uncertainties: Tensor | None
) -> Tensor:
    """(B, A) rising positions that think; padding only where all else does.

    Given the thoughts, a random share has on average the gradient of all positions, before it is
    clipped, if the rows have as many targets each and every choice leaves a term some. Rows of
    unequal counts may weigh a little more or less than their share (the mean is a ratio of sums
    whose count is drawn too), and padded ones more. Uncertain positions have a gradient of their
    own: nothing is learned elsewhere.

    Args:
        kind: "all", "random", or "uncertain": where the base model is least sure.
        documents: (B, T).
        numbers: of the rows.
        uncertainties: (B, T), see `uncertainty`; not used by the other kinds.
    """
    if kind == "all":
        return every_position(documents)
    order = numbers.orders.to(documents.device) if kind == "random" else uncertainties
    assert order is not None
    order = order.where(documents != PADDING, -torch.inf)
    order = order.argsort(dim=1, descending=True, stable=True)
    return order[:, : numbers.uniforms.shape[1]].sort(1).values


def uncertainty(model: Mistral, outputs: Tensor) -> Tensor:
    """(B, T) entropy in nats of the predictions that (B, T, D) outputs make."""
    # a row at a time: the logits of a whole batch would not fit
    rows = [entropy(model.logits(row).log_softmax(-1)) for row in outputs]
    return torch.stack(rows).round(decimals=4)  # equal ones are equal however batched
