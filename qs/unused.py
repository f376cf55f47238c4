"""Settings that change nothing: a person who gives such a flag is told so, and not left to wonder.

Next-token training and pauses take those of thoughts, beside which they are measured.
"""

import dataclasses
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
        flags = [
            f"--{'no-' * (value is False)}{name.replace('_', '-')}"
            for name, value in given.items()
            if name in names
        ]
        if flags:
            other = "" if config.run.bootstraps else ", or add --objective star"
            raise ValueError(f"{', '.join(flags)}: of no effect with {why}; leave that out{other}")


def _names(group: type) -> set[str]:
    return {f.name for f in dataclasses.fields(group)}
