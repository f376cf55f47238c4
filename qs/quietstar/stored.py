"""What a checkpoint that we wrote says, in its `config.json`, of how it was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qs.config import Config, RunConfig, ThoughtConfig
from qs.model.config import read_settings
from qs.settings import check_types

# settings that weights depend on, and the temperature that they were measured at
STORED = ("embedding_scale", "mix_weight", "mix_space", "end", "sample_temperature")


def lost_end(folder: Path, config: Config) -> str:
    """What training on would leave of how a checkpoint's thoughts end, in words; "" if nothing."""
    drops = config.run.objective == "quiet" and config.thought.end == "fixed"
    if not drops or stored_settings(folder).get("end") != "drawn":
        return ""
    return (
        f"{folder}: its thoughts end themselves, while by --end fixed they have n tokens, and what "
        "it learned of ending is left out: add --end drawn to keep it"
    )


def stored_settings(folder: Path) -> dict[str, Any]:
    """Of STORED, `thoughts` and `objective` those that a checkpoint has, by name.

    Raises:
        ValueError: a value is of another type or out of range.
    """
    stored = read_settings(folder) or {}
    kept = {key: stored[key] for key in (*STORED, "thoughts", "objective") if key in stored}
    default = Config(ThoughtConfig(beta=0.0))
    try:
        for name, group in (("thought", ThoughtConfig), ("run", RunConfig)):
            values = dataclasses.asdict(getattr(default, name))
            check_types(name, group, values | {k: kept[k] for k in kept.keys() & values.keys()})
        default.changed(**kept)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: quiet_star: {error}") from None
    return kept
