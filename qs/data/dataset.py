"""Token shards on disk: written, read back memory-mapped, cut into resumable batches.

For each split (`train`, `heldout`) a dataset folder holds shards of whole documents:
`train-00000.bin`, token ids (BOS, text, EOS, BOS, ...) as little-endian uint16 or uint32, and
`train-00000.idx`, uint64 offsets of the documents in it, the end included. `meta.json` says what
should be there; a folder without it is no dataset.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qs.files import flush

if TYPE_CHECKING:  # torch is imported where a batch is made: tokenizing workers start without it
    from torch import Tensor


FORMAT = 1
META = "meta.json"
DTYPES = {"uint16": np.uint16, "uint32": np.uint32}
SPLITS = ("train", "heldout")
Position = tuple[int, int]  # (epoch, index of the next window in that epoch's order)


class ShardWriter:
    """Writes the shards of one split; a document is never divided between two."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        """Prepare to write.

        Args:
            folder: where; it must exist.
            split: first part of the file names.
            shard_tokens: tokens in a shard at most; a longer document has its own shard.
        """
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.bytes = 0
        self.shards: list[dict[str, Any]] = []
        self._files: tuple[Any, ...] = ()

    def add(self, size: int, ids: np.ndarray) -> None:
        """Append a document: its ids in the dtype of the dataset, and the bytes of its text."""
        if not self.shards or self.shards[-1]["tokens"] + len(ids) > self.shard_tokens:
            self.close()
            name = f"{self.split}-{len(self.shards):05d}"
            self.shards.append({"name": name, "documents": 0, "tokens": 0})
            self._files = tuple((self.folder / (name + end)).open("wb") for end in (".bin", ".idx"))
            self._files[1].write(np.uint64(0).tobytes())
        shard = self.shards[-1]
        shard["documents"] += 1
        shard["tokens"] += len(ids)
        self.bytes += size
        self._files[0].write(ids.tobytes())
        self._files[1].write(np.uint64(shard["tokens"]).tobytes())

    def close(self) -> None:
        """Flush the open shard to disk."""
        for file in self._files:
            with file:
                file.flush()
                os.fsync(file.fileno())
        self._files = ()

    def abandon(self) -> None:
        """Close without caring for what was written; never fails."""
        for file in self._files:
            with suppress(OSError):
                file.close()
        self._files = ()

    def summary(self) -> dict[str, Any]:
        """The split's part of `meta.json`."""
        total = {key: sum(s[key] for s in self.shards) for key in ("documents", "tokens")}
        return {**total, "bytes": self.bytes, "shards": self.shards}


def publish(partial: Path, out: Path, meta: dict[str, Any], overwrite: bool) -> None:
    """Write `meta.json`, last, and give a complete folder its name.

    Args:
        partial: folder with all shards, beside `out`.
        out: name to give; a dataset there is replaced if `overwrite`, else OSError is raised.
        meta: what `meta.json` will hold.
        overwrite: see `out`.
    """
    with (partial / META).open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    flush(partial)
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if overwrite and out.exists():
        out.rename(old)
    partial.rename(out)
    flush(out.parent)
    shutil.rmtree(old, ignore_errors=True)


class Identified(Protocol):
    """What a dataset must know of a tokenizer."""

    hash: str
    vocab_size: int


