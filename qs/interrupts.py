"""Ctrl-C where `qs.cli.main` cannot answer it: while a command imports, and in its children."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


def end_quietly() -> None:
    """Let Ctrl-C end this process without a traceback until `qs.cli.main` answers it in words.

    For the first lines of a command, before it imports PyTorch; nothing is made by then. What this
    process was told to ignore (nohup, &) stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that this thread begins within never hear Ctrl-C, not even while they start.

    This one does, at the latest after. Windows has no such mask: children ignore it themselves.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
