"""Parts of the algorithm that can be one's own: reward, baseline, mixing head and visibility."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from qs.model.config import read_settings
from qs.model.weights import OWN_HEAD
from qs.quietstar.checks import check_takes
from qs.quietstar.losses import Baseline, Reward
from qs.quietstar.masks import Visibility
from qs.quietstar.mixer import MixingHead
from qs.settings import check_value, hints_of


@dataclass(frozen=True)
class Parts:
    """What a `QuietStar` is made of beside the language model.

    Attributes:
        reward: as `losses.Reward`; None: as `config.reward` says.
        baseline: rewards (..., K) -> what each is compared with, (..., 1 or K); None: as
            `config.baseline` says.
        mixer: makes a module as `MixingHead` of D. Its tensors may be others: they are stored.
        visibility: hides more than the rule of `masks.sees`; None: nothing.

    Raises:
        ValueError: one is no function, or takes other arguments.
    """

    reward: Reward | None = None
    baseline: Baseline | None = None
    mixer: Callable[[int], nn.Module] = MixingHead
    visibility: Visibility | None = None

    def __post_init__(self) -> None:
        for name, hint in hints_of(Parts).items():
            check_value(f"Parts.{name}", getattr(self, name), hint, {})
        for name in ("reward", "baseline", "visibility"):
            check_takes(name, getattr(self, name))


def parts_of(quiet: nn.Module) -> dict[str, str]:
    """Parts of a `QuietStar` that are one's own, by their names in `Parts`: what each is called."""
    return {name: f"{_module_of(x)}.{x.__qualname__}" for name, x in _own(quiet).items()}


def _own(quiet: nn.Module) -> dict[str, Any]:
    """What each part of one's own is called by: a function or class, of an object its class."""
    own = {field.name: getattr(quiet, field.name) for field in fields(Parts)}
    own["mixer"] = None if type(quiet.mixer) is MixingHead else type(quiet.mixer)
    own = {name: part for name, part in own.items() if part is not None}
    return {name: x if hasattr(x, "__qualname__") else type(x) for name, x in own.items()}


def _module_of(defined: Any) -> str:
    """Its module as another script imports it, if it is of the script that runs."""
    main = sys.modules["__main__"]
    if defined.__module__ != "__main__":
        return defined.__module__
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", "__main__")
    return spec.name if spec else Path(file).stem


OWN = {OWN_HEAD: "mixer", "own_visibility": "visibility"}  # in checkpoints -> of `Parts`


def own_names(quiet: nn.Module) -> dict[str, str]:
    """By the keys of OWN: names of parts of one's own, without which a model is another."""
    own = _own(quiet)
    return {key: own[part].__qualname__ for key, part in OWN.items() if part in own}


def check_own(folder: Path, quiet: nn.Module) -> None:
    """Refuse a checkpoint that was trained with parts of one's own which are not given.

    Raises:
        ValueError: naming the part.
    """
    stored, own = read_settings(folder) or {}, own_names(quiet)
    for key, part in OWN.items():
        if (name := stored.get(key)) and own.get(key) != name:
            raise ValueError(
                f"{folder}: was trained with a {part} of its own, {name}, without which it is "
                f"another model; hand it over: qs.load({str(folder)!r}, parts=Parts({part}=..))"
            )
