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

    ids: list[int]  # BOS and EOS included
    prompt: int  # how many of them are the prompt's, and no targets


def encoded(tokenizer: Tokenizer, prompt: str, completion: str) -> EncodedExample:
    """Encode an example whole, as it will be read; a token across the border is a target."""
    alone = tokenizer.encode(prompt, bos=True)
    ids = tokenizer.encode(prompt + completion, bos=True, eos=True)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False))
    return EncodedExample(ids, len(list(same)))


class Completions:
    """Examples, shuffled anew in each epoch and packed into rows.

    Args:
        pairs: prompts and their completions.
        tokenizer: of the model.
        seq: T; an example that does not fit is left out.
        seed: of the order.

    Attributes:
        too_long: how many were left out.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, seq: int, seed: int):
        examples = [encoded(tokenizer, prompt, completion) for prompt, completion in pairs]
        self.examples = [example for example in examples if len(example.ids) <= seq]
        self.too_long = len(examples) - len(self.examples)
        self.seq, self.seed = seq, seed
        if not self.examples:
            raise ValueError(
                f"expected examples to train on, found none of at most {seq} tokens among "
                f"{len(examples)}: raise --seq, or take a model that gets some problems right"
            )

    def batches(self, size: int) -> Iterator[CompletionBatch]:
        """Batches of `size` rows, without end; the same ones each time."""
        rows = self._packed()
        while True:
            yield self._batch([next(rows) for _ in range(size)])

    def _packed(self) -> Iterator[list[EncodedExample]]:
        """Rows of as many examples as fit, in order."""
        row: list[EncodedExample] = []
        for example in self._order():
            if sum(len(other.ids) for other in row) + len(example.ids) > self.seq:
                yield row
                row = []
            row.append(example)

    def _order(self) -> Iterator[EncodedExample]:
        for epoch in itertools.count():
            for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.examples)):
                yield self.examples[i]

    def _batch(self, rows: Sequence[Sequence[EncodedExample]]) -> CompletionBatch:
        import torch

        tokens = torch.zeros(len(rows), self.seq, dtype=torch.int64)  # (B, T)
        documents = torch.full((len(rows), self.seq), PADDING)
        counted = torch.zeros(len(rows), self.seq, dtype=torch.bool)
        for i, row in enumerate(rows):
            start = 0
            for number, example in enumerate(row):
                end = start + len(example.ids)
                tokens[i, start:end] = torch.tensor(example.ids)
                documents[i, start:end] = number
                counted[i, start + example.prompt : end] = True
                start = end
        return CompletionBatch(tokens, documents, counted)
