"""A folder of token shards, read memory-mapped and cut into resumable windows.

For each split (`train`, `heldout`) a dataset folder holds shards of whole documents:
`train-00000.bin`, token ids (BOS, text, EOS, BOS, ...) as little-endian uint16 or uint32, and
`train-00000.idx`, uint64 offsets of the documents in it, the end included. `meta.json` says what
should be there, with digests of the content; a folder without it is no dataset.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from qs.config import PADDING
from qs.files import names_in, places, read_object
from qs.model.tokenizer import Tokenizer
from qs.output import there
from qs.plain import content_digest

if TYPE_CHECKING:  # torch is imported where a batch is made: tokenizing workers start without it
    from torch import Tensor

FORMAT = 1
META = "meta.json"
BLOCK = 1 << 18  # tokens that have a digest of their own: what is read is checked, no more
TOKEN_DTYPES = {"uint16": np.uint16, "uint32": np.uint32}
Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)
DATA_DOWNLOADS = {  # of the paper's data
    "owm": "hf download open-web-math/open-web-math --repo-type dataset --include 'data/*'",
    "c4": "hf download allenai/c4 --repo-type dataset --include 'en/c4-train.0000*.json.gz'",
}


def split_by_hash(raw: bytes, heldout: float, key: bytes = b"") -> Split:
    """A split drawn from bytes, `heldout` with that share; another key is another draw."""
    digest = hashlib.blake2b(raw, digest_size=8, key=key).digest()
    return "heldout" if int.from_bytes(digest, "big") < heldout * 2**64 else "train"


def check_split(split: str) -> None:
    """Raise ValueError for what is none of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"expected a split {' or '.join(SPLITS)}, found {split!r}; name one")


