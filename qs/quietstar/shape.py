"""Shape and tokenizer of a checkpoint: whether they fit each other and what is asked of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qs.config import Config
from qs.model.config import ModelConfig, read_model_config
from qs.model.tokenizer import Tokenizer
from qs.model.tokenizer_files import JSON_FILE, MODEL_FILE


def read(folder: Path, settings: Config) -> tuple[ModelConfig, Tokenizer]:
    """Shape and tokenizer of a checkpoint; where they name special tokens, the tokenizer counts.

    Raises:
        ValueError: one of them is missing or damaged, or `check_fits`.
    """
    shape, tokenizer = read_model_config(folder), Tokenizer(folder)
    check_fits(shape, tokenizer, settings, folder)
    # what is written ends with what prepared documents end with, or as a message does
    eos, *others = tokenizer.ends or shape.ends or (None,)
    shape = dataclasses.replace(
        shape,
        text_ids=tokenizer.vocab_size,
        bos_id=shape.bos_id if tokenizer.bos_id is None else tokenizer.bos_id,
        eos_id=eos,
        other_ends=tuple(others),
        pad_id=shape.pad_id if tokenizer.pad_id is None else tokenizer.pad_id,
    )
    return shape, tokenizer


def check_fits(shape: ModelConfig, tokenizer: Tokenizer, settings: Config, folder: Path) -> None:
    """Refuse a tokenizer or a row length that the model was not made for.

    Raises:
        ValueError: what was expected and found.
    """
    if tokenizer.vocab_size > shape.vocab_size:
        two = all((folder / name).is_file() for name in (MODEL_FILE, JSON_FILE))
        other = f", or remove {JSON_FILE} if {MODEL_FILE} beside it is the right one" * two
        raise ValueError(
            f"{folder}: the model has {shape.vocab_size} tokens, its tokenizer "
            f"{tokenizer.vocab_size}; take both from the same checkpoint{other}"
        )
    thought, seq = settings.thought, settings.run.seq
    branch = thought.thoughts + thought.ahead + 1 if settings.run.thinks else 0
    if seq + branch > shape.max_positions:
        raise ValueError(
            f"--seq {seq} (and {branch} positions of a thought) exceeds the {shape.max_positions} "
            f"positions that {folder} was made for: lower --seq, --thoughts or --ahead"
        )
