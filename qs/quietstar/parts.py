"""Parts of the algorithm that can be one's own: reward, baseline, mixing head and visibility."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qs.model.config import read_settings
from qs.model.weights import OWN_HEAD
from qs.quietstar.losses import Baseline, Reward
from qs.quietstar.masks import Visibility
from qs.quietstar.mixer import MixingHead


@dataclass(frozen=True)
class Parts:
    """What a `QuietStar` is made of beside the language model.

    Attributes:
        reward: as `losses.Reward`; None: as `config.reward` says.
        baseline: rewards (..., K) -> what each is compared with, (..., 1 or K); None: as
            `config.baseline` says.
        mixer: makes a module as `MixingHead` of D. Its tensors may be others: they are stored.
        visibility: hides more than the rule of `masks.sees`; None: nothing.
    """

    reward: Reward | None = None
    baseline: Baseline | None = None
    mixer: Callable[[int], nn.Module] = MixingHead
    visibility: Visibility | None = None


OWN = {OWN_HEAD: "mixer", "own_visibility": "visibility"}  # in checkpoints -> of `Parts`


def own_names(mixer: nn.Module, visibility: Visibility | None) -> dict[str, str]:
    """By the keys of OWN: names of parts of one's own, without which a model is another."""
    names = {}
    if type(mixer) is not MixingHead:
        names[OWN_HEAD] = type(mixer).__qualname__
    if visibility is not None:
        kind = type(visibility).__qualname__
        names["own_visibility"] = getattr(visibility, "__qualname__", kind)
    return names


def check_own(folder: Path, mixer: nn.Module, visibility: Visibility | None) -> None:
    """Refuse a checkpoint that was trained with parts of one's own which are not given.

    Raises:
        ValueError: naming the part.
    """
    stored, own = read_settings(folder) or {}, own_names(mixer, visibility)
    for key, part in OWN.items():
        if (name := stored.get(key)) and own.get(key) != name:
            raise ValueError(
                f"{folder}: was trained with a {part} of its own, {name}, without which it is "
                f"another model; hand it over: qs.load({str(folder)!r}, parts=Parts({part}=..))"
            )


def check_shapes(
    tokens: Tensor,
    documents: Tensor,
    counted: Tensor | None = None,
    anchors: Tensor | None = None,
    thoughts: Tensor | None = None,
) -> None:
    """Refuse a batch that does not fit together; `anchors` None: every position.

    Raises:
        ValueError: naming what is not an id, or of another shape than the rest.
    """
    given = {"tokens": tokens, "documents": documents, "anchors": anchors, "thoughts": thoughts}
    for name, x in given.items():
        if x is not None and x.dtype != torch.int64:
            raise ValueError(f"{name}: expected whole numbers (int64), got {x.dtype}")
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"tokens: expected (B, T), rows of ids, got {tuple(tokens.shape)}")
    for name, x in (("documents", documents), ("counted", counted)):
        if x is not None and x.shape != tokens.shape:
            raise ValueError(
                f"{name}: expected {tuple(tokens.shape)}, as tokens are, got {tuple(x.shape)}"
            )
    rows = len(tokens)
    if anchors is not None and (anchors.ndim != 2 or len(anchors) != rows):
        raise ValueError(f"anchors: expected ({rows}, A) positions, got {tuple(anchors.shape)}")
    thinking = tuple((tokens if anchors is None else anchors).shape)
    if thoughts is not None and (thoughts.ndim != 4 or thoughts.shape[:2] != thinking):
        raise ValueError(
            f"thoughts {tuple(thoughts.shape)} do not fit {thinking} anchors: expected (B, A, K, n)"
        )
