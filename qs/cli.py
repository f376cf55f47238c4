"""The command line: a flag for every setting, and one line instead of a traceback.

Every command's `main` is one call of `main` below. Flags that make a `Config` are derived from its
fields (`--no-x` for booleans) and stand on top of a preset.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import re
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from qs.config import GROUPS, Config
from qs.files import BUNDLE, HOME
from qs.output import harmless, lasting_streams, nearest
from qs.presets import PRESETS
from qs.settings import MOST
from qs.unused import check_used, flag, used

OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch (the batch stays the same), or what of --batch, --seq, "
    "--thoughts and --samples the command has, or pass --recompute to train.py"
)
NO_THREAD = "can't start new thread"  # as Python says it
THREADLESS = (
    "expected to start a thread, found no room for one: raise the limit of processes (ulimit -u, a "
    "container's) or of memory (ulimit -v)"
)
COMPILERS = ("torch._dynamo.", "torch._inductor.", "triton.")  # who raises what cannot be compiled
KEPT = "what is finished is kept: the same command does the rest"
CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")  # as argparse says it
FEW = 20  # flags, that a complaint about an unknown one lists
FIRST = ("thoughts", "objective", "data", "weights", "steps")  # settings that help begins with
ENDING = [  # signals that end a command; Windows has no SIGHUP
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def typed(program: str, *words: object) -> str:
    """What a person types for train.py, evaluate.py or `python -m ..`; a wheel has commands.

    `words` follow, quoted where a shell would take them apart.
    """
    program = program.removeprefix("python ")
    script, ending, rest = program.partition(".py")
    line = f"qs-{script}{rest}" if ending and HOME == BUNDLE else f"python {program}"
    return " ".join([line, *(shlex.quote(str(word)) for word in words)])


class Parser(argparse.ArgumentParser):
    """A parser of whole flags that shows a manual as written and complains in one line."""

    def __init__(self, prog: str, description: str | None = None, **options: Any):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> typing.NoReturn:
        """Raise ValueError instead of printing the whole usage and leaving."""
        if wrong := CHOICE.search(message):
            message += nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        raise ValueError(f"{message}; see {typed(self.prog)} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """All arguments; what is near to an unknown one is named."""
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self.flags() if flag not in ("-h", "--help")]
            near = nearest(unknown[0].partition("=")[0], flags)
            if not near and unknown[0].startswith("-") and len(flags) <= FEW:
                near = f"; there is {', '.join(flags)}"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return args

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which takes --flag=-- for a flag without a value."""
        for arg in sys.argv[1:] if args is None else args:
            if re.fullmatch(r"--[\w-]+=--", arg):
                self.error(f"argument {arg[:-3]}: expected a value, found --")
        return super().parse_known_args(args, namespace)

    def flags(self) -> list[str]:
        """Every flag, those of commands too."""
        found = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for parser in action.choices.values() for flag in parser.flags()]
        return found


@contextlib.contextmanager
def on_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let ENDING come to a handler; what this process was told to ignore (nohup, &) stays so."""
    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in heard]
    try:
        yield
    finally:
        for number, earlier in zip(heard, before, strict=True):
            signal.signal(number, earlier)


@contextlib.contextmanager
def leaving(kept: str) -> Iterator[None]:
    """Say `kept`, not what `main` is told, where a signal interrupts what is done within."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(kept)
        raise


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


def main(
    command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, kept: str = KEPT
) -> int:
    """Run a command.

    Args:
        command: takes the arguments, returns the exit status (None: 0).
        argv: arguments without the program's name; None: those of this process.
        kept: what to say after a signal that interrupts: what is left of the work.

    Returns:
        The exit status: the command's own, 2 after one line on stderr for what a person can mend,
        128 and its number after a signal. A bug of ours keeps its traceback.
    """
    with lasting_streams(), on_signals(_interrupt):
        try:
            return command(list(sys.argv[1:] if argv is None else argv)) or 0
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            kept = getattr(interrupt, "__notes__", [kept])[0]
            print(f"error: interrupted by {number.name}; {kept}", file=sys.stderr)
            return 128 + number
        except Exception as error:
            if (said := _mendable(error, kept)) is None:
                raise
            print(f"error: {harmless(said)}", file=sys.stderr)
            return 2


