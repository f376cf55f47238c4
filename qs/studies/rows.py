"""The settings of a row: those of the run, with changes, without what cannot go with them."""

from __future__ import annotations

from typing import Any

from qs.config import Config
from qs.thinking import ThoughtConfig

DEFAULT = ThoughtConfig()


def row_config(own: Config, name: str, changes: dict[str, Any]) -> Config:
    """The settings of a run with some changes; what they rule out is as if it were not set.

    Raises:
        ValueError: the run has no such row, by its name.
    """
    had = {key: value for group in own.to_json().values() for key, value in group.items()}
    changes = {key: value for key, value in changes.items() if had[key] != value}
    try:
        return own.changed(**_ruled_out(own.thought, changes), **changes)
    except ValueError as error:
        raise ValueError(f"row {name}: {error}; or leave this row out") from None


def _ruled_out(own: ThoughtConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """What a run may have that cannot go with changes, as it is by default."""
    out: dict[str, Any] = {}
    if changes.keys() & {"objective", "thoughts", "ahead"}:  # which stages have of their own
        out |= {"curriculum": "", "distil": 0.0}
    if "reward" in changes:
        out["reference"] = "own"
    if changes.get("reference") == "average":
        out["reward"] = "information-gain"
    if "mix_weight" in changes:
        out["mix_space"] = "output"
    if changes.get("objective") == "pause" or changes.get("beta") == 0:  # likelihood alone trains
        out["likelihood_weight"] = own.likelihood_weight or DEFAULT.likelihood_weight
        out["base_weight"] = own.base_weight if own.base_weight < 1 else DEFAULT.base_weight
    return {key: value for key, value in out.items() if key not in changes}
