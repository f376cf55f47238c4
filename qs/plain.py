"""Plain files: their content, and digests that tell it from any other."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 18  # bytes of a file that one thread reads and hashes at a time
THREADS = 8  # at most: they outpace disks, and hold little memory


def check_plain(path: Path) -> None:
    """Raise OSError for a pipe or device: to open or read one might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "no plain file", str(path))


def read_plain(path: Path) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: it cannot be read, or is none.
    """
    check_plain(path)
    return path.read_bytes()


def content_digest(content: bytes | np.ndarray) -> str:
    """16 hexadecimal digits that tell content from any that is damaged or of other text."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def digest_as_file(content: bytes) -> str:
    """What `file_digest` says of a file that holds this."""
    blocks = (content[begin : begin + BLOCK] for begin in range(0, len(content), BLOCK))
    return content_digest("".join(map(content_digest, blocks)).encode())


def file_digest(path: Path) -> str:
    """The digest of those of a file's blocks, which several cores read at once.

    A file is read once, as long as it does not change.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    check_plain(path)
    now = path.stat()
    return _file_digest(path, now.st_size, now.st_mtime_ns, now.st_ino)


@functools.lru_cache(maxsize=10_000)
def _file_digest(path: Path, size: int, *state: int) -> str:
    def of_block(begin: int) -> str:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            return content_digest(file.read(BLOCK))

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        return content_digest("".join(threads.map(of_block, range(0, size, BLOCK))).encode())