def _mendable(error: Exception, kept: str) -> str | None:
    """What to say about an error that a person can mend; None: it is a bug."""
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        return f"{THREADLESS}; {kept}"
    if type(error).__module__.startswith(COMPILERS):
        cause = getattr(error, "inner_exception", error)
        line = f"{type(cause).__name__}: {cause}".partition("\n")[0]  # hundreds follow it
        return f"torch.compile failed: {line}; --no-compile computes without it"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{where}{error.strerror}{f'; make room; {kept}' * full}"
    return str(error) if isinstance(error, ValueError | OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch's own class on CUDA; its CPU allocator raises a bare RuntimeError."""
    # not imported for it: a command that never computes starts without it
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    cpu = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or cpu


def parse(argv: list[str], parser: argparse.ArgumentParser) -> Config:
    """Read settings from the command line, on top of `--preset`.

    Without it that is the bundled one for bundled data ("tiny", with --objective star "sums") and
    the published one for any other.

    Args:
        argv: arguments without the program's name.
        parser: holds the program's description and any flags of its own; every setting is added.

    Raises:
        ValueError: a setting is out of range, or changes nothing beside the others.
    """
    add_flags(parser)
    args = parser.parse_args(argv)
    start = PRESETS[getattr(args, "preset", _preset(vars(args)))]
    given = chosen(args, *GROUPS.values())
    config = start.changed(**given)
    check_used(given, config)
    return config


def _preset(given: dict[str, Any]) -> str:
    if given.get("objective") == "star":
        bundled = given.get("task") in (None, "arithmetic", "world")
        return "sums" if bundled else "star"
    bundled = given.get("data") in (None, PRESETS["tiny"].run.data)
    return "tiny" if bundled else "published"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--preset` and one flag for every setting of a run."""
    first = parser.add_argument_group("to set first")
    first.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=argparse.SUPPRESS,
        help="settings to start from [tiny or sums for what is bundled, else published or star]",
    )
    for name, group in GROUPS.items():
        section = parser.add_argument_group(f"{name}: {(group.__doc__ or '').rstrip('.').lower()}")
        for f in dataclasses.fields(group):
            presets: dict[Any, list[str]] = {}  # by the value that they give
            for key, config in PRESETS.items():
                presets.setdefault(getattr(getattr(config, name), f.name), []).append(key)
            values = ", ".join(f"{'/'.join(keys)} {value}" for value, keys in presets.items())
            shown = values if len(presets) > 1 else ""
            add_settings(first if f.name in FIRST else section, group, f.name, shown=shown)


def to_args(config: Config) -> list[str]:
    """The flags that make a config from any preset, but for settings that change nothing."""
    return [flag(name, value) for name, value in used(config).items() if value is not None]


def add_settings(
    section: argparse._ActionsContainer, group: type, *names: str, shown: str = ""
) -> None:
    """Add flags for fields of a dataclass of settings; an absent flag leaves no trace.

    Args:
        section: of a parser.
        group: the dataclass; its fields carry their help sentences.
        names: of the fields; none: all.
        shown: the value without the flag, which stands in brackets; empty: the default.
    """
    hints = typing.get_type_hints(group)
    for f in dataclasses.fields(group):
        if f.name in names or not names:
            without = shown or ("" if f.default is None else str(f.default))
            section.add_argument(
                f"--{f.name.replace('_', '-')}",
                default=argparse.SUPPRESS,
                help=f.metadata["help"].replace("%", "%%") + (without and f" [{without}]"),
                **_read_as(hints[f.name]),
            )


def within(kind: type, least: float, most: float = MOST) -> Callable[[str], Any]:
    """What argparse reads a number of some kind with, both limits included."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {text}")
        return value

    read.__name__ = kind.__name__  # of which argparse says "invalid int value"
    return read


def _read_as(hint: Any) -> dict[str, Any]:
    """argparse's keywords for a field of this type."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    return {"type": hint, "metavar": {int: "N", float: "X", str: "TEXT"}[hint]}


def listed(text: str, names: Iterable[str], none: bool = False) -> list[str]:
    """Some of these names, split at commas, each once; "none" is of none where that may be.

    Raises:
        argparse.ArgumentTypeError: there is no such name; with all there are, and the nearest.
    """
    asked, names = [] if none and text == "none" else text.split(","), list(names)
    if unknown := [name for name in asked if name not in names]:
        there = f"{'none, or ' * none}some of {','.join(names)}"
        near = nearest(unknown[0], names)
        raise argparse.ArgumentTypeError(f"expected {there}; got {unknown[0]!r}{near}")
    return list(dict.fromkeys(asked))


def chosen(args: argparse.Namespace, *groups: type) -> dict[str, Any]:
    """The settings of some dataclasses that a command line gives."""
    names = [f.name for group in groups for f in dataclasses.fields(group)]
    return {name: getattr(args, name) for name in names if name in args}
