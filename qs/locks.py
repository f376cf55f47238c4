"""Who writes: one process at a time, by a lock that the operating system lets go when it ends.

A lock is a file that is held (`flock`) and says who holds it. A process that is killed, or whose
machine goes down, holds nothing any more: the file that it leaves is taken over. Of network file
systems those lock between machines that the kernel locks over (NFS, Lustre with `-o flock`, GPFS);
mounts whose locks are local only do not. Reading needs no lock.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # of a folder that one process writes


def make_folder(path: Path) -> None:
    """A folder, made where it is missing with those above it.

    Raises:
        OSError: naming the folder that is there and takes no other.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = next(folder for folder in path.absolute().parents if folder.exists())
        words = f"cannot be made in {above} ({error.strerror}); choose another folder"
        raise OSError(error.errno, words, str(path)) from None


@contextlib.contextmanager
def hold(path: Path, wait: bool = False, made: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path` while something is written that it stands for.

    Args:
        path: made where it is missing, with its folder, and removed at the end.
        wait: for another process to let it go, which is then a matter of moments.
        made: what is written, if that is not the folder of `path`.

    Raises:
        ValueError: another process holds it; with its id, its machine and since when.
    """
    make_folder(path.parent)
    with taken(path, wait, made) as file:
        if not wait and (left := _words(file.read())):
            print(f"{path}: taken over from {left}, which has ended", file=sys.stderr)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        file.truncate(0)
        with contextlib.suppress(OSError):  # of a full disk tells what is written next, by name
            os.write(file.fileno(), json.dumps(holder).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while nobody else can have it


@contextlib.contextmanager
def taken(path: Path, wait: bool, made: Path | None = None) -> Iterator[BinaryIO]:
    """A file that is there, or made, and held by this process alone; open at its begin.

    Raises:
        ValueError: another process holds it, and this one does not wait.
    """
    while True:
        try:
            opened = path.open("ab+")
        except OSError as error:
            words = f"no file can be made in it ({error.strerror}); choose another folder"
            raise OSError(error.errno, words, str(path.parent)) from None
        with opened as file:
            file.seek(0)
            if not _lock(file, wait):
                who = _words(file.read()) or "another process"
                raise ValueError(
                    f"{made or path.parent}: expected no other process that writes here, found "
                    f"{who}; wait for its end, or end it"
                )
            if _is_at(file, path):  # else the one before renamed or removed what we waited for
                yield file
                return


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Lock a file; False: another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        found = f"{file.name}: {error.strerror}"
        print(f"warning: {found}: nothing keeps a second process from here", file=sys.stderr)
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _words(holder: bytes) -> str:
    """Who holds, or held, a lock; "" where that is not told."""
    try:
        told = json.loads(holder)
        return f"process {told['process']} on {told['host']}, since {told['since']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