@dataclass
class Shard:
    """A pair of files, `name.bin` and `name.idx`, and what they hold; an entry of `meta.json`.

    Datasets that were prepared before there were digests have none.
    """

    name: str
    documents: int = 0
    tokens: int = 0
    offsets_digest: str = ""
    token_digests: list[str] = field(default_factory=list)  # of each BLOCK

    def checked(self) -> Shard:
        """The same; ValueError where an entry cannot be one."""
        if not (isinstance(self.name, str) and re.fullmatch(r"\w+-\d+", self.name)):
            raise ValueError(f"a shard {self.name!r}")  # a path would lead out of the folder
        for count in (self.documents, self.tokens):
            if type(count) is not int or count < 1:
                raise ValueError(f"a count {count!r}")
        blocks = -(-self.tokens // BLOCK)
        if type(self.token_digests) is not list or len(self.token_digests) not in (0, blocks):
            raise ValueError(f"token_digests that are not {blocks:,}")
        return self

    def add_digests(self, folder: Path) -> None:
        """Those of the files as they are in a folder."""
        tokens = np.memmap(folder / f"{self.name}.bin", np.uint8, "r").reshape(self.tokens, -1)
        self.offsets_digest = content_digest((folder / f"{self.name}.idx").read_bytes())
        blocks = range(0, self.tokens, BLOCK)
        self.token_digests = [content_digest(tokens[at : at + BLOCK]) for at in blocks]


class TokenDataset:
    """One split of a dataset folder, memory-mapped: a stream of tokens cut into documents.

    Attributes: `meta` (what `meta.json` holds), `folder`, `split`, `tokens`, `documents` (counts).

    Raises:
        ValueError: no dataset, an unknown split, or files that are not what `meta.json` says; of
            the tokens this shows when they are read first.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        check_split(split)
        self.folder, self.split = Path(folder), split
        self.meta = read_object(self.folder / META, "make one with python -m qs.data prepare")
        if (number := self.meta.get("format")) != FORMAT:
            raise self._damaged(f"format {number} where this program reads {FORMAT}")
        try:
            shards = [Shard(**entry).checked() for entry in self.meta["splits"][split]["shards"]]
            dtype, self._vocab_size = TOKEN_DTYPES[self.meta["dtype"]], self.meta["vocab_size"]
            if type(self._vocab_size) is not int:
                raise ValueError(f"vocab_size {self._vocab_size!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"no usable entry: {error}") from None
        self._shards, self._sound = shards, [set() for _ in shards]  # blocks that were checked
        self._tokens = [self._map(f"{x.name}.bin", dtype, x.tokens) for x in shards]
        self._offsets = [self._map(f"{x.name}.idx", np.uint64, x.documents + 1) for x in shards]
        for shard, offsets in zip(shards, self._offsets, strict=True):
            sound = shard.offsets_digest in ("", content_digest(offsets))
            grow = (offsets[1:] >= offsets[:-1]).all()
            if not (sound and grow) or offsets[0] != 0 or offsets[-1] != shard.tokens:
                raise self._damaged(f"{shard.name}.idx that does not fit {shard.name}.bin")
        # Where each shard begins in the stream, in tokens and in documents; the end included.
        self._first_token = np.cumsum([0, *(shard.tokens for shard in shards)])
        self._first_document = np.cumsum([0, *(shard.documents for shard in shards)])
        self.tokens, self.documents = int(self._first_token[-1]), int(self._first_document[-1])

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.folder}: expected a sound {META}, found {what}; prepare it again")

    def _map(self, name: str, dtype: Any, count: int) -> np.ndarray:
        path, expected = self.folder / name, count * np.dtype(dtype).itemsize
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            sizes = f"{expected:,} bytes, found {'no file' if size is None else f'{size:,}'}"
            raise ValueError(f"{path}: expected {sizes}; prepare the dataset again")
        return np.memmap(path, dtype, "r")

    def _check(self, number: int, begin: int, end: int) -> None:
        """Refuse tokens of a shard that are not those which were written."""
        shard, tokens, sound = self._shards[number], self._tokens[number], self._sound[number]
        for block in set(range(begin // BLOCK, -(-end // BLOCK))) - sound:
            ids = tokens[block * BLOCK : (block + 1) * BLOCK]
            if shard.token_digests and content_digest(ids) != shard.token_digests[block]:
                found = f"other content from token {block * BLOCK:,} on"
            elif (largest := int(ids.max())) >= self._vocab_size:
                found = f"id {largest:,} where {META} has {self._vocab_size:,} tokens"
            else:
                sound.add(block)
                continue
            path = self.folder / f"{shard.name}.bin"
            message = f"{path}: expected what was written, found {found}"
            raise ValueError(f"{message}; prepare the dataset again")

    @property
    def digest(self) -> str:
        """Of the content of all splits; of their sizes where `meta.json` has no digests."""
        parts = [self.meta.get(key) for key in ("dtype", "tokenizer_hash", "splits")]
        return content_digest(json.dumps(parts, sort_keys=True).encode())

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """A piece of the stream, 0 <= start < stop <= tokens, over the borders of shards.

        Returns:
            ids, and number of each token's document in the split; (stop - start,) int64 each.
        """
        assert 0 <= start < stop <= self.tokens
        tokens, documents = [], []
        first = np.searchsorted(self._first_token, start, side="right") - 1
        for shard in range(first, np.searchsorted(self._first_token, stop)):
            begin = max(start - int(self._first_token[shard]), 0)
            piece = self._tokens[shard][begin : stop - int(self._first_token[shard])]
            # Keys of the offsets' own dtype: any other makes numpy copy the whole mapped file.
            at = np.arange(begin, begin + len(piece), dtype=np.uint64)
            number = np.searchsorted(self._offsets[shard], at, side="right") - 1
            self._check(shard, begin, begin + len(piece))
            tokens.append(piece.astype(np.int64))
            documents.append(number + self._first_document[shard])
        return np.concatenate(tokens), np.concatenate(documents)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError for a tokenizer that is not that of `meta.json`, by hash."""
        expected = self.meta.get("tokenizer_hash")
        name, size = self.meta.get("tokenizer"), self._vocab_size
        if (tokenizer.hash, tokenizer.vocab_size) != (expected, size):
            made = f"the shards' tokenizer ({name}, {size} tokens, sha256 {str(expected)[:12]}...)"
            other = f"one of {tokenizer.vocab_size} tokens, sha256 {tokenizer.hash[:12]}..."
            advice = "prepare the data again with this tokenizer"
            raise ValueError(f"{self.folder}: expected {made}, found {other}; {advice}")


@dataclass(frozen=True)
class Batch:
    """Rows of text."""

    tokens: Tensor  # (B, T) int64 ids; 0 where there is padding
    documents: Tensor  # (B, T) int64 number of the document within the row: 0, 1, ...; or PADDING
    first: Tensor  # (B,) int64 number of each row's first document within the split


def _batch(dataset: TokenDataset, seq: int, starts: Sequence[int]) -> Batch:
    """Rows from given places of the stream, padded where the stream ends."""
    import torch

    tokens = np.zeros((len(starts), seq), np.int64)
    documents = np.full((len(starts), seq), PADDING, np.int64)
    first = np.zeros(len(starts), np.int64)
    for row, start in enumerate(starts):
        ids, numbers = dataset.read(start, min(start + seq, dataset.tokens))
        tokens[row, : len(ids)] = ids
        documents[row, : len(ids)] = numbers - numbers[0]
        first[row] = numbers[0]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(documents), torch.from_numpy(first))


