"""Which of the given files and folders hold documents; what is passed over, and why."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qs.data.dataset import META, SPLITS, Split
from qs.data.synthetic import RECIPE
from qs.files import DIGESTS
from qs.output import harmless, nearest

# C4 calls its JSON lines .json.gz
LINES = tuple(f"{kind}{packed}" for packed in ("", ".gz", ".zst") for kind in (".jsonl", ".json"))
SUFFIXES = (*LINES, ".txt", ".parquet")
# what data sets, ours too, keep beside their documents, by its name in lower case
ABOUT = re.compile(
    r"(readme|requirements|licen[cs]e|notice|citation|changelog)\.txt|.*_infos?\.json|"
    + "|".join(map(re.escape, (RECIPE, META, DIGESTS)))
)
# a word of a name tells a file's split; all but held out are those of Hugging Face
OF_SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<heldout>held[-_ ]?out|test(?:ing)?"
    r"|val(?:id(?:ation)?)?|dev|eval(?:uation)?))(?![a-z])"
)
OTHER_SPLIT = {  # why a file is not read for a split
    "train": "held out by its name; for --heldout-source",
    "heldout": "not held out by its name",
}
READ = "read already"
HERE = (None, READ)  # reasons of files that are read
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


def find_files(sources: Iterable[str | Path], split: Split = "train") -> Sources:
    """Files to read, in the order given; a folder stands for all it holds, sorted.

    Suffixes count in either case, and links are followed. What can be reached in two ways is read
    once, so no loop of links is without end. In a folder, hidden files and those that tell about a
    data set (ABOUT) are passed over. A folder with files of both splits, by their names, stands for
    those of `split`; files that are of none by their names are trained on.

    Raises:
        ValueError: a source holds no file to read.
    """
    found, seen = Sources({}, {}), set()
    for source in map(Path, sources):
        judged = list(_judged(source, seen))
        if all(reason not in HERE for _, reason in judged):
            if not source.exists():
                near = nearest(source.name, (path.name for path in source.parent.glob("*")))
                raise ValueError(f"{source}: expected a file or folder, found none{near}")
            what = "a folder without any" if source.is_dir() else judged[0][1]
            message = f"{source}: expected {', '.join(SUFFIXES)}, found {what}"
            raise ValueError(f"{message}; give files or folders of these kinds")
        of = {path: _split_of(path.relative_to(source)) for path, why in judged if why in HERE}
        mixed = {*of.values()} >= {*SPLITS}
        for path, reason in judged:
            if mixed and not reason and (of[path] == "heldout") != (split == "heldout"):
                reason = OTHER_SPLIT[split]
                seen.discard(os.path.realpath(path))  # it may be given by itself
            group, key = (found.passed_over, reason) if reason else (found.files, str(source))
            group.setdefault(key, []).append(path)
    return found


def _split_of(path: Path) -> str | None:
    """The split that a file is of by its name, or else by the folder's that is nearest."""
    found = map(OF_SPLIT.search, (name.lower() for name in reversed(path.parts)))
    return next((match.lastgroup for match in found if match), None)


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