class TokenDataset:
    """One split of a dataset folder, memory-mapped: a stream of tokens cut into documents.

    Attributes: `meta` (what `meta.json` holds), `folder`, `split`, `tokens`, `documents` (counts).
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        """Map the shards of a split and check their sizes.

        Raises:
            ValueError: if the folder is no dataset, the split is unknown, `meta.json` is damaged
                or a shard is missing or does not have the size that `meta.json` says.
        """
        self.folder, self.split = Path(folder), split
        if split not in SPLITS:
            raise ValueError(f"expected a split of {', '.join(SPLITS)}, found {split!r}; use one")
        self.meta: dict[str, Any] = _read_meta(self.folder)
        try:
            part, dtype = self.meta["splits"][split], DTYPES[self.meta["dtype"]]
            shards = [
                (str(s["name"]), int(s["tokens"]), int(s["documents"])) for s in part["shards"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.folder, f"no usable entry {error}") from None
        self._tokens = [self._map(name + ".bin", dtype, tokens) for name, tokens, _ in shards]
        self._offsets = [self._map(name + ".idx", np.uint64, n + 1) for name, _, n in shards]
        for (name, tokens, _), offsets in zip(shards, self._offsets, strict=True):
            if offsets[0] != 0 or offsets[-1] != tokens:
                raise _damaged(self.folder, f"{name}.idx that does not fit {name}.bin")
        # Where each shard begins in the stream, in tokens and in documents; the end included.
        self._starts = np.cumsum([0, *(tokens for _, tokens, _ in shards)])
        self._firsts = np.cumsum([0, *(documents for _, _, documents in shards)])
        self.tokens, self.documents = int(self._starts[-1]), int(self._firsts[-1])

    def _map(self, name: str, dtype: Any, count: int) -> np.ndarray:
        path = self.folder / name
        expected = count * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.is_file() else -1
        if found != expected:
            raise ValueError(
                f"{path}: expected {expected:,} bytes, found "
                f"{'no file' if found < 0 else f'{found:,}'}; prepare the dataset again"
            )
        return np.memmap(path, dtype, "r")

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """A piece of the stream, over the borders of shards.

        Args:
            start, stop: positions in the stream, 0 <= start < stop <= tokens.

        Returns:
            tokens: (stop - start,) int64 ids.
            documents: (stop - start,) int64 number of each token's document in the split.
        """
        assert 0 <= start < stop <= self.tokens
        tokens, documents = [], []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while shard < len(self._tokens) and self._starts[shard] < stop:
            begin = max(start - int(self._starts[shard]), 0)
            piece = self._tokens[shard][begin : stop - int(self._starts[shard])]
            # Keys of the offsets' own dtype: any other makes numpy copy the whole mapped file.
            at = np.arange(begin, begin + len(piece), dtype=np.uint64)
            number = np.searchsorted(self._offsets[shard], at, side="right") - 1
            tokens.append(piece.astype(np.int64))
            documents.append(number + self._firsts[shard])
            shard += 1
        return np.concatenate(tokens), np.concatenate(documents)

    def check_tokenizer(self, tokenizer: Identified) -> None:
        """Refuse a tokenizer that is not the one that made the shards.

        Raises:
            ValueError: if the hash of its model file differs from the one in `meta.json`.
        """
        expected = self.meta.get("tokenizer_hash")
        if tokenizer.hash != expected:
            raise ValueError(
                f"{self.folder}: expected the tokenizer that made the shards "
                f"({self.meta.get('tokenizer')}, {self.meta.get('vocab_size')} tokens, sha256 "
                f"{str(expected)[:12]}...), found one of {tokenizer.vocab_size} tokens, sha256 "
                f"{tokenizer.hash[:12]}...; prepare the data again with this tokenizer"
            )


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_bytes())
    except OSError as error:
        raise ValueError(
            f"{folder}: expected a dataset, found no readable {META} ({error.strerror}); make one "
            "with python -m qs.data prepare"
        ) from None
    except ValueError:
        raise _damaged(folder, "text that is not JSON") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise _damaged(folder, f"format {found} where this program reads {FORMAT}")
    return meta


def _damaged(folder: Path, found: str) -> ValueError:
    return ValueError(f"{folder}: expected a sound {META}, found {found}; prepare it again")


@dataclass(frozen=True)
class Batch:
    """Rows of text.

    Attributes:
        tokens: (B, T) int64 ids; 0 where there is padding.
        documents: (B, T) int64 number of the document within the row: 0, 1, ...; -1 is padding.
        first: (B,) int64 number of each row's first document within the split.
    """

    tokens: Tensor
    documents: Tensor
    first: Tensor


def _batch(dataset: TokenDataset, seq: int, starts: Sequence[int]) -> Batch:
    """Rows from given places of the stream, padded where the stream ends."""
    import torch

    tokens = np.zeros((len(starts), seq), np.int64)
    documents = np.full((len(starts), seq), -1, np.int64)
    first = np.zeros(len(starts), np.int64)
    for row, start in enumerate(starts):
        ids, numbers = dataset.read(start, min(start + seq, dataset.tokens))
        tokens[row, : len(ids)] = ids
        documents[row, : len(ids)] = numbers - numbers[0]
        first[row] = numbers[0]
    return Batch(*map(torch.from_numpy, (tokens, documents, first)))


class Windows:
    """Windows of `seq` neighbouring tokens in a seeded order, new in every epoch.

    The windows of an epoch do not overlap. They begin at an offset drawn for the epoch, so that
    borders move; the few tokens before the first and after the last are left out. `count` is the
    number of windows in an epoch.
    """

    def __init__(self, dataset: TokenDataset, seq: int, seed: int) -> None:
        """Cut a split into windows.

        Args:
            dataset: the split.
            seq: T, tokens in a window.
            seed: 0 or more; another seed is another order.

        Raises:
            ValueError: if `seq` or `seed` is out of range, or the split is shorter than a window.
        """
        if seq < 1 or seed < 0:
            raise ValueError(f"expected seq above 0 and seed 0 or more, found {seq}, {seed}")
        if dataset.tokens < seq:
            raise ValueError(
                f"{dataset.folder}: expected at least one window of {seq} tokens in the split "
                f"{dataset.split}, found {dataset.tokens} tokens; lower --seq or prepare more text"
            )
        self.dataset, self.seq, self.seed = dataset, seq, seed
        self.count = max(1, (dataset.tokens - seq + 1) // seq)
        self._cached: tuple[int, int, np.ndarray] | None = None

    def batch(self, position: Position, rows: int) -> tuple[Batch, Position]:
        """The next rows: a function of dataset, seq, seed and position, and of nothing else.

        Args:
            position: (epoch, index) to start from, (0, 0) at first.
            rows: B; a batch may reach into the next epoch.

        Returns:
            The batch, and the position of the one that follows.

        Raises:
            ValueError: if there is no such position or `rows` is below 1.
        """
        epoch, index = position
        if epoch < 0 or not 0 <= index < self.count or rows < 1:
            raise ValueError(
                f"{self.dataset.folder}: expected an epoch from 0, an index from 0 to "
                f"{self.count - 1} and rows from 1, found {epoch}, {index}, {rows}; has the data "
                "or --seq changed?"
            )
        starts = []
        for _ in range(rows):
            offset, order = self._order(epoch)
            starts.append(offset + int(order[index]) * self.seq)
            epoch, index = (epoch, index + 1) if index + 1 < self.count else (epoch + 1, 0)
        return _batch(self.dataset, self.seq, starts), (epoch, index)

    def _order(self, epoch: int) -> tuple[int, np.ndarray]:
        """Offset and order of an epoch's windows; the last one asked for is kept."""
        if self._cached is None or self._cached[0] != epoch:
            draw = np.random.default_rng((self.seed, epoch))
            slack = min(self.seq - 1, self.dataset.tokens - self.count * self.seq)
            offset = int(draw.integers(slack + 1))
            self._cached = epoch, offset, draw.permutation(self.count)
        return self._cached[1:]


def sequential(
    dataset: TokenDataset, seq: int, rows: int, limit: int | None = None
) -> Iterator[Batch]:
    """For evaluation: windows from the start of a split, in order, the last one padded.

    Args:
        dataset: the split.
        seq: T, tokens in a window.
        rows: B at most; the last batch may have fewer rows.
        limit: windows at most; None means all.

    Raises:
        ValueError: if the split is empty or a number is below 1.
    """
    if dataset.tokens == 0 or min(seq, rows, 1 if limit is None else limit) < 1:
        raise ValueError(
            f"{dataset.folder}: expected tokens in the split {dataset.split}, and seq, rows and "
            f"limit above 0, found {dataset.tokens} tokens, {seq}, {rows}, {limit}"
        )
    starts = range(0, dataset.tokens, seq)[:limit]
    for first in range(0, len(starts), rows):
        yield _batch(dataset, seq, starts[first : first + rows])


DOWNLOADS = {
    "owm": ("open-web-math/open-web-math", "data/*"),
    "c4": ("allenai/c4", "en/c4-train.0000*.json.gz"),
}


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
