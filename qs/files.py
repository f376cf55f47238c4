"""What every writer of files shares."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


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


class Lines:
    """A file that grows by whole lines, one JSON object each; what a kill cut short goes."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                path.write_bytes(whole[0] + whole[1])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line that is there.

        Raises:
            ValueError: a line is damaged.
        """
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    found = json.loads(line)
                except ValueError:
                    found = None
                if not isinstance(found, dict):
                    raise ValueError(
                        f"{self.path}, line {number}: expected a JSON object, found {line[:40]!r}; "
                        "remove the file to start it again"
                    )
                yield found

    def keep(self, count: int) -> None:
        """Drop all but the first lines."""
        kept = b"".join(self.path.read_bytes().splitlines(keepends=True)[:count])
        aside = self.path.with_name(self.path.name + ".tmp")
        aside.write_bytes(kept)
        aside.replace(self.path)

    def add(self, some: Sequence[dict[str, Any]]) -> None:
        """Write and flush some lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in some)
        flush(self.path)
