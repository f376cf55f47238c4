"""What people see: streams that never end a command, progress, and text without controls."""

import contextlib
import difflib
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

NAMES = 9  # that a complaint lists, the last ones: of runs the newest
EVERY = 60  # seconds between lines of progress where no terminal shows a bar
JOINERS = "\u200c\u200d"  # parts of words and of emoji
MARKS = {"\n": "↵", "\t": "⇥"}  # other marks look like \x1b


class Lasting:
    """A text stream whose failure ends nothing: what nobody can read any more is dropped.

    The reader of a pipe may leave (`| head`) while a run has hours to go.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it; its length."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Let out what was written, or drop it."""
        self._try(self.stream.flush)

    def _try(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:  # for what is still in the stream's buffer, too
                os.dup2(nowhere.fileno(), self.stream.fileno())
            if not isinstance(error, BrokenPipeError):
                tell(f"warning: {self.stream.name}: {error.strerror}; the rest is not shown")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """No print within fails: unknown characters are escaped, and a stream may end, or be closed."""
    with contextlib.ExitStack() as held:
        for name in ("stdout", "stderr"):
            # None: closed before Python began (>&-, a daemon)
            stream = getattr(sys, name) or held.enter_context(open(os.devnull, "w"))
            if hasattr(stream, "reconfigure"):  # a notebook's takes any character as it is
                # a line at a time, so that a file or a pipe shows where a run stands
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
            redirect = getattr(contextlib, f"redirect_{name}")
            held.enter_context(redirect(Lasting(stream)))
        try:
            yield
        finally:
            sys.stdout.flush()


def tell(text: str) -> None:
    """A line on stderr at once, also from a signal handler, which may not enter a stream twice."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode(errors="backslashreplace"))


class Lines:
    """Progress where no terminal shows a bar: a line every minute, and one at the end.

    Takes what `progress` takes.
    """

    def __init__(
        self,
        over: Iterable[Any] | None,
        label: str,
        total: int | None,
        unit: str,
        leave: bool,
        initial: int,
    ):
        self.over, self.label, self.unit, self.leave, self.n = over, label, unit, leave, initial
        self.total = len(over) if total is None and hasattr(over, "__len__") else total
        self.postfix = ""
        self.began = self.told = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for each in self.over or ():
            yield each
            self.update()
        self.close()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What the next line ends with; nothing is written for it."""
        self.postfix = text

    def update(self, n: int = 1) -> None:
        """Count; write a line if the last one was long ago."""
        self.n += n
        if time.monotonic() - self.told >= EVERY:
            self._write()

    def close(self) -> None:
        """Write the last line."""
        if self.leave:
            self._write()

    def _write(self) -> None:
        self.told = time.monotonic()
        of = "" if self.total is None else f" of {self.total}"
        took = tqdm.format_interval(self.told - self.began)
        said = f"{self.label}: {self.n}{of} {self.unit.strip()}, {took}"
        print(f"{said}{self.postfix and ', '}{self.postfix}", file=sys.stderr)


def progress(
    over: Iterable[Any] | None = None,
    label: str = "",
    total: int | None = None,
    *,
    unit: str = "it",
    leave: bool = True,
    initial: int = 0,
    shown: bool = True,
    form: str | None = None,
) -> Any:
    """A progress bar on a terminal, `Lines` elsewhere; iterated, or updated by hand.

    Args:
        over: what is iterated, if anything.
        label: what is being done.
        total: how many; None: as many as `over` has, if it says.
        unit: what is counted.
        leave: whether anything is left to see when it is done.
        initial: how many were done before.
        shown: False: nothing is shown.
        form: of the bar, where its numbers need the room: tqdm's `bar_format`.
    """
    if shown and not sys.stderr.isatty():
        return Lines(over, label, total, unit, leave, initial)
    return tqdm(
        over,
        label,
        total,
        unit=unit,
        leave=leave,
        initial=initial,
        disable=not shown,
        dynamic_ncols=True,
        bar_format=form,
    )


def visible(text: str) -> list[str]:
    """Each character, or a mark where one does not show: controls, formats, surrogates."""
    kept = JOINERS if text.strip(JOINERS) else ""
    return [
        char
        if char.isprintable() or char in kept or unicodedata.category(char) == "Zs"
        else MARKS.get(char, char.encode("unicode_escape").decode())
        for char in text
    ]


def harmless(text: str) -> str:
    """Text of several lines for a terminal: its other control characters are shown, not obeyed."""
    marks = zip(text, visible(text), strict=True)
    return "".join(char if char in MARKS else mark for char, mark in marks)


def there(name: str, names: Iterable[str]) -> str:
    """What a complaint about an unknown name ends with: the names that there are, the nearest."""
    names = list(names)
    shown = ["..."] * (len(names) > NAMES) + names[-NAMES:]
    return f"({', '.join(shown) or 'none'}){nearest(Path(name).name, names)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A question to end a complaint about an unknown name with; "" where none is near."""
    near = difflib.get_close_matches(name, list(names), 1, 0.7)
    return f"; did you mean {near[0]}?" if near else ""
