"""Text to token ids and back through a sentencepiece model, and training of such a model.

Thought tokens are not part of text: start and end of a thought are vectors of the model, so no
string encodes to them, and no string encodes to BOS, EOS or padding either.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from qs.files import write_bytes

MODEL_FILE = "tokenizer.model"
# U+2581 stands for a space inside sentencepiece's pieces; in a text it comes back as a space.
_SPACE = "\u2581"


class Tokenizer:
    """The sentencepiece model `tokenizer.model` of a folder.

    `decode(encode(text)) == text` for every text without U+2581 (sentencepiece's own mark for a
    space) if the model normalises nothing, as Mistral's and those of `train_tokenizer` do.

    Raises:
        ValueError: if the file is missing, unreadable or no sentencepiece model.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / MODEL_FILE
        try:
            model = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"{path}: expected a readable sentencepiece model, found: {error.strerror}; give "
                f"the folder that holds {MODEL_FILE}"
            ) from None
        try:
            if not model:  # sentencepiece takes empty bytes for "load nothing" and goes on
                raise RuntimeError
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(
                f"{path}: expected a sentencepiece model, found {len(model):,} bytes that are "
                "none; get the file again (a Git LFS pointer is not the model)"
            ) from None
        self.hash: str = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._model.get_piece_size()
        special = (self._model.bos_id(), self._model.eos_id(), self._model.pad_id())
        self.bos_id, self.eos_id, self.pad_id = (None if i < 0 else i for i in special)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text, all below `vocab_size`; `<s>` and the like are plain characters.

        Args:
            text: any text.
            bos, eos: put the begin-of-text id before, the end-of-text id after.

        Raises:
            ValueError: if the text is not valid Unicode, or the model has no such special id.
        """
        if (bos and self.bos_id is None) or (eos and self.eos_id is None):
            raise ValueError(
                f"expected a tokenizer with BOS and EOS, found BOS {self.bos_id}, EOS "
                f"{self.eos_id}; encode without them or use another tokenizer"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected valid Unicode, found half a surrogate pair at character {error.start}; "
                "repair the text"
            ) from None
        ids = self._model.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; BOS and EOS are no text; bytes that are no UTF-8 give U+FFFD.

        Raises:
            ValueError: if an id is not in the vocabulary (the rows of thought tokens are not).
        """
        return self._model.decode([self._known(i) for i in ids])

    def piece(self, token: int) -> str:
        """One token, readable: spaces and newlines as they are, a byte above 127 as `<0xE2>`.

        Raises:
            ValueError: if the id is not in the vocabulary.
        """
        piece = self._model.id_to_piece(self._known(token))
        if self._model.is_byte(token):
            value = int(piece[3:-1], 16)
            return chr(value) if value < 128 else piece
        return piece.replace(_SPACE, " ")

    def _known(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"expected token ids from 0 to {self.vocab_size - 1}, found {token}; is this text "
                "of another tokenizer, or a thought token (those are not text)?"
            )
        return int(token)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, model.getvalue())
    return Tokenizer(out)
