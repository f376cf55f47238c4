"""Files and folders of documents -> texts, streamed: JSON lines, plain text, parquet."""

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from qs.data.dataset import Split
from qs.data.sources import NAMED, find_files
from qs.files import parse_json
from qs.output import harmless

MAX_DOCUMENT = 10**8  # bytes


class DocumentReader:
    """Texts of all documents of files and folders, in order, at constant memory.

    A malformed record has no text; one that is too long is left out. Of each kind the first few
    are named on stderr.

    Args:
        sources: .jsonl, .json (both JSON lines), either with .gz or .zst, .txt (one document a
            file), .parquet, or folders of them, as `find_files` reads them.
        fields: where a record has its text ("text"), the first that fits; `a+b` joins two with a
            newline.
        max_document: bytes of a record as it is read: a line with all its fields, a text file, the
            text of a table's row. A longer one is too long, and never held whole, but of a table.
        split: which files are read of a folder that has some of both.

    Attributes: `sources`, their `files`, bytes of them that have been `read`, `documents`,
        `malformed` and `too_long` so far, and of the documents those that are `blank`.

    Raises:
        ValueError: if a source cannot be read (at once where there is none of these kinds), more
            than 1 % of the records that are not too long are malformed, no text is left, or a
            setting is out of range.
    """

    def __init__(
        self,
        sources: Iterable[str | Path],
        fields: Sequence[str] | None = None,
        max_document: int = MAX_DOCUMENT,
        split: Split = "train",
    ) -> None:
        if not 1 <= max_document <= 2**40:
            raise ValueError(f"--max-document: expected 1 to 2^40 bytes, found {max_document}")
        self.sources, self.fields = find_files(sources, split), fields or ["text"]
        self.files = [path for files in self.sources.files.values() for path in files]
        self.max_document = max_document
        self.read = self.documents = self.malformed = self.too_long = self.blank = 0

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            before = self.read
            for number, record in enumerate(self._records(path), 1):
                try:
                    text = self._text(record, path)
                except UnicodeDecodeError as error:
                    if isinstance(record, bytes):  # a text file has many lines
                        number += record.count(b"\n", 0, error.start)
                    self._refuse(f"{path}:{number}: invalid UTF-8 at byte {error.start}")
                except _TooLongError:
                    self.too_long += 1
                    limit = f"longer than --max-document {self.max_document:,} bytes"
                    _name(self.too_long, f"left out: {path}:{number}: {limit}")
                except ValueError as error:
                    self._refuse(f"{path}:{number}: {error}")
                else:
                    if text is not None:
                        self.documents += 1
                        self.blank += not text.strip()
                        yield text
            self.read = before + path.stat().st_size
        self._check()
        if self.documents == self.blank and self.too_long:
            found = f"found {self.too_long:,} longer and no text in others; raise --max-document"
            raise ValueError(f"expected documents of {self.max_document:,} bytes at most, {found}")
        if self.documents == self.blank:
            sources = ", ".join(sorted(self.sources.files)[:NAMED])
            raise ValueError(f"expected documents, found no text in {sources}; give others")

    def _records(self, path: Path) -> Iterator[bytes | dict[str, Any]]:
        """Undecoded lines, the whole of an undecoded text file, or rows of a table.

        Of what is longer than a document may be there is one byte too many, and no more.
        """
        name = path.name.lower()
        if name.endswith(".parquet"):
            yield from _rows(path, self.fields)
            return
        before = self.read
        with path.open("rb") as raw:
            if name.endswith(".txt"):
                yield raw.read(self.max_document + 1)
                return
            lines, begun = _unpacked(raw, path), False
            try:
                while line := lines.readline(self.max_document + 1):
                    self.read = before + raw.tell()
                    if not begun:
                        line = line.removeprefix(codecs.BOM_UTF8)
                        if line.lstrip()[:1] == b"[":
                            found = "expected JSON lines, found a JSON array"
                            raise ValueError(f"{path}: {found}; put each of its objects on a line")
                        begun = bool(line.strip())
                    yield line
                    if len(line) > self.max_document:
                        while line and not line.endswith(b"\n"):
                            line = lines.readline(1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                damage = f"expected a whole packed file, found a damaged one ({error})"
                raise ValueError(f"{path}: {damage}; get it again") from None

    def _text(self, record: bytes | dict[str, Any], path: Path) -> str | None:
        """The text of a record; None for an empty line."""
        if isinstance(record, bytes):
            if path.name.lower().endswith(".txt"):
                self._check_size(len(record))
                return record.decode("utf-8-sig")
            self._check_size(len(record) - record.endswith(b"\n"))
            if not record.strip():
                return None
            record = parse_json(record)
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        for field in self.fields:
            parts = [record.get(name) for name in field.split("+")]
            parts = [part.decode() if isinstance(part, bytes) else part for part in parts]
            if all(isinstance(part, str) for part in parts):
                text = "\n".join(parts)
                self._check_size(len(text.encode()))  # half a surrogate pair is no text: ValueError
                return text
        raise ValueError(f"expected a string in field {' or '.join(self.fields)}, found none")

    def _check_size(self, size: int) -> None:
        if size > self.max_document:
            raise _TooLongError

    def _refuse(self, complaint: str) -> None:
        self.malformed += 1
        _name(self.malformed, f"malformed: {complaint}")
        if self.documents + self.malformed >= 10_000:  # a long job need not reach its end to fail
            self._check()

    def _check(self) -> None:
        seen = self.documents + self.malformed
        if self.malformed > 0.01 * seen:
            message = f"at most 1 % malformed records, found {self.malformed:,} of {seen:,}"
            advice = "repair the sources or name the right --field"
            raise ValueError(f"expected {message}; {advice}")


class _TooLongError(Exception):
    """A record is longer than one may be."""


def _name(number: int, what: str) -> None:
    """Say on stderr what has no text, if it is one of the first few of its kind."""
    if number <= 5:
        tqdm.write(harmless(what), file=sys.stderr)


def left_out(readers: Sequence[DocumentReader]) -> str:
    """How many records gave readers no document, in words."""
    malformed = sum(reader.malformed for reader in readers)
    too_long = sum(reader.too_long for reader in readers)
    longer = f", {too_long:,} longer than --max-document" if too_long else ""
    return f"{malformed:,} malformed records{longer} left out"


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO:
    """A file's bytes without gzip or zstandard."""
    name = path.name.lower()
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(raw, path))
    return gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw


