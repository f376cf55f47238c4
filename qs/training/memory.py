"""How much memory a step takes, by a formula: parameters, a part's activations, caches, logits.

Thoughts are sampled before there are gradients, and scored in parts of some rows and some of their
anchors, so that what is kept for the backward pass of one part is all that `--activations` bounds.
Tests hold the formula to what a step was measured to take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from qs.config import Config
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Placement
from qs.quietstar.losses import LOGITS_AT_ONCE, logit_rows
from qs.quietstar.terms import term_weights

MIB, GIB = 2**20, 2**30
ACTIVATIONS = 128  # MiB, on a CPU: what its caches cannot hold costs more than reading text again


class Memory(NamedTuple):
    """Bytes, by kind, that one process holds.

    Attributes:
        weights: that the passes read.
        gradients: of all parameters.
        optimizer: moments, and float32 master weights where the layers' are narrower.
        activations: what one part keeps for its backward pass; where layers are recomputed with
            all of one of them, in whose place logits were before.
        caches: while thoughts are sampled: keys and values, and logits of the next tokens.
        logits: pieces of them while a part is scored, and the head's gradients.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    caches: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """At the peak: gradients and activations are not there while thoughts are sampled."""
        scoring = self.gradients + self.activations + self.logits
        return self.weights + self.optimizer + max(scoring, self.caches)


class Sizes(NamedTuple):
    """Numbers of a model: in the matrices of its layers, in all, and in the largest tensor."""

    matrices: int
    all: int
    largest: int

    @staticmethod
    def of(config: Config, shape: ModelConfig) -> Sizes:
        """Those of the module that a run trains; nothing is allocated."""
        with torch.device("meta"):
            quiet = QuietStar(Mistral(shape), config.thinking)
        sizes = {name: p.numel() for name, p in quiet.named_parameters()}
        matrices = (p.numel() for p in quiet.model.layers.parameters() if p.ndim >= 2)
        return Sizes(sum(matrices), sum(sizes.values()), max(sizes.values()))


@dataclass(frozen=True)
class PartMemory:
    """What parts of a step keep for their backward pass: some rows, thoughts of some anchors.

    Attributes:
        config: rows and thoughts.
        shape: of the model.
        width: bytes of a number of the arithmetic.
        recompute: whether of each layer only the input is kept, and all of one at a time.
        compiled: whether layers are.
    """

    config: Config
    shape: ModelConfig
    width: int
    recompute: bool = False
    compiled: bool = False

    def kept(self, rows: int, anchors: int) -> int:
        """Bytes that a part keeps."""
        thought, shape, T = self.config.thinking, self.shape, self.config.run.seq
        n, m = thought.thoughts, thought.ahead
        branches = anchors * thought.samples if self.config.run.thinks else 0
        inputs = rows * (T + branches * (n + m + 1)) * shape.dim * self.width
        # float32 inputs of the mixing head and of the losses
        ends = 4 * rows * (T + branches * (5 * m + n)) * shape.dim
        layer = self.layer(rows, anchors)
        layers = shape.layers * inputs + layer if self.recompute else shape.layers * layer
        return layers + 2 * inputs + ends

    def layer(self, rows: int, anchors: int) -> int:
        """Bytes that one layer keeps of a part."""
        thought, shape, T = self.config.thinking, self.shape, self.config.run.seq
        D, L = shape.dim, thought.thoughts + thought.ahead + 1
        branches = anchors * thought.samples if self.config.run.thinks else 0
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        # numbers of a slot: inputs of the layer and of its products, queries, keys and values, what
        # they attended to, the inner width
        numbers = 3 * D + 3 * queries + 2 * keys + 3 * shape.hidden_dim
        if not self.compiled:  # the compiler computes the middle of a layer again
            numbers += D + queries
        if not self.compiled and self.width >= 4:  # by kernels: scores over the thought itself
            numbers += shape.heads * L
        elif not self.compiled:  # written out: float32 norms, queries, scores over text and thought
            numbers += 6 * D + shape.hidden_dim + 2 * queries + keys + 3 * shape.heads * (T + L)
        return rows * (T + branches * L) * numbers * self.width

    def split(self, mebibytes: int, rows: int) -> tuple[int, int]:
        """Rows and anchors of a part: as many of `rows` as fit (0 MiB: all), then of anchors.

        One row with one anchor is the least, whether it fits or not.
        """
        run, thought = self.config.run, self.config.thinking
        A = thought.anchor_count(run.seq) if run.thinks else 0

        def fits(rows: int, anchors: int) -> bool:
            return self.kept(rows, anchors) <= mebibytes * MIB

        if not mebibytes or fits(rows, A):
            return rows, A
        for count in range(2, rows + 1):
            if fits(some := math.ceil(rows / count), A):
                return _even(rows, some), A
        _, talk, policy = term_weights(thought)
        if talk == policy == 0:
            return 1, A  # parts after the first would have nothing to train
        for count in range(2, A + 1):
            if fits(1, some := math.ceil(A / count)):
                return 1, _even(A, some)
        return 1, min(1, A)

    def least(self, slots: int) -> int:
        """Bytes of a part of one row whose branches have so many slots, or all that there are."""
        thought = self.config.thinking
        branch = thought.samples * (thought.thoughts + thought.ahead + 1)
        anchors = min(thought.anchor_count(self.config.run.seq), math.ceil(slots / branch))
        return self.kept(1, anchors)

    def cpu_bound(self) -> int:
        """MiB at a time on a CPU: ACTIVATIONS, if reading text again then costs little.

        A part's branches may have four times as many slots as the text that is read with them.
        """
        needed = replace(self, compiled=False).least(4 * self.config.run.seq)
        return max(ACTIVATIONS, math.ceil(needed / MIB))


def _even(total: int, most: int) -> int:
    """The largest size up to `most` that divides a total: each further size is compiled anew.

    If that is less than half of `most`, as many sizes as it takes.
    """
    sizes = (size for size in range(most, most // 2, -1) if total % size == 0)
    return next(sizes, most)


def cache_bytes(config: Config, shape: ModelConfig, width: int, rows: int) -> int:
    """Keys and values of some rows and their thoughts, in every layer, while they are sampled."""
    thought, T = config.thinking, config.run.seq
    if not config.sampled:
        return 0
    slots = T + thought.anchor_count(T) * thought.samples * thought.thoughts
    return 2 * shape.layers * rows * slots * shape.kv_heads * shape.head_dim * width


def logit_bytes(
    config: Config, shape: ModelConfig, placement: Placement, rows: int, anchors: int
) -> int:
    """Pieces of the logits in float32 while a part is scored, and gradients of the head."""
    thought, V = config.thinking, shape.vocab_size
    most = anchors * thought.samples * max(thought.thoughts, thought.ahead)
    most = rows * max(config.run.seq, most)
    piece = min(most, logit_rows(V, placement.device))
    head = V * shape.dim
    # on CUDA a float32 product is one of halves in bfloat16, of which copies are made
    halves = 10 * head if placement.device.type == "cuda" and placement.dtype.itemsize < 4 else 0
    return 2 * 4 * piece * V + 2 * 4 * head + halves


def draw_bytes(config: Config, shape: ModelConfig, rows: int) -> int:
    """Logits of a token of every thought, and what is made of them to draw it."""
    branches = config.thinking.anchor_count(config.run.seq) * config.thinking.samples
    numbers = min(LOGITS_AT_ONCE, rows * branches * shape.vocab_size)
    return 4 * 4 * numbers if config.sampled else 0
