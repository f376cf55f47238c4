"""What `evaluate.py` is asked to do, and which of its flags are read in doing so."""

from __future__ import annotations

import argparse
from collections.abc import Collection

MODES = {  # how each is asked for
    "score": "a model alone",
    "controls": "--controls",
    "plot": "--plot",
    "sets": "--tasks with a question set",
    "votes": "--votes",
    "text": "--tasks text",
    "generate": "--generate",
}
READ_BY = {  # each flag: the modes that read it
    **{"controls": "controls", "plot": "plot", "tasks": "sets text", "generate": "generate"},
    **dict.fromkeys(("seeds", "jobs"), "controls"),
    "markdown": "controls sets text",
    "rows": "score controls plot text",
    **dict.fromkeys(("data", "seq", "sample_temperature"), "score plot text"),
    **dict.fromkeys(("thoughts", "seed", "device"), "score plot sets text generate"),
    "show": "score",
    **dict.fromkeys(("questions", "limit", "batch", "samples", "votes", "against"), "sets"),
    "out": "sets text",
    **dict.fromkeys(
        ("max_tokens", "top_p", "fixed_weight", "think_when", "think_temperature"), "generate"
    ),
    "temperature": "generate votes",
    "show_thoughts": "generate",
}


def asked(args: argparse.Namespace, text: str) -> set[str]:
    """The modes that a command line asks for; `text` is the task that is no question set."""
    first = [x for x in ("controls", "plot", "tasks", "generate") if getattr(args, x) is not None]
    if first[:1] != ["tasks"]:
        return set(first[:1] or ["score"])
    names = set(args.tasks.split(","))
    there = {"text": text in names, "sets": names != {text}, "votes": args.votes > 0}
    return {mode for mode, asked_for in there.items() if asked_for}


def refuse_unread(given: Collection[str], modes: set[str]) -> None:
    """Refuse a flag that would do nothing.

    Args:
        given: names in READ_BY.
        modes: what is asked for.

    Raises:
        ValueError: a flag is not read; where it would be.
    """
    for name in READ_BY:
        readers = READ_BY[name].split()
        if name in given and not modes & set(readers):
            asked_for = " and ".join(MODES[mode] for mode in MODES if mode in modes)
            raise ValueError(
                f"--{name.replace('_', '-')} is read by {', '.join(MODES[m] for m in readers)}; "
                f"expected none with {asked_for}, so leave it out"
            )
