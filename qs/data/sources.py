"""Which of the given files and folders hold documents; what is passed over, and why."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qs.output import harmless, nearest

# C4 calls its JSON lines .json.gz
LINES = tuple(f"{kind}{packed}" for packed in ("", ".gz", ".zst") for kind in (".jsonl", ".json"))
SUFFIXES = (*LINES, ".txt", ".parquet")
# what data sets keep beside their documents, by its name in lower case
ABOUT = re.compile(
    r"(readme|requirements|licen[cs]e|notice|citation|changelog)\.txt|.*_infos?\.json"
)
READ = "read already"
NAMED = 9  # sources, or files passed over for one reason


class Sources(NamedTuple):
    """Files to read, by the source that holds them, and files passed over, by the reason."""

    files: dict[str, list[Path]]
    passed_over: dict[str, list[Path]]

    def report(self) -> str:
        """How many files each source gave, and what was passed over: a line each."""
        lines = [f"{name}: {len(files):,} file(s) read" for name, files in self.files.items()]
        if more := lines[NAMED:]:
            lines[NAMED:] = [f"and {len(more):,} more sources"]
        for reason, files in self.passed_over.items():
            names = ", ".join(map(str, files[:NAMED])) + (", ..." if len(files) > NAMED else "")
            lines.append(f"{len(files):,} passed over ({reason}): {names}")
        return harmless("\n".join(lines))  # as others named their files


def find_files(sources: Iterable[str | Path]) -> Sources:
    """Files to read, in the order given; a folder stands for all it holds, sorted.

    Suffixes count in either case, and links are followed. What can be reached in two ways is read
    once, so no loop of links is without end. In a folder, hidden files and those that tell about a
    data set (ABOUT) are passed over.

    Raises:
        ValueError: a source holds no file to read.
    """
    found, seen = Sources({}, {}), set()
    for source in map(Path, sources):
        judged = list(_judged(source, seen))
        if all(reason not in (None, READ) for _, reason in judged):
            if not source.exists():
                near = nearest(source.name, (path.name for path in source.parent.glob("*")))
                raise ValueError(f"{source}: expected a file or folder, found none{near}")
            what = "a folder without any" if source.is_dir() else judged[0][1]
            message = f"{source}: expected {', '.join(SUFFIXES)}, found {what}"
            raise ValueError(f"{message}; give files or folders of these kinds")
        for path, reason in judged:
            group, key = (found.passed_over, reason) if reason else (found.files, str(source))
            group.setdefault(key, []).append(path)
    return found


def _judged(path: Path, seen: set[str], given: bool = True) -> Iterator[tuple[Path, str | None]]:
    """Files at and below a path, each with the reason why it is not read, or None."""
    real, name, reason = os.path.realpath(path), path.name.lower(), None
    if name.startswith(".") and not given:  # a download client's own records
        reason = "hidden"
    elif not path.exists():
        reason = "nothing" if given else "a link to nothing"
    elif real in seen:
        reason = READ
    elif path.is_dir():
        seen.add(real)
        for inner in sorted(path.iterdir()):
            yield from _judged(inner, seen, given=False)
        return
    elif not path.is_file():
        reason = "no plain file"
    elif not name.endswith(SUFFIXES):
        reason = "of another kind"
    elif ABOUT.fullmatch(name) and not given:
        reason = "about the data, by its name"
    else:
        seen.add(real)
    yield path, reason
