"""Other thoughts and other slots, in place of a module's own for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qs.config import PADDING
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import pauses
from qs.quietstar.terms import targets_ahead


@contextlib.contextmanager
def replaced(quiet: QuietStar, name: str, instead: Any) -> Iterator[None]:
    """Another method of one module; None: its own."""
    before = vars(quiet).get(name)
    if instead is not None:
        setattr(quiet, name, instead)
    try:
        yield
    finally:
        if before is not None:
            setattr(quiet, name, before)
        elif instead is not None:
            delattr(quiet, name)


def true_thoughts(quiet: QuietStar, share: float) -> contextlib.AbstractContextManager:
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

    return replaced(quiet, "think", instead if share else None)


def thinks_after(quiet: QuietStar, ids: Sequence[int]) -> contextlib.AbstractContextManager:
    """Positions that end with some tokens think, and others drawn at random; nothing for no ids."""
    think = quiet.think

    def instead(
        tokens: Tensor, documents: Tensor, anchors: Tensor | None = None, generator: Any = None
    ) -> tuple[Tensor, Tensor]:
        order = torch.rand(tokens.shape, generator=generator).to(tokens.device)
        here = torch.ones_like(tokens, dtype=torch.bool)
        for back, each in enumerate(reversed(ids)):
            here &= tokens.roll(back, 1) == each
        order = (order + here).where(documents != PADDING, -1.0)
        chosen = order.topk(quiet.config.anchor_count(tokens.shape[1])).indices.sort(1).values
        return think(tokens, documents, chosen, generator)

    return replaced(quiet, "think", instead if ids else None)


def reads_again(quiet: QuietStar, wanted: bool) -> contextlib.AbstractContextManager:
    """The end slot reads the anchor's own token, in place of the end vector."""
    embed = quiet.embed_branches

    def instead(tokens: Tensor, anchors: Tensor, thoughts: Tensor) -> Tensor:
        x = embed(tokens, anchors, thoughts).clone()
        again = quiet.model.embed(tokens.gather(1, anchors))[:, :, None]  # (B, A, 1, D)
        x[:, :, :, thoughts.shape[3] + 1] = again
        return x

    return replaced(quiet, "embed_branches", instead if wanted else None)


def others_thoughts(quiet: QuietStar) -> contextlib.AbstractContextManager:
    """Every text gets the thoughts of the next one in its batch."""
    sample = quiet.sample
    return replaced(quiet, "sample", lambda *args: sample(*args).roll(1, 0))


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
