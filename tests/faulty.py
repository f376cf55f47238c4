"""What tests of bad days share: processes that end badly, and files that are damaged."""

from __future__ import annotations

import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSURD = [None, True, -1, 0, 1.5, "", "x", "\x1b[2J", [], [1], {}, {"a": 1}, 10**30, -(10**30)]
ABSURD += [2**31, 2**63, 1e308, -1e-320, "9" * 400, [[]] * 3, "\ud800"]


def forked(act: Callable[[], int | None]) -> int:
    """Exit status of a copy of this process that does something; minus the signal that ended it.

    Far cheaper than a new one, which imports torch again. What it says is not heard.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that are not copied: none holds a lock here
        child = os.fork()
    if child == 0:
        status = 99
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            status = act() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_after(seconds: float) -> None:
    """This process ends at once, without a word, some time from now."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def die_at(owner: Any, name: str, count: int) -> None:
    """This process is killed at the begin of the count-th call of a function."""
    original, calls = getattr(owner, name), []

    def killed(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, killed)


def damage(path: Path, numbers: random.Random) -> str:
    """Flip a bit, cut, zero, double or empty a file; what was done, in words."""
    content = bytearray(path.read_bytes())
    if not content:
        path.write_bytes(b"\0")
        return f"{path.name}: a byte more"
    at = numbers.randrange(len(content))
    how = numbers.choice(["bit", "bit", "bit", "cut", "zeros", "twice", "nothing"])
    if how == "bit":
        content[at] ^= 1 << numbers.randrange(8)
    elif how == "cut":
        del content[at:]
    elif how == "zeros":
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    elif how == "twice":
        content *= 2
    else:
        content.clear()
    path.write_bytes(content)
    return f"{path.name}: {how} at {at}"


def mutated(value: Any, numbers: random.Random) -> Any:
    """A JSON value in which one thing is another, missing, or more."""
    if not isinstance(value, (dict, list)) or not value or numbers.random() < 0.1:
        return numbers.choice(ABSURD)
    copy = value.copy()
    at = numbers.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    how = numbers.random()
    if how < 0.15:
        del copy[at]
    elif how < 0.25 and isinstance(copy, dict):
        copy[numbers.choice(["new", "step", "", "\n"])] = numbers.choice(ABSURD)
    else:
        copy[at] = mutated(copy[at], numbers)
    return copy


def one_line(status: int, said: str) -> None:
    """A command went well, or complained in one line."""
    complaints = [line for line in said.replace("\r", "\n").split("\n") if "error: " in line]
    assert status in (0, 2), (status, said)
    assert len([x for x in complaints if x.startswith("error: ")]) == (status == 2), said
    assert "Traceback" not in said
    assert "\x1b[2J" not in "".join(complaints)
