"""The two formats: sentencepiece's `tokenizer.model` and Hugging Face's `tokenizer.json`.

Both have the same few attributes and methods, told of the first; what all tokenizers promise is
made of them in `qs/model/tokenizer.py`. Special tokens are never made from text in either.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece

from qs.files import read_object
from qs.model.config import THOUGHT_MARKS

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
MISSING = "needs the package tokenizers; run pip install -e '.[hf]'"
# U+2581 stands for a space inside sentencepiece's pieces; in a text it comes back as a space.
_SPACE = "\u2581"
# Files that people have instead of the two, and what to do about each.
_OTHERS = {
    "tokenizer.model.v*": "copy it to tokenizer.model, it is a sentencepiece model",
    "tekken.json": "get tokenizer.json from the same model's Hugging Face repository",
    "vocab.json": "get tokenizer.json from the same model's Hugging Face repository",
}


class Ids(NamedTuple):
    """Ids that a tokenizer file itself names; None: it has none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None


def find_vocabulary(folder: Path, end: int | str | None = None) -> SentencePiece | HuggingFace:
    """The tokenizer of a folder; of two files `tokenizer.model` if they agree.

    That is: if both are of one size, and the token that ends texts, where `end` names one, is a
    special one in it (that of a chat format may be one in `tokenizer.json` only).

    Raises:
        ValueError: there is none, or it is unreadable or damaged; what was found and what to do.
    """
    model, other = folder / MODEL_FILE, folder / JSON_FILE
    if model.is_file():
        sentences = SentencePiece(model)
        ends = end is None or sentences.special(end) is not None
        if not other.is_file() or (ends and _size(read_object(other), other) == sentences.size):
            return sentences
    if other.is_file():
        return HuggingFace(other)
    for pattern, advice in _OTHERS.items():
        for found in sorted(folder.glob(pattern)):
            raise ValueError(
                f"{folder}: expected {MODEL_FILE} or {JSON_FILE}, found only {found.name}; {advice}"
            )
    raise ValueError(
        f"{folder}: expected {MODEL_FILE} or {JSON_FILE}, found neither; give the folder that "
        "holds one, or get it from the repository of the weights"
    )


