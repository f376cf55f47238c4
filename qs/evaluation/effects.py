"""Settings that would change nothing are refused, in one line that says why."""

from collections.abc import Mapping
from typing import Any

from qs.quietstar.load import Opened
from qs.unused import refuse


def check_exam(given: Mapping[str, Any]) -> None:
    """Refuse settings of question sets that others leave idle.

    Raises:
        ValueError: as `refuse` does.
    """
    idle = {}
    if given.get("thoughts") == 0:
        idle["samples"] = "thoughts: leave out --thoughts 0, or it"
    if given.get("votes"):
        idle["samples"] = "direct answers: leave out --votes, or it"
    else:
        for name in ("temperature", "max_tokens"):
            idle[name] = "chains of thought: give --votes, or leave it out"
    refuse(given, idle)


def as_it_reads(given: Mapping[str, Any], opened: Opened) -> Opened:
    """The model as it reads held-out text: without thoughts, where it was not trained to think.

    Raises:
        ValueError: settings of thoughts are given where there are none, or none is drawn.
    """
    config, idle = opened.config, ()
    asked = {name for name in given if name != "show" or given[name]}
    if config.run.thinks and not opened.thinks and "thoughts" not in given:
        refuse(asked, dict.fromkeys(("show", "sample_temperature"), _unasked(opened)))
        return opened._replace(config=opened.unasked)
    why = f"--objective {config.run.objective}"
    if not config.run.thinks:
        idle = ("thoughts", "show", "sample_temperature")
    elif not config.sampled:
        idle = ("sample_temperature",)
        why = why if config.run.pauses else "--thoughts 0"
    told = f"sampled thoughts, and {opened.folder} has none by its {why}: leave it out"
    refuse(asked, dict.fromkeys(idle, told))
    return opened


def _unasked(opened: Opened) -> str:
    return f"thoughts, and {opened.folder} has none unasked: give --thoughts N, or leave it out"


def asked_to_think(given: Mapping[str, Any], opened: Opened, *of_thoughts: str) -> bool:
    """Whether it thinks: as it was trained to, or as --thoughts asks; else no settings of thoughts.

    Raises:
        ValueError: one of the settings `of_thoughts` is given, and it does not.
    """
    if opened.config.thought.thoughts and (opened.thinks or "thoughts" in given):
        return True
    refuse(given, dict.fromkeys(of_thoughts, _unasked(opened)))
    return False
