"""Digests of what is written, by which damage is found before anything is read from it.

A checkpoint, an export and a new model have `digests.json` beside their files: a digest by name.
Folders without one, such as downloads, are taken as they are. (Token shards have theirs in
`meta.json`, block by block.)
"""

from __future__ import annotations

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qs.files import ONLY_TRAINING, check_plain, read_object, write_json

if TYPE_CHECKING:
    import numpy as np

DIGESTS = "digests.json"
BLOCK = 1 << 18  # bytes of a file that one thread reads and hashes at a time
THREADS = 8  # at most: they outpace disks, and hold little memory


def content_digest(content: bytes | np.ndarray) -> str:
    """16 hexadecimal digits that tell content from any that is damaged or of other text."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


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


def write_digests(folder: Path) -> None:
    """Write `digests.json` for the files that a folder holds.

    Raises:
        OSError: the disk refuses.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != DIGESTS)
    write_json(folder / DIGESTS, {name: file_digest(folder / name) for name in names})


def damage(folder: Path, training: bool = True) -> str:
    """Which file is not what was written into a folder, and why, in words; "" where all are.

    `training`: whether what only training goes on with counts, such as an optimiser's state.
    """
    if not (folder / DIGESTS).is_file():
        return ""
    try:
        written = read_object(folder / DIGESTS)
    except ValueError as error:
        return str(error).partition(";")[0]
    for name, digest in written.items():
        if Path(name).name != name or not isinstance(digest, str):
            return f"{folder / DIGESTS}: expected digests by name of file, found {name[:40]!r}"
        if name.startswith(ONLY_TRAINING) and not training:
            continue
        try:
            if file_digest(folder / name) == digest:
                continue
            found = "other content"
        except OSError as error:
            found = error.strerror
        return f"{folder / name}: expected what {DIGESTS} says was written, found: {found}"
    return ""


def check_digests(folder: Path) -> None:
    """Refuse a folder with a file, of those that a model needs, that is not what was written.

    Raises:
        ValueError: naming the file.
    """
    if found := damage(folder, training=False):
        raise ValueError(
            f"{found}; get or make {folder} again, or remove {DIGESTS} if you changed the file"
        )
