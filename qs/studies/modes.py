"""What `evaluate.py` is asked to do, and which of its flags are read in doing so."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Collection

from qs.cli import Parser
from qs.data.question_sets import ARITHMETIC, QUESTION_SETS
from qs.inference.decoding import Decoding

TEXT = "text"  # the task that reads held-out text
ALL_TASKS = (*QUESTION_SETS, ARITHMETIC, TEXT)
LEAST = {  # values of flags
    **{"rows": 1, "show": 0, "seeds": 1, "jobs": 1, "problems": 2},
    **{"limit": 1, "batch": 1, "samples": 1, "votes": 0},
}
MODES = {  # how each is asked for
    "score": "a model alone",
    "controls": "--controls",
    "rounds": "--rounds",
    "compare": "--compare",
    "plot": "--plot",
    "sets": "--tasks with a question set",
    "votes": "--votes",
    "text": "--tasks text",
    "generate": "--generate",
}
READ_BY = {  # each flag: the modes that read it
    **{"rounds": "rounds", "compare": "compare", "on": "compare", "problems": "compare"},
    **{"controls": "controls", "plot": "plot", "tasks": "sets text", "generate": "generate"},
    **dict.fromkeys(("seeds", "jobs"), "controls"),
    "markdown": "controls rounds compare sets text",
    "rows": "score controls plot text",
    **dict.fromkeys(("data", "seq", "sample_temperature"), "score plot text"),
    **dict.fromkeys(("thoughts", "seed"), "score plot sets text generate"),
    "device": "score plot compare sets text generate",
    "show": "score",
    **dict.fromkeys(("questions", "limit", "batch", "samples", "votes", "against"), "sets"),
    "out": "sets text",
    **dict.fromkeys(
        ("max_tokens", "top_p", "fixed_weight", "think_when", "think_temperature"), "generate"
    ),
    "temperature": "generate votes",
    "show_thoughts": "generate",
}


FIRST = ("controls", "rounds", "compare", "plot", "tasks", "generate")  # flags that choose a mode


def asked(args: argparse.Namespace, text: str) -> set[str]:
    """The modes that a command line asks for; `text` is the task that is no question set."""
    first = [x for x in FIRST if getattr(args, x) is not None]
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


def settings(argv: list[str], manual: str | None) -> argparse.Namespace:
    """The command line; a flag that is not given takes the run's own setting.

    Raises:
        ValueError: a flag is unknown, out of range, or not read by what is asked for.
    """
    parser = Parser("evaluate.py", manual)
    parser.add_argument("model", nargs="?", help="a run, a checkpoint, or a name in weights/")
    parser.add_argument("--controls", metavar="RUN", help="train and measure what to compare with")
    parser.add_argument("--seeds", type=int, default=1, help="of --controls: how many [1]")
    parser.add_argument("--jobs", type=int, default=1, help="of --controls: trainings at once [1]")
    parser.add_argument("--markdown", metavar="FILE", help="also write the tables there")
    parser.add_argument("--rounds", metavar="RUN", nargs="+", help="runs of STaR side by side")
    parser.add_argument("--compare", metavar="MODEL", nargs="+", help="models side by side")
    parser.add_argument(
        "--on", choices=("world", "arithmetic"), default="world", help="of --compare [world]"
    )
    parser.add_argument(
        "--problems", type=int, default=200, help="of --compare [200]; sums: of each length"
    )
    parser.add_argument("--plot", metavar="RUN", help="draw what RUN and its controls measured")
    parser.add_argument("--data", help="prepared data, or its name in data/")
    parser.add_argument("--rows", type=int, help="held-out rows to read [the run's, or 32]")
    parser.add_argument("--thoughts", type=int, help="n: tokens in one thought; 0: see train.py")
    parser.add_argument("--sample-temperature", type=float, help="of thoughts; 0 is greedy")
    parser.add_argument("--seq", type=int, help="T: tokens in a row")
    parser.add_argument("--seed", type=int, help="seed of the thoughts")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--show", type=int, default=0, help="passages to show with their thoughts")
    exams = parser.add_argument_group("question sets")
    exams.add_argument("--tasks", metavar="LIST", help=f"some of {','.join(ALL_TASKS)}")
    exams.add_argument("--questions", default="data", help="folder of the question sets [data]")
    exams.add_argument(
        "--limit",
        type=int,
        help="questions from the top of each set [all]; sums of each length [100]",
    )
    exams.add_argument("--batch", type=int, default=8, help="questions at a time [8]")
    exams.add_argument("--samples", type=int, default=4, help="sampled thoughts to average [4]")
    exams.add_argument("--votes", type=int, default=0, help="chains of thought to vote [0: none]")
    exams.add_argument("--against", metavar="FOLDER", help="compare with answers of another model")
    exams.add_argument("--out", metavar="FOLDER", help="of answers [the run; else runs/MODEL]")
    text = parser.add_argument_group("text")
    text.add_argument("--generate", metavar="PROMPT", help="a text, a file of lines, or - (stdin)")
    text.add_argument("--show-thoughts", action="store_true", help="what comes before each token")
    for f in dataclasses.fields(Decoding):
        kind = {"max_tokens": int, "think_when": str}.get(f.name, float)
        flag, default = f"--{f.name.replace('_', '-')}", f"[{f.default}]"
        text.add_argument(flag, type=kind, help=f"{f.metadata['help']} {default}")
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(READ_BY)))
    given = [name for name in READ_BY if getattr(args, name) is not None]
    for name in READ_BY.keys() - set(given):
        setattr(args, name, parser.get_default(name))
    args.command = shlex.join(["python", "evaluate.py", *argv])
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is at least {least}, got {value}")
    alone = ("model", "controls", "rounds", "compare", "plot")
    if sum(getattr(args, name) is not None for name in alone) != 1:
        raise ValueError("give one of: a model, --controls, --rounds, --compare, --plot")
    refuse_unread(given, asked(args, TEXT))
    return args
