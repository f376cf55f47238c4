"""Files and folders of documents -> texts, streamed: JSON lines, plain text, parquet."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")  # C4 calls its JSON lines .json.gz
SUFFIXES = (*JSON_LINES, ".txt", ".parquet")
CHUNK = 1 << 20  # bytes of records in one chunk, the task of a worker


@dataclass(frozen=True)
class Chunk:
    """Neighbouring records of one file: what a worker is sent."""

    file: str
    first: int  # number of the first record, from 1: the line number
    records: list[Any]  # undecoded lines, one whole text file, or rows of a table
    read: int  # bytes of the file behind them, for the progress bar


def source_files(sources: Iterable[str | Path]) -> list[Path]:
    """Files to read, in the order given; a folder stands for all it holds, sorted.

    Raises:
        ValueError: if a source does not exist, has an unknown suffix, or is a folder without data.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        found = [source]
        if source.is_dir():
            # Hidden folders hold the download client's own records.
            found = sorted(
                path
                for path in source.rglob("*")
                if path.name.endswith(SUFFIXES)
                and path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(source).parts)
            )
        if not found or not found[0].is_file() or not found[0].name.endswith(SUFFIXES):
            what = "a folder without any" if source.is_dir() else "a file of another kind"
            raise ValueError(
                f"{source}: expected {', '.join(SUFFIXES)}, found "
                f"{what if source.exists() else 'nothing'}; give files or folders of these kinds"
            )
        files += found
    return list(dict.fromkeys(files))


def _records(path: Path, fields: Sequence[str]) -> Iterator[tuple[Any, int, int]]:
    """(record, its size, bytes of the file read so far) of one file."""
    total = path.stat().st_size
    if path.name.endswith(".txt"):
        yield path.read_bytes(), total, total
    elif path.name.endswith(".parquet"):
        yield from _rows(path, total, fields)
    else:
        with ExitStack() as stack:
            file = raw = stack.enter_context(path.open("rb"))
            if path.name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=raw))
            try:
                for line in file:
                    yield line, len(line), raw.tell()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{path}: expected a whole gzip file, found a damaged one ({error}); get it "
                    "again"
                ) from None


def _rows(path: Path, total: int, fields: Sequence[str]) -> Iterator[tuple[Any, int, int]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: expected pyarrow to read parquet, found none; run pip install -e '.[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            there = set(table.schema_arrow.names)
            names = sorted({name for field in fields for name in field.split("+")} & there)
            if not names:
                raise ValueError(
                    f"{path}: expected a column {' or '.join(fields)}, found "
                    f"{', '.join(sorted(there))}; name one with --field"
                )
            for group in range(table.num_row_groups):
                done = total * (group + 1) // table.num_row_groups
                for batch in table.iter_batches(256, row_groups=[group], columns=names):
                    for row in batch.to_pylist():
                        yield row, sum(map(len, filter(None, map(str, row.values())))), done
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected a parquet file, found: {error}; get it again") from None


def read_chunks(files: Iterable[Path], fields: Sequence[str]) -> Iterator[Chunk]:
    for path in files:
        first, records, size, done, at = 1, [], 0, 0, 0
        for record, length, at in _records(path, fields):
            records.append(record)
            size += length
            if size >= CHUNK:
                yield Chunk(str(path), first, records, at - done)
                first, records, size, done = first + len(records), [], 0, at
        yield Chunk(str(path), first, records, path.stat().st_size - done)


def parse(chunk: Chunk, fields: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts of a chunk, and `file:line: reason` for each record that has none."""
    texts, malformed = [], []
    for number, record in enumerate(chunk.records, chunk.first):
        try:
            if isinstance(record, bytes):
                text = record.decode("utf-8-sig")
                if chunk.file.endswith(".txt"):
                    texts.append(text)
                    continue
                if not text.strip():
                    continue
                record = json.loads(text)
            texts.append(_pick(record, fields))
        except UnicodeDecodeError as error:
            number += record.count(b"\n", 0, error.start)
            malformed.append(f"{chunk.file}:{number}: invalid UTF-8 at byte {error.start}")
        except (ValueError, RecursionError) as error:
            malformed.append(f"{chunk.file}:{number}: {error}")
    return texts, malformed


def _pick(record: Any, fields: Sequence[str]) -> str:
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    for field in fields:
        parts = [record.get(name) for name in field.split("+")]
        if all(isinstance(part, str) for part in parts):
            text = "\n".join(parts)
            text.encode()  # JSON can spell half a surrogate pair, which is no text
            return text
    raise ValueError(f"expected a string in field {' or '.join(fields)}, found none")


class Tally:
    """Counts records and malformed ones, shows the first few, stops at more than 1 %."""

    def __init__(self) -> None:
        self.good = self.malformed = 0

    def add(self, good: int, malformed: list[str]) -> None:
        for line in malformed[: max(0, 5 - self.malformed)]:
            tqdm.write(f"malformed: {line}", file=sys.stderr)
        self.good += good
        self.malformed += len(malformed)
        if self.good + self.malformed >= 10_000:  # a long job need not reach its end to fail
            self.check()

    def check(self) -> None:
        seen = self.good + self.malformed
        if self.malformed > 0.01 * seen:
            raise ValueError(
                f"expected at most 1 % malformed records, found {self.malformed:,} of {seen:,}; "
                "repair the sources or name the right --field"
            )
        if not seen:
            raise ValueError("expected documents, found only empty sources; give others")


def read_documents(
    sources: Iterable[str | Path], fields: Sequence[str] = ("text",)
) -> Iterator[str]:
    """Texts of all documents of files and folders, in order, at constant memory.

    Args:
        sources: .jsonl, .json (both JSON lines), either with .gz, .txt (one document a file),
            .parquet, or folders of them.
        fields: where a record has its text, the first that fits; `a+b` joins two with a newline.

    Raises:
        ValueError: if a source cannot be read or more than 1 % of the records are malformed.
    """
    tally = Tally()
    for chunk in read_chunks(source_files(sources), fields):
        texts, malformed = parse(chunk, fields)
        tally.add(len(texts), malformed)
        yield from texts
    tally.check()
