"""Tiny tokenizers of the kinds that people have, made with the package that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = ["the cat  sat on\nthe mat\n\n  and 12 + 30 = 42, the end. <s> it is"] * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(folder: Path, normalizer: Any = None, vocab: int = 300, **config: Any) -> Path:
    """As SmolLM2's: bytes, digits one by one, no BOS; `config` is for tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=byte.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"} | config
    return _save(tokenizer, folder, config)


def normalising(folder: Path) -> Path:
    """NFKC, lower case, and no space but single ones in between: texts come back changed."""
    from tokenizers import Regex, normalizers

    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    every = [normalizers.NFKC(), normalizers.Lowercase(), *spaces]
    return byte_level(folder, normalizers.Sequence(every))


def byte_fallback(folder: Path) -> Path:
    """As Llama 2's: a mark for spaces, bytes for rare characters, BOS in the post-processor."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    mark = "\u2581"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [mark, *"abcdefghijklmnopqrstuvwxyz0123456789.,+=<>/|_", "é", "th", "the", "at"]
    pieces += [f"{mark}the", f"{mark}c", f"{mark}cat"]
    merges = [("t", "h"), ("th", "e"), ("a", "t"), (mark, "the"), (mark, "c"), (f"{mark}c", "at")]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(mark), normalizers.Replace(" ", mark)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(mark, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in pieces[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _save(tokenizer, folder, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


def _save(tokenizer: Any, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
