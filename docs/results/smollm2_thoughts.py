"""Other thoughts and other slots, in place of a module's own for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import pauses
from qs.quietstar.terms import targets_ahead


@contextlib.contextmanager
def true_thoughts(quiet: QuietStar, share: float) -> Iterator[None]:
    """Sampled thoughts give way, with probability `share`, to the tokens that truly follow.

    Near the end of a document they run on into the next one.
    """
    think = quiet.think

    def instead(
        tokens: Tensor, documents: Tensor, anchors: Tensor | None = None, generator: Any = None
    ) -> tuple[Tensor, Tensor]:
        quiet.pause = share == 1  # then nothing is sampled
        anchors, sampled = think(tokens, documents, anchors, generator)
        quiet.pause = False
        true = targets_ahead(tokens, documents, anchors, sampled.shape[3])[0]
        true = true[:, :, None].expand_as(sampled)
        coins = torch.rand(sampled.shape[:3], generator=generator).to(sampled.device)
        return anchors, true.where((coins < share)[..., None], sampled)

    if share:
        quiet.think = instead
    try:
        yield
    finally:
        if share:
            del quiet.think


@contextlib.contextmanager
def reads_again(quiet: QuietStar, wanted: bool) -> Iterator[None]:
    """The end slot reads the anchor's own token, in place of the end vector."""
    embed = quiet.embed_branches

    def instead(tokens: Tensor, anchors: Tensor, thoughts: Tensor) -> Tensor:
        x = embed(tokens, anchors, thoughts).clone()
        again = quiet.model.embed(tokens.gather(1, anchors))[:, :, None]  # (B, A, 1, D)
        x[:, :, :, thoughts.shape[3] + 1] = again
        return x

    if wanted:
        quiet.embed_branches = instead
    try:
        yield
    finally:
        if wanted:
            del quiet.embed_branches


@contextlib.contextmanager
def others_thoughts(quiet: QuietStar) -> Iterator[None]:
    """Every text gets the thoughts of the next one in its batch."""
    sample = quiet.sample
    quiet.sample = lambda *args: sample(*args).roll(1, 0)
    try:
        yield
    finally:
        del quiet.sample


def elsewhere(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, numbers: torch.Generator
) -> Tensor:
    """The thoughts of other positions of the row."""
    order = torch.randperm(thoughts.shape[1], generator=numbers)
    return thoughts[:, order.to(thoughts.device)]


def silent(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, numbers: torch.Generator
) -> Tensor:
    """Pauses."""
    return pauses(thoughts.shape, thoughts.device)
