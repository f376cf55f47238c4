"""Digests of what is written, by which damage is found before anything is read from it.

A checkpoint, an export and a new model have `digests.json` beside their files: a digest by name.
Folders without one, such as downloads, are taken as they are. (Token shards have theirs in
`meta.json`, block by block; a run has one of its settings, see `qs.files.read_config`.)
"""

from __future__ import annotations

from pathlib import Path

from qs.files import DIGESTS, ONLY_TRAINING, read_object, write_json
from qs.plain import file_digest


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
