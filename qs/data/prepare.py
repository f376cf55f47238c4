"""Documents -> memory-mapped token shards -> resumable batches.

    python -m qs.data tokenizer SOURCE... --out weights/NAME --vocab 4096
    python -m qs.data prepare   SOURCE... --out data/NAME --tokenizer weights/NAME

SOURCE is a file or a folder of .jsonl, .json (both JSON lines), either with .gz, .txt (one document
a file) or .parquet. `qs/data/documents.py` reads them, `qs/data/dataset.py` has the format of the
result.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qs.data.dataset import (
    FORMAT,
    META,
    SPLITS,
    ShardWriter,
    publish,
)
from qs.data.documents import Chunk, Tally, parse, read_chunks, source_files
from qs.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Encoder:
    """What a worker process does with a chunk: records to ids."""

    folder: str
    hash: str
    dtype: str
    fields: tuple[str, ...]
    heldout: float
    seed: int

    def __call__(self, chunk: Chunk) -> tuple[list[tuple[bool, int, np.ndarray]], list[str], int]:
        """(held out?, bytes of text, ids) of each document; complaints; bytes of the file read."""
        tokenizer = _tokenizer(self.folder, self.hash)
        texts, malformed = parse(chunk, self.fields)
        documents = []
        for text in texts:
            raw = text.encode()
            # Drawn from the text, so that copies of a document never lie in both splits.
            draw = hashlib.blake2b(raw, digest_size=8, key=str(self.seed).encode()).digest()
            held = int.from_bytes(draw, "big") < self.heldout * 2**64
            ids = np.array(tokenizer.encode(text, bos=True, eos=True), self.dtype)
            documents.append((held, len(raw), ids))
        return documents, malformed, chunk.read


@functools.cache  # once per process; the hash keeps a retrained model from being taken for the old
def _tokenizer(folder: str, expected: str) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    if tokenizer.hash != expected:
        raise ValueError(f"{folder}: the tokenizer changed during the preparation; start it again")
    return tokenizer


def _watch_parent() -> None:
    """Leave Ctrl-C to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _in_order(work: Callable[[Chunk], Any], chunks: Iterator[Chunk], workers: int) -> Iterator[Any]:
    """`map` over processes, in order, with few chunks in flight: memory stays constant."""
    if workers == 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_watch_parent)
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            "expected all worker processes to live, found one killed (out of memory?); give fewer "
            "--workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizer: str | Path,
    fields: Sequence[str] = ("text",),
    heldout: float = 0.01,
    workers: int | None = None,
    shard_tokens: int = 100_000_000,
    seed: int = 0,
    overwrite: bool = False,
    heldout_sources: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Tokenize sources into a dataset folder; the files do not depend on the number of workers.

    All is written to a folder beside `out`, which takes that name when it is complete.

    Args:
        sources, fields: as `read_documents` takes them.
        out: folder to make.
        tokenizer: folder with `tokenizer.model`.
        heldout: fraction of documents, drawn by their text, that form the split `heldout`; at
            least one unless 0, and not all unless 1, if there are two or more.
        workers: processes that tokenize; None means one for each core.
        shard_tokens: tokens in a shard at most; a longer document has its own shard.
        seed: changes which documents are held out.
        overwrite: replace a dataset that is there, once the new one is complete.
        heldout_sources: the split `heldout`, if given; then `heldout` draws nothing.

    Returns:
        What `meta.json` holds.

    Raises:
        ValueError: if a setting is out of range, a source or the tokenizer cannot be used, `out`
            exists, or more than 1 % of the records are malformed.
    """
    start, out = time.perf_counter(), Path(out)
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not (0 <= heldout <= 1 and workers >= 1 and shard_tokens >= 1 and seed >= 0):
        raise ValueError(
            "expected heldout from 0 to 1, workers and shard tokens 1 or more, seed 0 or more, "
            f"found {heldout}, {workers}, {shard_tokens}, {seed}; change what is out of range"
        )
    if out.exists() and not (overwrite and (out / META).is_file()):
        hint = ", this is no dataset" if overwrite else " or give --overwrite to replace a dataset"
        raise ValueError(f"{out}: expected a new folder, found this one; choose another name{hint}")
    model, files = Tokenizer.load(tokenizer), source_files(sources)
    if model.bos_id is None or model.eos_id is None:
        raise ValueError(
            f"{tokenizer}: expected BOS and EOS ids, found none; use another tokenizer"
        )
    meta = {
        "format": FORMAT,
        "tokenizer": str(tokenizer),
        "tokenizer_hash": model.hash,
        "vocab_size": model.vocab_size,
        "bos_id": model.bos_id,
        "eos_id": model.eos_id,
        "dtype": "uint16" if model.vocab_size <= 65536 else "uint32",
        "sources": [str(source) for source in sources],
        "fields": list(fields),
        "heldout": heldout,
        "heldout_sources": [str(source) for source in heldout_sources],
        "seed": seed,
    }
    jobs = [(files, heldout)]
    if heldout_sources:
        jobs = [(files, 0.0), (source_files(heldout_sources), 1.0)]
    settings = (str(tokenizer), model.hash, meta["dtype"], tuple(fields))
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    writers = [ShardWriter(partial, split, shard_tokens) for split in SPLITS]
    try:
        malformed = 0
        for job, share in jobs:
            malformed += _write(_Encoder(*settings, share, seed), job, writers, workers)
        for writer in writers:
            writer.close()
        meta["malformed"] = malformed
        meta["splits"] = {split: w.summary() for split, w in zip(SPLITS, writers, strict=True)}
        publish(partial, out, meta, overwrite)
    finally:
        for writer in writers:
            writer.abandon()
        shutil.rmtree(partial, ignore_errors=True)
    _report(meta, out, time.perf_counter() - start)
    return meta


def _write(encoder: _Encoder, files: list[Path], writers: list[ShardWriter], workers: int) -> int:
    """Send all documents to the writers, [train, heldout]; the number of malformed records."""
    tally, total = Tally(), sum(file.stat().st_size for file in files)
    last: tuple[bool, int, np.ndarray] | None = None
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="prepare", disable=None) as bar,
        closing(_in_order(encoder, read_chunks(files, encoder.fields), workers)) as results,
    ):
        for documents, malformed, read in results:
            tally.add(len(documents), malformed)
            for document in documents:
                if last:
                    writers[last[0]].add(*last[1:])
                last = document
            bar.update(read)
    tally.check()
    # The last document was kept back to go where there is none, should chance have left a gap.
    held, size, ids = last
    if 0 < encoder.heldout < 1 and tally.good > 1 and not writers[not held].shards:
        held = not held
    writers[held].add(size, ids)
    return tally.malformed


def _report(meta: dict[str, Any], out: Path, seconds: float) -> None:
    splits = meta["splits"].items()
    counts = [f"{name} {s['documents']:,} documents {s['tokens']:,} tokens" for name, s in splits]
    tokens, size = (sum(s[key] for _, s in splits) for key in ("tokens", "bytes"))
    print(f"{', '.join(counts)}; {meta['malformed']:,} malformed records left out")
    rate = f"{tokens / seconds:,.0f} tokens and {size / 1e6 / seconds:.2f} MB of text a second"
    print(f"{size / 1e6:.1f} MB of text in {seconds:.1f} s: {rate}")
    print(f"{out}")