class Windows:
    """Windows of `seq` (T) neighbouring tokens of a split in a seeded order, new in every epoch.

    The `count` windows of an epoch do not overlap. They begin at an offset drawn for the epoch, so
    that borders move; the few tokens before the first and after the last are left out.

    Raises:
        ValueError: if `seq` or `seed` is out of range, or the split is shorter than a window.
    """

    def __init__(self, dataset: TokenDataset, seq: int, seed: int) -> None:
        if seq < 1 or seed < 0:
            raise ValueError(f"expected seq above 0 and seed 0 or more, found {seq}, {seed}")
        if dataset.tokens < seq:
            raise ValueError(
                f"{dataset.folder}: expected at least one window of {seq} tokens in the split "
                f"{dataset.split}, found {dataset.tokens} tokens; lower --seq or prepare more text"
            )
        self.dataset, self.seq, self.seed = dataset, seq, seed
        self.count = max(1, (dataset.tokens - seq + 1) // seq)
        self._starts: tuple[int, np.ndarray] = (-1, np.empty(0))  # of the last epoch asked for

    def batch(self, position: tuple[int, int], rows: int) -> tuple[Batch, tuple[int, int]]:
        """The next rows (B): a function of dataset, seq, seed and position, and of nothing else.

        A position is an epoch and an index in its order, (0, 0) at first; a batch may reach into
        the next epoch. Returned are the batch and the position of the one that follows.

        Raises:
            ValueError: if there is no such position or `rows` is below 1.
        """
        epoch, index = position
        if epoch < 0 or not 0 <= index < self.count or rows < 1:
            expected = f"an epoch from 0, an index from 0 to {self.count - 1} and rows from 1"
            message = f"expected {expected}, found {epoch}, {index}, {rows}"
            raise ValueError(f"{self.dataset.folder}: {message}; has the data or --seq changed?")
        starts = []
        for _ in range(rows):
            starts.append(int(self.starts(epoch)[index]))
            epoch, index = (epoch, index + 1) if index + 1 < self.count else (epoch + 1, 0)
        return _batch(self.dataset, self.seq, starts), (epoch, index)

    def starts(self, epoch: int) -> np.ndarray:
        """(count,) places in the stream where an epoch's windows begin, in its order."""
        if self._starts[0] != epoch:
            draw = np.random.default_rng((self.seed, epoch))
            slack = min(self.seq - 1, self.dataset.tokens - self.count * self.seq)
            offset = draw.integers(slack + 1)
            self._starts = epoch, offset + draw.permutation(self.count) * self.seq
        return self._starts[1]


def sequential(dataset: TokenDataset, seq: int, rows: int) -> Batch:
    """For evaluation: the first `rows` windows of `seq` tokens (B, T), fewer where a split ends.

    Raises:
        ValueError: if the split is empty or a number is below 1.
    """
    if dataset.tokens == 0 or min(seq, rows) < 1:
        raise ValueError(
            f"{dataset.folder}: expected tokens in the split {dataset.split}, and seq and rows "
            f"above 0, found {dataset.tokens} tokens, {seq}, {rows}"
        )
    return _batch(dataset, seq, range(0, dataset.tokens, seq)[:rows])


def resolve_data(name_or_folder: str) -> Path:
    """The dataset folder that `--data` means: a folder as it is, else `data/NAME`.

    Raises:
        ValueError: if there is no dataset; the message ends with the commands that make it.
    """
    for folder in places(name_or_folder, "data"):
        if (folder / META).is_file():
            return folder
    name = Path(name_or_folder).name
    found = f"--data {name_or_folder}: expected a prepared dataset, found no {META} in "
    found += f"{name_or_folder} or data/{name_or_folder}; "
    prepare = "python -m qs.data prepare"
    if name in DATA_DOWNLOADS:
        source = f"data/raw/{name}"
        raise ValueError(
            f"{found}run\n{DATA_DOWNLOADS[name]} --local-dir {source}\n"
            f"{prepare} {source} --out data/{name} --tokenizer weights/mistral-7b"
        )
    made = [x for x in names_in("data") if any((p / META).is_file() for p in places(x, "data"))]
    raise ValueError(
        f"{found}give a folder or one of the names in data {there(name, made)}; or make it\n"
        f"{prepare} SOURCE --out data/{name or 'NAME'} --tokenizer weights/NAME"
    )
