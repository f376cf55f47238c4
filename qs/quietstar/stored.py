"""What a checkpoint that we wrote says, in its `config.json`, of how it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qs.config import Config, ThoughtConfig
from qs.model.config import read_settings

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
    try:
        Config(ThoughtConfig(beta=0.0)).changed(**kept)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: quiet_star: {error}") from None
    return kept