class _Zstandard(io.RawIOBase):
    """The frames of a file, one after the other.

    The package's own reader takes a file that was cut short for a whole one.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            message = "expected zstandard to read .zst, found none; run pip install -e '.[zstd]'"
            raise ValueError(f"{path}: {message}") from None
        self._raw, self._damage = raw, zstandard.ZstdError
        # as much as `zstd --long=31` asks for
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame, self._packed, self._ready = None, b"", io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not (size := self._ready.readinto(buffer)):
            packed = self._packed or self._raw.read(1 << 10)  # may be 2^15 times that unpacked
            if not packed:
                if self._frame:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._ready = io.BytesIO(self._frame.decompress(packed))
            except self._damage as error:
                raise EOFError(error) from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return size


def _rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a table, text undecoded: one that is no UTF-8 is only its own row's matter."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        message = "expected pyarrow to read parquet, found none; run pip install -e '.[parquet]'"
        raise ValueError(f"{path}: {message}") from None

    def undecoded(column: pyarrow.Array) -> list[Any]:
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if str(column.type) in ("string", "large_string", "string_view"):
            column = column.cast(pyarrow.large_binary())
        return column.to_pylist()

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = set(table.schema_arrow.names)
            names = sorted({name for field in fields for name in field.split("+")} & columns)
            if not names:
                message = f"column {' or '.join(fields)}, found {', '.join(sorted(columns))}"
                raise ValueError(f"{path}: expected a {message}; name one with --field")
            for batch in table.iter_batches(256, columns=names):
                row += len(batch)
                values = zip(*map(undecoded, batch.columns), strict=True)
                yield from (dict(zip(names, each, strict=True)) for each in values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"expected a parquet file, found after row {row:,}: {error}; get it again"
        raise ValueError(f"{path}: {message}") from None
