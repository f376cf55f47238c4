"""Documents -> a dataset folder of token shards, tokenized by several processes.

`qs/data/documents.py` reads the sources, `qs/data/dataset.py` has the format of the result. The
files do not depend on the number of processes.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from qs.atomic import new_folder
from qs.data.dataset import FORMAT, META, SPLITS, Shard, Split, split_by_hash
from qs.data.documents import MAX_DOCUMENT, DocumentReader, left_out
from qs.data.sources import NAMED
from qs.data.synthetic import RECIPE
from qs.files import write_json
from qs.interrupts import kept_from_children
from qs.model.folders import resolve
from qs.model.tokenizer import Tokenizer

CHUNK = 1 << 20  # characters of text in the task of a worker
# files of a dataset, and the recipe of its text, which may lie beside them
OWN = re.compile(rf"{META}|{RECIPE}|({'|'.join(SPLITS)})-\d+\.(bin|idx)")


class EncodedDocument(NamedTuple):
    """A document as a worker gives it back."""

    split: Split
    size: int  # bytes of its text
    ids: np.ndarray  # in the dtype of the dataset
    unknown: int = 0  # of them, tokens that stand for characters which the tokenizer does not know


class ShardWriter:
    """Writes the shards of one split, of at most `shard_tokens` each, into a folder.

    A document is never divided between two; a longer one has its own shard.
    """

    def __init__(self, folder: Path, split: Split, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards: list[Shard] = []
        self.size = 0  # bytes of text
        self.unknown = 0  # tokens that are
        self._files = ExitStack()

    def add(self, document: EncodedDocument) -> None:
        """Append a document."""
        length = len(document.ids)
        if not self.shards or self.shards[-1].tokens + length > self.shard_tokens:
            self._finish()
            self.shards.append(Shard(f"{self.split}-{len(self.shards):05d}"))
            path = self.folder / self.shards[-1].name
            self._ids = self._files.enter_context(path.with_suffix(".bin").open("wb"))
            self._offsets = self._files.enter_context(path.with_suffix(".idx").open("wb"))
            self._offsets.write(np.uint64(0).tobytes())
        shard = self.shards[-1]
        shard.documents += 1
        shard.tokens += length
        self.size += document.size
        self.unknown += document.unknown
        self._ids.write(document.ids.tobytes())
        self._offsets.write(np.uint64(shard.tokens).tobytes())

    def close(self) -> None:
        """Close the open shard."""
        self._files.close()

    def _finish(self) -> None:
        self.close()
        if self.shards:
            self.shards[-1].add_digests(self.folder)

    def summary(self) -> dict[str, Any]:
        """The split's part of `meta.json`; what was added is complete."""
        self._finish()
        return {
            "documents": sum(shard.documents for shard in self.shards),
            "tokens": sum(shard.tokens for shard in self.shards),
            "bytes": self.size,
            "shards": [asdict(shard) for shard in self.shards],
        }


