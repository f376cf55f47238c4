"""Settings that change nothing: a person who gives such a flag is told so, and not left to wonder.

Next-token training and pauses take those of thoughts, beside which they are measured. What commands
take beside the settings of a run is refused by the same rule (`refuse`).
"""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from qs.config import Config, StarConfig, ThoughtConfig

NOT_OF_STAR = {  # beside those of thoughts; it refuses --compile and --tensorboard by their values
    *("data", "eval_rows", "grad_norms_every", "mixer_lr", "save_every", "save_minutes"),
    "thought_lr",
}


def unused(config: Config) -> dict[str, set[str]]:
    """Names of settings that change nothing, by the flag that makes it so."""
    if not config.run.bootstraps:
        return {f"--objective {config.run.objective}": _names(StarConfig)}
    found = {"--objective star": NOT_OF_STAR | _names(ThoughtConfig)}
    if config.star.task in ("arithmetic", "world"):  # which are generated
        found[f"--task {config.star.task}"] = {"questions"}
    return found


def check_used(given: dict[str, Any], config: Config) -> None:
    """Refuse settings that were given and change nothing.

    Raises:
        ValueError: naming their flags and the one that makes it so.
    """
    for why, names in unused(config).items():
        flags = [flag(*each).partition("=")[0] for each in given.items() if each[0] in names]
        if flags:
            other = "" if config.run.bootstraps else ", or add --objective star"
            raise ValueError(f"{', '.join(flags)}: of no effect with {why}; leave that out{other}")


def refuse(given: Container[str], idle: Mapping[str, str]) -> None:
    """Refuse the first of the `idle` settings that is among those given by name.

    Raises:
        ValueError: naming its flag, and what `idle` says that it is of.
    """
    for name, told in idle.items():
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')} is of {told}")


def used(config: Config) -> dict[str, Any]:
    """The settings that change something, by name."""
    idle = set().union(*unused(config).values())
    groups = config.to_json().values()
    return {name: value for group in groups for name, value in group.items() if name not in idle}


def flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words}={value}"


def _names(group: type) -> set[str]:
    return {f.name for f in dataclasses.fields(group)}