class SentencePiece:
    """`tokenizer.model` through sentencepiece.

    Attributes:
        path, content: of the file.
        size: the largest id and one.
        ids: that it names.
        begins: whether its own rule is that a text begins with BOS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"{path}: expected a readable sentencepiece model, found: {error.strerror}"
            ) from None
        try:
            if not self.content:  # sentencepiece takes empty bytes for "load nothing" and goes on
                raise RuntimeError
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self.content)
        except RuntimeError:
            advice = "get the file again (a Git LFS pointer is not the model)"
            if _is_tiktoken(self.content):
                advice = f"this is a tiktoken file, as of Llama 3: get {JSON_FILE} instead"
            raise ValueError(
                f"{path}: expected a sentencepiece model, found {len(self.content):,} bytes that "
                f"are none; {advice}"
            ) from None
        self.size: int = self._model.get_piece_size()
        named = (self._model.bos_id(), self._model.eos_id(), self._model.pad_id())
        self.ids = Ids(*(None if i < 0 else i for i in (*named, self._model.unk_id())))
        self.begins = self.ids.bos is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special one."""
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ones are no text, bytes that are no UTF-8 give U+FFFD."""
        return self._model.decode(list(ids))

    def piece(self, token: int) -> str:
        """One token, readable; a byte that is no character as `<0xE2>`."""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return _readable(bytes([int(piece[3:-1], 16)]))
        return piece.replace(_SPACE, " ")

    def special(self, token: int | str) -> int | None:
        """The id of a control symbol by its id or name, which no text becomes; None: it is none."""
        number = self._model.piece_to_id(token) if isinstance(token, str) else token
        return number if 0 <= number < self.size and self._model.is_control(number) else None


class HuggingFace:
    """`tokenizer.json` through the package tokenizers; attributes as of `SentencePiece`."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(f"{path}: {MISSING}") from None
        self.path = path
        values = read_object(path)
        self.content = path.read_bytes()
        self.size = _size(values, path)
        try:
            self._model = tokenizers.Tokenizer.from_str(self.content.decode())
        except Exception as error:  # the package raises no narrower class
            raise ValueError(
                f"{path}: expected a {JSON_FILE} that tokenizers {tokenizers.__version__} reads, "
                f"found: {error}; get the file again, or a newer tokenizers"
            ) from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # their names in a text are plain characters
        unknown = values["model"].get("unk_token")
        unknown = self._model.token_to_id(unknown) if isinstance(unknown, str) else None
        self._special: dict[int, str] = {}
        for token, added in self._model.get_added_tokens_decoder().items():
            if token != unknown and added.special:
                self._never_from_text(token, added.content)
            elif _is_thought_mark(added.content):
                self.special(added.content)
        self._beside = self.encode("a")
        self._bytes: dict[int, int] = {}  # tokens for the bytes that text falls back on
        if values["model"].get("byte_fallback"):
            tokens = {self._model.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
            self._bytes = {token: byte for token, byte in tokens.items() if token is not None}
        text, framed = (self._model.encode("a", add_special_tokens=x).ids for x in (False, True))
        self.begins = framed[:1] != text[:1] and bool(framed)
        self.ids = Ids(bos=framed[0] if self.begins else None, unknown=unknown)

    def encode(self, text: str) -> list[int]:
        """As of `SentencePiece`."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """As of `SentencePiece`."""
        broken = self._broken(ids) if self._bytes else []
        if not broken:
            return self._model.decode(list(ids), skip_special_tokens=True)
        # the package's decoder would take all bytes beside a broken one for broken too
        parts = [self.decode(ids[: broken[0]])]
        for start, end in itertools.pairwise([*broken, len(ids)]):
            parts += ["\ufffd", self._after_another(ids[start + 1 : end])]
        return "".join(parts)

    def _after_another(self, ids: Sequence[int]) -> str:
        """Text of ids in the middle: at the beginning, decoders drop a space."""
        return self._model.decode([*self._beside, *ids])[len(self._model.decode(self._beside)) :]

    def _broken(self, ids: Sequence[int]) -> list[int]:
        """Places of the bytes among ids that belong to no character."""
        places, numbered = [], enumerate(ids)
        for byte, run in itertools.groupby(numbered, lambda pair: pair[1] in self._bytes):
            if byte:
                first, *_ = at = [i for i, _ in run]
                raw = bytes(self._bytes[ids[i]] for i in at)
                places += [first + i for i in _broken(raw)]
        return places

    def piece(self, token: int) -> str:
        """As of `SentencePiece`."""
        name = self._model.id_to_token(token)
        if name is None:  # the vocabulary has gaps
            return f"<{token}>"
        if token in self._special:
            return name
        if token in self._bytes:
            return _readable(bytes([self._bytes[token]]))
        text = self._after_another([token])
        if "\ufffd" not in text or "\ufffd" in name:
            return text
        return _readable(bytes(_BYTE_LEVEL[char] for char in name))

    def special(self, token: int | str) -> int | None:
        """That of a special token; a name of tokenizer_config.json is one, as for transformers."""
        if isinstance(token, int):
            return token if token in self._special else None
        number = self._model.token_to_id(token)
        if number is not None and number not in self._special:
            from tokenizers import AddedToken

            self._model.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            self._never_from_text(number, token)
        return number

    def _never_from_text(self, token: int, name: str) -> None:
        """Note a special token, and that merges do not spell it (they know no special tokens)."""
        if token in self.encode(name):
            raise ValueError(
                f"{self.path}: the plain text {name!r} becomes the special token {token}; text "
                "must not make special tokens, so use another tokenizer"
            )
        self._special[token] = name


def _size(values: dict[str, Any], path: Path) -> int:
    """The largest id of a `tokenizer.json`, and one; marks of thoughts are no part of text."""
    try:
        vocab = values["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        added = values.get("added_tokens") or ()
        ids += [token["id"] for token in added if not _is_thought_mark(token["content"])]
        return max(ids) + 1
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{path}: expected a vocabulary in it, found none; get the file again"
        ) from None


def _is_thought_mark(name: str) -> bool:
    return any(mark in name for mark in THOUGHT_MARKS)


def _readable(raw: bytes) -> str:
    """Bytes that are no whole character, those above 127 as numbers."""
    return "".join(chr(byte) if byte < 128 else f"<0x{byte:02X}>" for byte in raw)


def _broken(raw: bytes) -> list[int]:
    """Places of the bytes that belong to no character of UTF-8."""
    places, start = [], 0
    while start < len(raw):
        try:
            raw[start:].decode()
            break
        except UnicodeDecodeError as error:
            places += range(start + error.start, start + error.end)
            start += error.end
    return places


def _is_tiktoken(content: bytes) -> bool:
    """Whether a file's first line is base64 and a rank."""
    word, _, rank = content.partition(b"\n")[0].partition(b" ")
    try:
        return bool(base64.b64decode(word, validate=True)) and rank.isdigit()
    except binascii.Error:
        return False


def _byte_level() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte -> that byte.

    Source: GPT-2, encoder.py, bytes_to_unicode.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_LEVEL = _byte_level()
