"""Files and folders of documents -> texts, streamed: JSON lines, plain text, parquet."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")  # C4 calls its JSON lines .json.gz
SUFFIXES = (*JSON_LINES, ".txt", ".parquet")


def source_files(sources: Iterable[str | Path]) -> list[Path]:
    """Files to read, in the order given; a folder stands for all it holds, sorted.

    Raises:
        ValueError: if a source does not exist, has an unknown suffix, or is a folder without data.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        held = [source]
        if source.is_dir():
            # Hidden folders hold the download client's own records.
            held = sorted(
                path
                for path in source.rglob("*")
                if path.name.endswith(SUFFIXES)
                and path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(source).parts)
            )
        if not held or not held[0].is_file() or not held[0].name.endswith(SUFFIXES):
            what = "a folder without any" if source.is_dir() else "a file of another kind"
            raise ValueError(
                f"{source}: expected {', '.join(SUFFIXES)}, found "
                f"{what if source.exists() else 'nothing'}; give files or folders of these kinds"
            )
        files += held
    return list(dict.fromkeys(files))


class Record(NamedTuple):
    """One record of a file.

    Attributes:
        content: undecoded line, undecoded text file, or row of a table.
        read: bytes of the file that have been read.
    """

    content: bytes | dict[str, Any]
    read: int


class DocumentReader:
    """Texts of all documents of files and folders, in order, at constant memory.

    A malformed record has no text. The first few are named on stderr; at more than 1 % of the
    records reading ends with an error.

    Args:
        sources: .jsonl, .json (both JSON lines), either with .gz, .txt (one document a file),
            .parquet, or folders of them.
        fields: where a record has its text, the first that fits; `a+b` joins two with a newline.

    Attributes:
        files: what is read.
        read: bytes of the files that have been read.
        documents, malformed: records so far.

    Raises:
        ValueError: if a source cannot be read or more than 1 % of the records are malformed.
    """

    def __init__(self, sources: Iterable[str | Path], fields: Sequence[str] = ("text",)) -> None:
        self.files, self.fields = source_files(sources), fields
        self.read = self.documents = self.malformed = 0

    def __iter__(self) -> Iterator[str]:
        before = 0
        for path in self.files:
            for number, record in enumerate(_records(path, self.fields), 1):
                self.read = before + record.read
                try:
                    text = _text(path, record.content, self.fields)
                except UnicodeDecodeError as error:
                    number += record.content.count(b"\n", 0, error.start)  # a text file has lines
                    self._refuse(f"{path}:{number}: invalid UTF-8 at byte {error.start}")
                except (ValueError, RecursionError) as error:
                    self._refuse(f"{path}:{number}: {error}")
                else:
                    if text is not None:
                        self.documents += 1
                        yield text
            before += path.stat().st_size
        self.read = before
        self._check()
        if not self.documents + self.malformed:
            raise ValueError("expected documents, found only empty sources; give others")

    def _refuse(self, complaint: str) -> None:
        self.malformed += 1
        if self.malformed <= 5:
            tqdm.write(f"malformed: {complaint}", file=sys.stderr)
        if self.documents + self.malformed >= 10_000:  # a long job need not reach its end to fail
            self._check()

    def _check(self) -> None:
        seen = self.documents + self.malformed
        if self.malformed > 0.01 * seen:
            raise ValueError(
                f"expected at most 1 % malformed records, found {self.malformed:,} of {seen:,}; "
                "repair the sources or name the right --field"
            )


def _text(path: Path, content: bytes | dict[str, Any], fields: Sequence[str]) -> str | None:
    """The text of a record; None for an empty line."""
    if isinstance(content, bytes):
        text = content.decode("utf-8-sig")
        if path.name.endswith(".txt"):
            return text
        if not text.strip():
            return None
        content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    for field in fields:
        parts = [content.get(name) for name in field.split("+")]
        if all(isinstance(part, str) for part in parts):
            text = "\n".join(parts)
            text.encode()  # JSON can spell half a surrogate pair, which is no text
            return text
    raise ValueError(f"expected a string in field {' or '.join(fields)}, found none")


def _records(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    if path.name.endswith(".txt"):
        content = path.read_bytes()
        yield Record(content, len(content))
    elif path.name.endswith(".parquet"):
        yield from _rows(path, fields)
    else:
        with ExitStack() as stack:
            file = raw = stack.enter_context(path.open("rb"))
            if path.name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=raw))
            try:
                for line in file:
                    yield Record(line, raw.tell())
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{path}: expected a whole gzip file, found a damaged one ({error}); get it "
                    "again"
                ) from None


def _rows(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: expected pyarrow to read parquet, found none; run pip install -e '.[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = set(table.schema_arrow.names)
            names = sorted({name for field in fields for name in field.split("+")} & columns)
            if not names:
                raise ValueError(
                    f"{path}: expected a column {' or '.join(fields)}, found "
                    f"{', '.join(sorted(columns))}; name one with --field"
                )
            for group in range(table.num_row_groups):
                read = path.stat().st_size * (group + 1) // table.num_row_groups
                for batch in table.iter_batches(256, row_groups=[group], columns=names):
                    for row in batch.to_pylist():
                        yield Record(row, read)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected a parquet file, found: {error}; get it again") from None
