"""Documents -> memory-mapped token shards -> resumable batches.

    python -m qs.data tokenizer SOURCE... --out weights/NAME --vocab 4096
    python -m qs.data prepare   SOURCE... --out data/NAME --tokenizer weights/NAME

SOURCE is a file or a folder of .jsonl, .json (both JSON lines), either with .gz, .txt (one document
a file) or .parquet. `qs/documents.py` reads them, `qs/shards.py` has the format of the result.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
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

from qs.documents import Chunk, Tally, parse, read_chunks, read_documents, source_files
from qs.shards import (
    FORMAT,
    META,
    SPLITS,
    Batch,
    Position,
    ShardWriter,
    TokenDataset,
    Windows,
    publish,
    sequential,
)
from qs.tokenizer import Tokenizer, train_tokenizer

# Training and evaluation need this module alone.
__all__ = ["Batch", "Position", "TokenDataset", "Windows", "prepare", "resolve", "sequential"]

DOWNLOADS = {
    "owm": ("open-web-math/open-web-math", "data/*"),
    "c4": ("allenai/c4", "en/c4-train.0000*.json.gz"),
}


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


def resolve(name_or_folder: str, root: str = "data") -> Path:
    """The dataset folder that `--data` means: a folder as it is, else `root/NAME`.

    Raises:
        ValueError: if there is no dataset; the message ends with the commands that make it.
    """
    for folder in (Path(name_or_folder), Path(root) / name_or_folder):
        if (folder / META).is_file():
            return folder
    name = Path(name_or_folder).name
    raw, lines = "SOURCE", []
    if name in DOWNLOADS:
        repository, files = DOWNLOADS[name]
        raw = f"{root}/raw/{name}"
        lines = [
            f"hf download {repository} --repo-type dataset --include '{files}' --local-dir {raw}"
        ]
    lines.append(
        f"python -m qs.data prepare {raw} --out {root}/{name} --tokenizer weights/mistral-7b"
    )
    raise ValueError(
        f"--data {name_or_folder}: expected a prepared dataset, found no {META} in "
        f"{name_or_folder} or {root}/{name_or_folder}; run\n" + "\n".join(lines)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qs.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("prepare", "tokenize documents"), ("tokenizer", "train a tokenizer")):
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument("sources", nargs="+", metavar="SOURCE")
        command.add_argument("--out", required=True, help="folder to make")
        command.add_argument(
            "--field",
            action="append",
            help="field with the text (default: text); a+b joins two; repeat for alternatives",
        )
        if name == "tokenizer":
            command.add_argument("--vocab", type=int, default=4096, help="number of tokens")
            command.add_argument(
                "--symbol",
                action="append",
                default=[],
                metavar="TEXT",
                help="always a token of its own; may be repeated",
            )
            continue
        command.add_argument("--tokenizer", required=True, help="folder with tokenizer.model")
        command.add_argument("--heldout", type=float, default=0.01, help="fraction held out")
        command.add_argument(
            "--heldout-source",
            action="append",
            default=[],
            metavar="SOURCE",
            help="held out instead of a fraction; may be repeated",
        )
        command.add_argument("--workers", type=int, help="processes (default: one a core)")
        command.add_argument("--shard-tokens", type=int, default=100_000_000, help="at most")
        command.add_argument("--seed", type=int, default=0, help="of the held-out draw")
        command.add_argument("--overwrite", action="store_true", help="replace a dataset")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status: 0, 2 for an error told in one line, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    fields = args.field or ["text"]
    try:
        if args.command == "tokenizer":
            texts = read_documents(args.sources, fields)
            model = train_tokenizer(texts, args.out, args.vocab, symbols=args.symbol)
            print(f"{model.vocab_size:,} tokens\n{args.out}")
        else:
            prepare(
                args.sources,
                args.out,
                args.tokenizer,
                fields,
                args.heldout,
                args.workers,
                args.shard_tokens,
                args.seed,
                args.overwrite,
                args.heldout_source,
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # Terminated like interrupted: what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
