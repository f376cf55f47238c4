"""Prompts with their completions -> batches whose loss is on the completions only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qs.config import PADDING
from qs.model.tokenizer import Tokenizer

if TYPE_CHECKING:  # as in dataset: the room is imported without torch
    from torch import Tensor


class CompletionBatch(NamedTuple):
    """Rows of whole examples, as `training.step.train_step` takes them."""

    tokens: Tensor  # (B, T) ids
    documents: Tensor  # (B, T) number within the row; PADDING behind the last example
    counted: Tensor  # (B, T) whether a token is a target: completions and the ends of texts are


class EncodedExample(NamedTuple):
    """A prompt with its completion."""

    ids: list[int]  # BOS and, if asked for, EOS included
    prompt: int  # how many of them are the prompt's, and no targets


def encoded(tokenizer: Tokenizer, prompt: str, completion: str, eos: bool = True) -> EncodedExample:
    """Encode an example whole, as it will be read; a token across the border is a target."""
    alone = tokenizer.encode(prompt, bos=True)
    ids = tokenizer.encode(prompt + completion, bos=True, eos=eos)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False))
    return EncodedExample(ids, len(list(same)))


class Completions:
    """Prompts with their completions, shuffled anew in each epoch and packed into rows.

    `seq` is T; examples that do not fit are left out, and `too_long` is their number.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, seq: int, seed: int):
        examples = [encoded(tokenizer, prompt, completion) for prompt, completion in pairs]
        self.examples = [example for example in examples if len(example.ids) <= seq]
        self.too_long = len(examples) - len(self.examples)
        self.seq, self.seed = seq, seed
        if not self.examples:
            found = f"none of at most {seq} tokens among {len(examples)}"
            raise ValueError(
                f"expected examples to train on, found {found}: raise --seq, or take a model that "
                "gets some problems right"
            )

    def batches(self, size: int) -> Iterator[CompletionBatch]:
        """Batches of `size` rows, without end; the same ones each time."""
        import torch

        rows = self._packed()
        while True:
            tokens = torch.zeros(size, self.seq, dtype=torch.int64)  # (B, T)
            documents = torch.full((size, self.seq), PADDING)
            counted = torch.zeros(size, self.seq, dtype=torch.bool)
            for i, row in enumerate(itertools.islice(rows, size)):
                start = 0
                for number, example in enumerate(row):
                    end = start + len(example.ids)
                    tokens[i, start:end] = torch.tensor(example.ids)
                    documents[i, start:end] = number
                    counted[i, start + example.prompt : end] = True
                    start = end
            yield CompletionBatch(tokens, documents, counted)

    def _packed(self) -> Iterator[list[EncodedExample]]:
        row: list[EncodedExample] = []
        for epoch in itertools.count():
            for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.examples)):
                example = self.examples[i]
                if sum(len(other.ids) for other in row) + len(example.ids) > self.seq:
                    yield row
                    row = []
                row.append(example)
