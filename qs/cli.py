"""The command line: one flag for every setting (`--no-x` for booleans), on top of a preset."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any, Literal, get_args, get_origin

import torch

from qs.config import GROUPS, PRESETS, Config


class Parser(argparse.ArgumentParser):
    """A parser of whole flags that shows a manual as written and complains in one line."""

    def __init__(self, prog: str, manual: str | None):
        super().__init__(
            prog=prog,
            description=manual,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> typing.NoReturn:
        """Raise ValueError instead of printing the whole usage and leaving."""
        raise ValueError(f"{message}; see python {self.prog} --help")


def parse(argv: list[str], parser: argparse.ArgumentParser, preset: str | None = None) -> Config:
    """Read settings from the command line, on top of `--preset`.

    Args:
        argv: arguments without the program's name.
        parser: holds the program's description and any flags of its own; every setting is added.
        preset: name in PRESETS used when `--preset` is not given; None takes the bundled one for
            bundled data ("tiny", with --objective star "sums") and the published one for any other.

    Raises:
        ValueError: a setting is out of range.
    """
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    start = PRESETS[given.get("preset", preset or _preset(given))]
    groups = {}
    for name, group in GROUPS.items():
        names = {f.name for f in dataclasses.fields(group)} & given.keys()
        groups[name] = dataclasses.replace(getattr(start, name), **{n: given[n] for n in names})
    return Config(**groups)


def _preset(given: dict[str, Any]) -> str:
    """The preset that goes with some flags."""
    if given.get("objective") == "star":
        bundled = given.get("task") in (None, "arithmetic", "world")
        return "sums" if bundled else "star"
    bundled = given.get("data") in (None, PRESETS["tiny"].run.data)
    return "tiny" if bundled else "published"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--preset` and one flag for every setting; an absent flag leaves no trace."""
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=argparse.SUPPRESS,
        help="settings to start from [tiny or sums for what is bundled, else published or star]",
    )
    for name, group in GROUPS.items():
        section = parser.add_argument_group(f"{name}: {(group.__doc__ or '').rstrip('.').lower()}")
        hints = typing.get_type_hints(group)
        for f in dataclasses.fields(group):
            values = {key: getattr(getattr(c, name), f.name) for key, c in PRESETS.items()}
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
            if len(set(values.values())) == 1:
                shown = str(f.default)
            section.add_argument(
                "--" + f.name.replace("_", "-"),
                default=argparse.SUPPRESS,
                help=f"{f.metadata['help']} [{shown}]".replace("%", "%%"),
                **_argument(hints[f.name]),
            )


def _argument(hint: Any) -> dict[str, Any]:
    """argparse's keywords for a field of this type."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    return {"type": hint, "metavar": {int: "N", float: "X", str: "TEXT"}[hint]}


OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch (the batch stays the same), --seq, --thoughts or --samples,"
    " or pass --recompute"
)


INTERRUPTED = "interrupted; go on from the last checkpoint, if there is one, with --resume"


def told(error: BaseException, interrupted: str = INTERRUPTED) -> str | None:
    """One line for what a person can mend; None for a bug of ours, which keeps its traceback."""
    allocator = "can't allocate memory"  # what PyTorch's CPU allocator says
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or allocator in str(error):
        return OUT_OF_MEMORY
    if isinstance(error, KeyboardInterrupt):
        return interrupted
    return str(error) if isinstance(error, (ValueError, OSError)) else None
