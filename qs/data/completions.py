"""Questions with their completions -> batches whose loss is on the completions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.config import PADDING
from qs.model.tokenizer import Tokenizer


class Batch(NamedTuple):
    """Rows of whole examples, as `training.train_step` takes them.

    Attributes:
        tokens, documents: (B, T); documents are PADDING behind the last example of a row.
        counted: (B, T) whether a token is a target: completions and the ends of texts are.
    """

    tokens: Tensor
    documents: Tensor
    counted: Tensor


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
        rows = [encoded(tokenizer, *pair) for pair in pairs]
        self.rows = [row for row in rows if len(row[0]) <= seq]
        self.too_long = len(rows) - len(self.rows)
        self.seq, self.seed = seq, seed
        if not self.rows:
            raise ValueError(
                f"expected examples to train on, found none of at most {seq} tokens among "
                f"{len(rows)}: raise --seq, or take a model that gets some problems right"
            )

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of `size` rows, without end; the same ones each time."""
        rows = self._packed()
        while True:
            yield Batch(*map(torch.stack, zip(*(next(rows) for _ in range(size)), strict=True)))

    def _packed(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of as many examples as fit, in order."""
        waiting: list[tuple[list[int], int]] = []
        for example in self._order():
            if sum(len(ids) for ids, _ in waiting) + len(example[0]) > self.seq:
                yield self._row(waiting)
                waiting = []
            waiting.append(example)

    def _order(self) -> Iterator[tuple[list[int], int]]:
        epoch = 0
        while True:
            for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)):
                yield self.rows[i]
            epoch += 1

    def _row(self, some: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = torch.zeros(self.seq, dtype=torch.int64)
        documents = torch.full((self.seq,), PADDING)
        counted = torch.zeros(self.seq, dtype=torch.bool)
        at = 0
        for number, (ids, prompt) in enumerate(some):
            end = at + len(ids)
            tokens[at:end], documents[at:end] = torch.tensor(ids), number
            counted[at + prompt : end] = True
            at = end
        return tokens, documents, counted


def encoded(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], int]:
    """Ids of an example, BOS and EOS included, and how many of them are the prompt's.

    Text is encoded whole, as it will be read; a token that lies across the border is a target.
    """
    alone = tokenizer.encode(prompt, bos=True)
    ids = tokenizer.encode(prompt + completion, bos=True, eos=True)
    same = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(alone))
    return ids, same
