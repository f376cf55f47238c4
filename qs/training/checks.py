"""Refused before anything is trained: a run that would go on as another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qs.data.dataset import TokenDataset
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.parts import parts_of
from qs.training import distributed


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
    begin = f"or begin a new run from its weights with --weights {run}"
    if distributed.anywhere(made.get("data", data.digest) != data.digest):
        raise ValueError(
            f"{data.folder}: expected the data that {run} was begun with, found other data of that "
            f"name; prepare it again from the same sources, {begin}"
        )
    now = parts_of(quiet)
    if distributed.anywhere((before := made.get("parts", now)) != now):
        problem = (
            f"{run}: expected the parts of its own that it was begun with, {_words(before)}, found "
            f"{_words(now)}; go on from Python with those, Trainer(config, None, run, Parts(..)) "
            f"and resume(), {begin}"
        )
        raise ValueError(distributed.from_first(problem))


def _words(parts: Any) -> str:
    if not parts or not isinstance(parts, dict):
        return str(parts or "none")
    return ", ".join(f"{part}={name}" for part, name in parts.items())
