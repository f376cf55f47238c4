"""What bears its final name is complete: it is written aside, flushed to the disk and renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qs.locks import LOCK, hold, taken
from qs.plain import check_plain


def flush(path: Path) -> None:
    """Force a file or folder to the disk.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def refusal_told(path: Path, size: int) -> Iterator[None]:
    """Let a disk that refuses a write say of which file, and how many bytes it is to take."""
    try:
        yield
    except OSError as error:
        words = f"{size:,} bytes could not be written: {error.strerror or error}"
        raise OSError(error.errno, words, str(path)) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of several processes at once each writes all of it.

    A link stays one: what it leads to is written.

    Raises:
        OSError: the disk refuses, or a pipe or device is there; what was there is untouched.
    """
    check_plain(path)
    path = _real(path)
    aside = path.with_name(f"{path.name}.tmp")
    with refusal_told(path, len(content)), taken(aside, wait=True) as file:
        try:
            file.truncate(0)  # what a killed process left
            file.write(content)
            file.flush()
            flush(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all; half a character, as of a name, escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def new_folder(final: Path, replace: bool = False, way: str = "remove it") -> Iterator[Path]:
    """A folder that is filled aside, flushed, and becomes `final` if all went well.

    A link stays one: what it leads to is made.

    `replace`: in the place of one that is there, which stays until then. `way`: what a person can
    do about one that is not to be replaced.

    Raises:
        ValueError: `final` exists already and is not to be replaced, another process makes it, or
            it is the root.
        OSError: the disk refuses; it says of which file, or else of `final`.
    """
    final = _real(final)
    aside, old = (final.with_name(f".{final.name}.{kind}") for kind in ("tmp", "old"))
    with hold(final.with_name(f".{final.name}{LOCK}"), made=final):
        _put_back(old, final)
        if final.exists() and not replace:
            raise ValueError(
                f"{final}: expected a new folder, found one; {way} or choose another name"
            )
        for left in (aside, old):  # by a killed process
            shutil.rmtree(left, ignore_errors=True)
        try:
            aside.mkdir()
            yield aside
            for path in (*aside.iterdir(), aside):
                flush(path)
            if final.exists():
                final.rename(old)
            aside.rename(final)
            flush(final.parent)
        except BaseException as error:
            _put_back(old, final)
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError) and error.errno and not error.filename:  # of a write
                error.filename = str(final)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _real(path: Path) -> Path:
    """What a link leads to, and "." by its name; any other path as it is."""
    real = Path(os.path.realpath(path)) if path.is_symlink() or not path.name else path
    if not real.name:
        raise ValueError(f"{path}: expected something to be made in a folder, found the root")
    return real


def _put_back(old: Path, final: Path) -> None:
    """After an end between the two renames of `new_folder`, which leaves none of that name."""
    if old.exists() and not final.exists():
        old.rename(final)
