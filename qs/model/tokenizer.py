"""Text to token ids and back, by one set of rules for every tokenizer, and training of one.

Thought tokens are not part of text: start and end of a thought are vectors of the model, so no
string encodes to them, and no string encodes to BOS, EOS or another special token either.
"""

from __future__ import annotations

import hashlib
import io
import os.path
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from qs.atomic import write_bytes
from qs.files import read_object
from qs.locks import make_folder
from qs.model.tokenizer_files import JSON_FILE, MODEL_FILE, find_vocabulary

CONFIG_FILES = ("tokenizer_config.json", "generation_config.json")
TOKENIZER_FILES = (MODEL_FILE, JSON_FILE, "special_tokens_map.json", *CONFIG_FILES)
CONTEXT = 16  # tokens before others that decide how those are read
COPIED = (*TOKENIZER_FILES, "chat_template.jinja")
PROBES = (
    *("two  spaces", " led", "line\n\nline", "tab\tx", "Ab Cd", "x 1234.5", "don't ."),
    *("é ½ ﬁ 中 😀", "e\u0301"),  # the last of two characters
)


class Tokenizer:
    """The tokenizer of a folder: `tokenizer.model`, or `tokenizer.json` (see `find_vocabulary`).

    `decode(encode(text)) == text` if the tokenizer normalises nothing (see `changes`), as those of
    Mistral, Llama, SmolLM and `train_tokenizer` do; sentencepiece's own mark for a space, U+2581,
    becomes a space.

    BOS and EOS are those that tokenizer_config.json names, or else those of the tokenizer file, of
    generation_config.json or config.json, in this order.

    Attributes:
        hash: SHA-256 of the tokenizer file (and of BOS and EOS, where it is silent about them).
        vocab_size: the largest id of text or special tokens, and one.
        bos_id, eos_id, pad_id, unknown_id: None: there is none.
        ends: every id that one of these files calls an end of text, EOS first: chat models end a
            message by another token than a document.
        begins: whether texts begin with BOS; Mistral's and Llama's do, SmolLM2's and Qwen's not.

    Raises:
        ValueError: a file is missing, unreadable or damaged, or needs a package that is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        paths = [folder / name for name in (*CONFIG_FILES, "config.json")]
        configs = [read_object(path) if path.is_file() else {} for path in paths]
        (end,) = _tokens(configs[0].get("eos_token")) or (None,)
        self._model = find_vocabulary(folder, end)
        self.vocab_size: int = self._model.size
        own = self._model.ids
        if end is not None and self._model.special(end) is None:
            raise ValueError(
                f"{self._model.path}: expected the special token {end!r}, by which "
                f"{CONFIG_FILES[0]} ends texts, found none; get {JSON_FILE} of the same checkpoint"
            )
        (self.bos_id, _), (self.eos_id, self.ends), (self.pad_id, _) = (
            self._special(name, of_file, configs)
            for name, of_file in (("bos", own.bos), ("eos", own.eos), ("pad", own.pad))
        )
        self.unknown_id = own.unknown
        begins = configs[0].get("add_bos_token")
        begins = begins if isinstance(begins, bool) else self._model.begins
        self.begins: bool = begins and self.bos_id is not None
        digest, rule = hashlib.sha256(self._model.content), (self.begins, self.bos_id, self.eos_id)
        if rule != (self._model.begins, own.bos, own.eos):
            digest.update(repr(rule).encode())
        self.hash: str = digest.hexdigest()

    def _special(
        self, name: str, own: int | None, configs: Sequence[dict[str, Any]]
    ) -> tuple[int | None, tuple[int, ...]]:
        """Id of BOS, EOS or padding by the first file that speaks of it, and the ids of all files.

        What tokenizer_config.json names comes before the tokenizer file, its null after it; null
        means that there is none.
        """
        keys = (f"{name}_token", *[f"{name}_token_id"] * (len(configs) - 1))
        said = [_tokens(c[key]) for key, c in zip(keys, configs, strict=True) if key in c]
        if own is not None:
            said.insert(bool(_tokens(configs[0].get(keys[0]))), [own])
        known = [[i for i in map(self._model.special, x) if i is not None] for x in said]
        first = known[0][0] if known and known[0] else None
        named = dict.fromkeys(i for ids in ([first], *known) for i in ids if i is not None)
        return first, tuple(named)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text, all below `vocab_size`; `<s>` and the like are plain characters.

        Args:
            text: any text.
            bos: begin as texts of this tokenizer do: with BOS, or with nothing (`begins`).
            eos: put the end-of-text id after it.

        Raises:
            ValueError: if the text is not valid Unicode, or there is no end-of-text id.
        """
        if eos and self.eos_id is None:
            raise ValueError(
                f"{self._model.path}: expected a tokenizer with EOS, found none in it or in the "
                f"{', '.join(CONFIG_FILES)} beside it; get those of the same checkpoint"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected valid Unicode, found half a surrogate pair at character {error.start}; "
                "repair the text"
            ) from None
        first = [self.bos_id] if bos and self.begins else []
        return first + self._model.encode(text) + [self.eos_id] * eos

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that a model is to go on from, at least one: BOS or EOS if it is empty.

        Raises:
            ValueError: as `encode`, or the text is empty and there is neither.
        """
        if ids := self.encode(text, bos=True):
            return ids
        before = self.eos_id if self.bos_id is None else self.bos_id
        if before is None:
            raise ValueError(
                f"expected a text to go on from, found an empty one, and {self._model.path} has "
                "neither BOS nor EOS to begin with"
            )
        return [before]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; BOS and EOS are no text; bytes that are no UTF-8 give U+FFFD.

        Raises:
            ValueError: if an id is not in the vocabulary (the rows of thought tokens are not).
        """
        return self._model.decode([self._known(i) for i in ids])

    def continuation(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """The text that ids add where they follow others, its leading space included.

        A character that begins in `before` and is completed by `ids` belongs to it whole. One that
        `ids` leave incomplete ends it as U+FFFD; where text is shown as it grows, `settled` holds
        it back.

        Args:
            before: ids of the text so far, possibly none.
            ids: that follow.

        Raises:
            ValueError: as `decode`.
        """
        first = max(len(before) - CONTEXT, 0)
        context = list(before[first:])
        known, whole = self.decode(context), self.decode([*context, *ids])
        return whole[len(os.path.commonprefix((known, whole))) :]

    def piece(self, token: int) -> str:
        """One token, readable: spaces and newlines as they are, a byte above 127 as `<0xE2>`.

        Raises:
            ValueError: if the id is not in the vocabulary.
        """
        return self._model.piece(self._known(token))

    def changes(self) -> str | None:
        """What a tokenizer that does not give every text back does to one; None: it does.

        Only a few short texts are tried: spaces, lines, capitals, digits, other scripts.
        """
        for text in PROBES:
            if (back := self.decode(self.encode(text))) != text:
                return (
                    f"{self._model.path} changes text: {text!a} comes back as {back!a}; "
                    "what is read, learnt and scored is the changed text"
                )
        return None

    def _known(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"expected token ids from 0 to {self.vocab_size - 1}, found {token}; is this text "
                "of another tokenizer, or a thought token (those are not text)?"
            )
        return int(token)


def settled(text: str) -> str:
    """Text that grows, without the half character that it may end in."""
    return text.rstrip("\ufffd")


def copy_tokenizer(source: Path, target: Path) -> int:
    """Copy every tokenizer file of a checkpoint's folder into another; returns how many."""
    names = [name for name in COPIED if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return len(names)


def _tokens(value: Any) -> list[int | str]:
    """What a configuration file says of a special token: names or ids; null: none."""
    tokens = value if isinstance(value, list) else [value]
    tokens = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    return [token for token in tokens if type(token) in (int, str)]


def train_tokenizer(
    texts: Iterable[str],
    out: str | Path,
    vocab_size: int,
    limit: int = 100_000_000,
    symbols: Sequence[str] = (),
) -> Tokenizer:
    """Train a BPE model with byte fallback and write it to `out/tokenizer.model`.

    Same texts, same bytes. Ids: 0 unknown (never met, thanks to byte fallback), 1 BOS, 2 EOS,
    3 newline, 256 bytes, then merges. Newline is a symbol of its own, because sentencepiece would
    otherwise take it for a letter and merge it into words. Nothing is normalised.

    Args:
        texts: documents, read only as far as `limit` goes.
        out: folder, made if missing; a model that is there is replaced.
        vocab_size: number of tokens, the 260 that are always there included.
        limit: characters of text to learn from, all of which are held in memory.
        symbols: texts that are always one token, never merged with others; ids from 4 on.

    Raises:
        ValueError: if the corpus is too small for the vocabulary, or the vocabulary for the corpus.
    """
    sample, left = [], limit
    for text in texts:
        sample.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            user_defined_symbols=["\n", *symbols],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9995,  # the rarest characters of large corpora are spelt in bytes
            max_sentence_length=2**30,  # longer ones would be skipped, and ours are documents
            minloglevel=2,
        )
    except RuntimeError as error:
        # after a line of source: what is wrong, the numbers, and perhaps a flag that is not ours
        why = ". ".join(str(error).rpartition("] ")[2].split(". ")[:2]) or "no words"
        raise ValueError(
            f"sentencepiece cannot train {vocab_size} tokens on {sum(map(len, sample)):,} "
            f"characters of text ({why}); give more text or another --vocab"
        ) from None
    path = Path(out) / MODEL_FILE
    make_folder(path.parent)
    write_bytes(path, model.getvalue())
    return Tokenizer(out)