def prepare_dataset(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizer: str | Path,
    fields: Sequence[str] | None = None,
    heldout: float = 0.01,
    workers: int | None = None,
    shard_tokens: int = 100_000_000,
    seed: int = 0,
    overwrite: bool = False,
    heldout_sources: Sequence[str | Path] = (),
    max_document: int = MAX_DOCUMENT,
) -> dict[str, Any]:
    """Tokenize sources into a dataset folder, which appears whole or not at all.

    Args:
        sources, fields, max_document: as `DocumentReader` takes them.
        out, tokenizer: folder to make; folder with a tokenizer, a run, or a name in weights/.
        heldout: fraction of documents, drawn by their text and `seed`, that form the split
            `heldout`; at least one unless 0, and not all unless 1, if there are two or more.
        workers: processes that tokenize; None means one for each core.
        shard_tokens: tokens in a shard at most; a longer document has its own shard.
        overwrite: replace a dataset that is there, and nothing else, once the new one is complete.
        heldout_sources: the split `heldout`, if given; then `heldout` draws nothing.

    Returns:
        What `meta.json` holds.

    Raises:
        ValueError: if a setting is out of range, a source or the tokenizer cannot be used, `out`
            exists, more than 1 % of the records are malformed, or all are too long.
    """
    start, out = time.perf_counter(), Path(out)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not (0 <= heldout <= 1 and workers >= 1 and shard_tokens >= 1 and seed >= 0):
        raise ValueError(
            "expected heldout from 0 to 1, workers and shard tokens 1 or more, seed 0 or more, "
            f"found {heldout}, {workers}, {shard_tokens}, {seed}; change what is out of range"
        )
    tokenizer = resolve(tokenizer)
    model = Tokenizer(tokenizer)
    if changes := model.changes():
        print(f"warning: {changes}", file=sys.stderr)
    jobs = [(DocumentReader(sources, fields, max_document), 0.0 if heldout_sources else heldout)]
    if heldout_sources:
        jobs.append((DocumentReader(heldout_sources, fields, max_document, "heldout"), 1.0))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": str(tokenizer),
        "tokenizer_hash": model.hash,
        "vocab_size": model.vocab_size,
        "bos_id": model.bos_id,
        "eos_id": model.eos_id,
        "dtype": "uint16" if model.vocab_size <= 65536 else "uint32",
        "sources": list(map(str, sources)),
        "fields": list(jobs[0][0].fields),
        "heldout": None if heldout_sources else heldout,
        "heldout_sources": list(map(str, heldout_sources)),
        "seed": seed,
    }
    ours = (out / META).is_file()  # any other folder is refused by new_folder
    others = [path.name for path in out.iterdir() if not OWN.fullmatch(path.name)] if ours else []
    if overwrite and others:
        raise ValueError(
            f"{out}: expected a dataset alone to replace, found {min(others)} beside it; move "
            "what is not of the dataset elsewhere, or choose another name"
        )
    way = "replace it with --overwrite" if ours else "remove it"
    with new_folder(out, overwrite and ours, way) as folder, ExitStack() as shards:
        writers = {split: ShardWriter(folder, split, shard_tokens) for split in SPLITS}
        for writer in writers.values():
            shards.enter_context(closing(writer))
        for reader, share in jobs:
            encode = partial(_encode, str(tokenizer), model.hash, meta["dtype"], share, seed)
            _write(reader, encode, workers, writers, both=0 < share < 1)
        readers = [reader for reader, _ in jobs]
        meta["malformed"] = sum(reader.malformed for reader in readers)
        meta["too_long"] = sum(reader.too_long for reader in readers)
        meta["unknown"] = sum(writer.unknown for writer in writers.values())
        meta["splits"] = {split: writer.summary() for split, writer in writers.items()}
        write_json(folder / META, meta)
    seconds, tokens, size = time.perf_counter() - start, 0, 0
    for split, part in meta["splits"].items():
        print(f"{split:8} {part['documents']:,} documents, {part['tokens']:,} tokens")
        tokens, size = tokens + part["tokens"], size + part["bytes"]
    sizes = {split: part["tokens"] for split, part in meta["splits"].items()}
    if not heldout_sources and heldout and not sizes["heldout"]:
        print("warning: nothing is held out, of one document: give --heldout-source to evaluate on")
    elif not heldout_sources and heldout < 0.5 and sizes["heldout"] > sizes["train"]:
        print(
            "warning: more is held out than trained on, of so few documents: split them into more"
        )
    if meta["unknown"]:
        share = f"{meta['unknown']:,} tokens ({meta['unknown'] / tokens:.1%}) are unknown"
        print(f"{share}: {tokenizer} has none for some characters of this text")
    rate = f"{tokens / seconds:,.0f} tokens and {size / 1e6 / seconds:.2f} MB of text a second"
    print(f"{left_out(readers)}; {rate}")
    for reader in readers:
        print(reader.sources.report())
    trained, held = ({path.resolve() for path in reader.files} for reader, _ in (jobs[0], jobs[-1]))
    if heldout_sources and trained & held:
        files = ", ".join(map(str, sorted(trained & held)[:NAMED]))
        print(f"warning: {len(trained & held):,} file(s) both trained on and held out: {files}")
    print(out)
    return meta


def _write(
    reader: DocumentReader,
    encode: Callable[[list[str]], list[EncodedDocument]],
    workers: int,
    writers: dict[Split, ShardWriter],
    both: bool,
) -> None:
    """Send all documents to the writers; if `both`, each gets one of two or more."""
    total = sum(path.stat().st_size for path in reader.files)
    last: EncodedDocument | None = None
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="prepare", disable=None) as bar,
        closing(_in_order(encode, _chunks(reader), workers)) as results,
    ):
        for documents in results:
            for document in documents:
                if last:
                    writers[last.split].add(last)
                last = document
            bar.update(reader.read - bar.n)
    # The last document was kept back to go where there is none, should chance have left a gap.
    assert last is not None, "the reader refuses empty sources"
    other: Split = "train" if last.split == "heldout" else "heldout"
    if both and reader.documents > 1 and not writers[other].shards:
        last = last._replace(split=other)
    writers[last.split].add(last)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_order(
    work: Callable[[list[str]], Any], chunks: Iterator[list[str]], workers: int
) -> Iterator[Any]:
    """`map` over processes, in order, with few chunks in flight: memory stays constant."""
    if workers == 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting = deque()
    try:
        for chunk in chunks:
            with kept_from_children():  # the parent answers Ctrl-C, and tidies
                waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        found = "found one killed (out of memory?); give fewer --workers"
        raise ValueError(f"expected all worker processes to live, {found}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be kept from this process
    # a worker waits for work forever: it has to end with a parent that was killed
    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode(
    folder: str, tokenizer_hash: str, dtype: str, heldout: float, seed: int, texts: Sequence[str]
) -> list[EncodedDocument]:
    """What a worker does: texts to ids between BOS and EOS, each with the split it is drawn for."""
    tokenizer, key = _tokenizer(folder, tokenizer_hash), str(seed).encode()
    documents = []
    for text in texts:
        raw = text.encode()
        ids = np.array(tokenizer.encode(text, bos=True, eos=True), dtype)
        unknown = int((ids == tokenizer.unknown_id).sum())
        split = split_by_hash(raw, heldout, key)
        documents.append(EncodedDocument(split, len(raw), ids, unknown))
    return documents


@cache  # once per process; the hash keeps a retrained model from being taken for the old
def _tokenizer(folder: str, expected_hash: str) -> Tokenizer:
    tokenizer = Tokenizer(folder)
    if tokenizer.hash != expected_hash:
        raise ValueError(f"{folder}: the tokenizer changed during the preparation; start it again")
    return tokenizer
