"""Refused before anything is trained: what would train nothing, or go on as another run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qs.config import Config
from qs.data.dataset import TokenDataset
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.mixer import MixingHead
from qs.quietstar.parts import parts_of
from qs.quietstar.terms import term_weights
from qs.training import distributed


def check_trains(config: Config) -> None:
    """Refuse settings by which nothing is trained, or no thinking where thoughts are.

    Raises:
        ValueError: what to change.
    """
    if not any(term_weights(config.thinking)):
        raise ValueError("--likelihood-weight 0 without REINFORCE trains nothing: raise it")
    for stage in _thinking_stages(config):
        _, talk, policy = term_weights(stage.thinking)
        if not talk and not policy:
            raise ValueError(
                f"--base-weight {stage.thinking.base_weight:g} without REINFORCE trains no "
                "thinking: lower it, or train with --objective plain"
            )


def check_mixes(config: Config, mixer: nn.Module) -> None:
    """Refuse a head whose mixing weight is 0 where no term of the loss trains it.

    Every prediction is then the one without a thought, which earns nothing, for ever. A head of
    one's own may begin otherwise, and is taken as it is.

    Raises:
        ValueError: what to change.
    """
    shut = config.thinking.mix_weight == "linear" and type(mixer) is MixingHead
    untrained = [s for s in _thinking_stages(config) if not term_weights(s.thinking).talk]
    if shut and untrained and not mixer[-1].weight.any():
        thought = config.thinking
        flag = f"--base-weight {thought.base_weight:g}" if thought.likelihood_weight else ""
        raise ValueError(
            f"{flag or '--likelihood-weight 0'} leaves a new mixing head untrained, whose weight "
            "is 0, so that no thought earns anything: add --mix-weight one (or sigmoid), or begin "
            "from a run"
        )


def _thinking_stages(config: Config) -> list[Config]:
    """Settings of all stages, or the run's own, in which there are thoughts."""
    stages = [stage for _, stage in config.stages] or [config]
    return [stage for stage in stages if stage.run.thinks]


def check_begun_with(
    run: Path, made: Mapping[str, Any], data: TokenDataset, quiet: QuietStar
) -> None:
    """Refuse to go on with other data, or other parts of one's own, than a run was begun with.

    Args:
        run: its folder.
        made: what its `run.json` says, for the first process; older runs do not say all of it.
        data: that it is trained on now.
        quiet: with its parts now.

    Raises:
        ValueError: what was expected and found.
    """
    begin = f"or begin a new run from its weights with --weights {shlex.quote(str(run))}"
    check_data(run, made, data, begin)
    now = parts_of(quiet)
    if distributed.anywhere((before := made.get("parts", now)) != now):
        problem = (
            f"{run}: expected the parts of its own that it was begun with, {_words(before)}, found "
            f"{_words(now)}; go on from Python with those, Trainer(config, None, run, Parts(..)) "
            f"and resume(), {begin}"
        )
        raise ValueError(distributed.from_first(problem))


def check_data(run: Path, made: Mapping[str, Any], data: TokenDataset, otherwise: str) -> None:
    """Refuse other data than a run was begun with, by its digest. Arguments as above.

    Raises:
        ValueError: what was expected and found, and what to do `otherwise`.
    """
    if distributed.anywhere(made.get("data", data.digest) != data.digest):
        raise ValueError(
            f"{data.folder}: expected the data that {run} was begun with, found other data of that "
            f"name; prepare it again from the same sources, {otherwise}"
        )


def _words(parts: Any) -> str:
    if not parts or not isinstance(parts, dict):
        return str(parts or "none")
    return ", ".join(f"{part}={name}" for part, name in parts.items())
