"""Files and folders of documents -> texts, streamed: JSON lines, plain text, parquet."""

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

# C4 calls its JSON lines .json.gz
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".parquet")


def _files(sources: Iterable[str | Path]) -> list[Path]:
    """Files to read, in the order given; a folder stands for all it holds, sorted."""
    files: list[Path] = []
    for source in map(Path, sources):
        held = sorted(source.rglob("*")) if source.is_dir() else [source]
        held = [path for path in held if path.name.endswith(SUFFIXES) and path.is_file()]
        # Hidden folders hold the download client's own records.
        inner = [(path, path.relative_to(source).parts) for path in held]
        held = [path for path, parts in inner if not any(part[0] == "." for part in parts)]
        if not held:
            what = "a folder without any" if source.is_dir() else "a file of another kind"
            message = f"{', '.join(SUFFIXES)}, found {what if source.exists() else 'nothing'}"
            raise ValueError(f"{source}: expected {message}; give files or folders of these kinds")
        files += held
    return list(dict.fromkeys(files))


class DocumentReader:
    """Texts of all documents of files and folders, in order, at constant memory.

    A malformed record has no text; the first few are named on stderr.

    Args:
        sources: .jsonl, .json (both JSON lines), either with .gz, .txt (one document a file),
            .parquet, or folders of them.
        fields: where a record has its text ("text"), the first that fits; `a+b` joins two with a
            newline.

    Attributes: `files`, bytes of them that have been `read`, `documents` and `malformed` so far.

    Raises:
        ValueError: if a source cannot be read (at once where there is none of these kinds), or
            more than 1 % of the records are malformed.
    """

    def __init__(self, sources: Iterable[str | Path], fields: Sequence[str] | None = None) -> None:
        self.files, self.fields = _files(sources), fields or ["text"]
        self.read = self.documents = self.malformed = 0

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            before = self.read
            for number, record in enumerate(self._records(path), 1):
                try:
                    text = self._text(record, path)
                except UnicodeDecodeError as error:
                    number += record.count(b"\n", 0, error.start)  # a text file has many lines
                    self._leave_out(f"{path}:{number}: invalid UTF-8 at byte {error.start}")
                except (ValueError, RecursionError) as error:
                    self._leave_out(f"{path}:{number}: {error}")
                else:
                    if text is not None:
                        self.documents += 1
                        yield text
            self.read = before + path.stat().st_size
        self._check()
        if not self.documents + self.malformed:
            raise ValueError("expected documents, found only empty sources; give others")

    def _records(self, path: Path) -> Iterator[bytes | dict[str, Any]]:
        """Undecoded lines, the whole of an undecoded text file, or rows of a table."""
        if path.name.endswith(".txt"):
            yield path.read_bytes()
        elif path.name.endswith(".parquet"):
            yield from _rows(path, self.fields)
        else:
            before = self.read
            with path.open("rb") as raw:
                lines = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
                try:
                    for line in lines:
                        self.read = before + raw.tell()
                        yield line
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    damage = f"expected a whole gzip file, found a damaged one ({error})"
                    raise ValueError(f"{path}: {damage}; get it again") from None

    def _text(self, record: bytes | dict[str, Any], path: Path) -> str | None:
        """The text of a record; None for an empty line."""
        if isinstance(record, bytes):
            text = record.decode("utf-8-sig")
            if path.name.endswith(".txt"):
                return text
            if not text.strip():
                return None
            record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        for field in self.fields:
            parts = [record.get(name) for name in field.split("+")]
            if all(isinstance(part, str) for part in parts):
                text = "\n".join(parts)
                text.encode()  # JSON can spell half a surrogate pair, which is no text
                return text
        raise ValueError(f"expected a string in field {' or '.join(self.fields)}, found none")

    def _leave_out(self, complaint: str) -> None:
        self.malformed += 1
        if self.malformed <= 5:
            tqdm.write(f"malformed: {complaint}", file=sys.stderr)
        if self.documents + self.malformed >= 10_000:  # a long job need not reach its end to fail
            self._check()

    def _check(self) -> None:
        seen = self.documents + self.malformed
        if self.malformed > 0.01 * seen:
            message = f"at most 1 % malformed records, found {self.malformed:,} of {seen:,}"
            advice = "repair the sources or name the right --field"
            raise ValueError(f"expected {message}; {advice}")


def _rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        message = "expected pyarrow to read parquet, found none; run pip install -e '.[parquet]'"
        raise ValueError(f"{path}: {message}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = set(table.schema_arrow.names)
            names = sorted({name for field in fields for name in field.split("+")} & columns)
            if not names:
                message = f"column {' or '.join(fields)}, found {', '.join(sorted(columns))}"
                raise ValueError(f"{path}: expected a {message}; name one with --field")
            for batch in table.iter_batches(256, columns=names):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected a parquet file, found: {error}; get it again") from None
