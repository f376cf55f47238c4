"""What decoding is asked for, how tokens are drawn, and what it gives."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.config import above, at_least, setting
from qs.model.config import ModelConfig
from qs.model.tokenizer import Tokenizer
from qs.quietstar.sampler import allowed_ids

Reason = Literal["eos", "stop_id", "stop", "length"]


@dataclass(frozen=True)
class ThinkWhen:
    """Think where the entropy of the base prediction is above this many nats.

    `always` is above -inf, `never` above inf.
    """

    above: float

    @staticmethod
    def parse(text: str) -> ThinkWhen:
        """Read `always`, `never` or `entropy>X`.

        Raises:
            ValueError: it is none of them.
        """
        if text == "always":
            return ThinkWhen(-math.inf)
        if text == "never":
            return ThinkWhen(math.inf)
        number = re.fullmatch(r"entropy>((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", text, re.ASCII)
        if number is None or math.isinf(float(number[1])):
            raise ValueError(
                "--think-when: expected always, never or entropy>X with X in nats "
                f"(such as entropy>1.5), got {text!r}"
            )
        return ThinkWhen(float(number[1]))

    @property
    def always(self) -> bool:
        """Whether every token thinks, whatever the entropy."""
        return self.above == -math.inf

    @property
    def never(self) -> bool:
        """Whether no token thinks."""
        return self.above == math.inf

    def __str__(self) -> str:
        names = {-math.inf: "always", math.inf: "never"}
        return names.get(self.above, f"entropy>{self.above}")


@dataclass(frozen=True)
class Decoding:
    """How output tokens and the thoughts before them are drawn."""

    max_tokens: int = setting(128, "output tokens at most")
    temperature: float = setting(0.0, "temperature of output tokens; 0 takes the likeliest")
    top_p: float = setting(
        1.0, "draw output tokens from the likeliest that have this much probability together"
    )
    think_temperature: float = setting(0.0, "temperature of thoughts; 0 takes the likeliest")
    think_when: str = setting(
        "always", "always, never, or entropy>X: where the base prediction has above X nats"
    )
    fixed_weight: float | None = setting(None, "mixing weight to use instead of the head's")

    def __post_init__(self) -> None:
        at_least(self, max_tokens=1, temperature=0, think_temperature=0)
        above(self, top_p=0)
        if self.top_p > 1:
            raise ValueError(f"--top-p is a share in (0, 1], got {self.top_p}")
        ThinkWhen.parse(self.think_when)


class OutputToken(NamedTuple):
    """One output token.

    Attributes:
        id: of the token.
        thought: its n ids, `quiet.PAUSE` where it was a pause; None: nothing was thought.
        weight: of the mixing; None: nothing was thought.
        entropy: of the base prediction in nats.
        log_p: of the token in nats, in the mixed prediction (over all ids, at temperature 1).
    """

    id: int
    thought: tuple[int, ...] | None
    weight: float | None
    entropy: float
    log_p: float


@dataclass(frozen=True)
class Generated:
    """What followed one prompt.

    Attributes:
        tokens: all that were drawn, the one that ended the row included.
        reason: it ended at EOS, at a stop id, because `stop` said so, or at its greatest length;
            None: it was not ended.
        slots: that the model computed for it, prompt included, padding not.
    """

    tokens: tuple[OutputToken, ...]
    reason: Reason | None
    slots: int

    @property
    def ids(self) -> list[int]:
        """Output ids, the one that ended the row included."""
        return [token.id for token in self.tokens]

    @property
    def text_ids(self) -> list[int]:
        """Output ids without the EOS or stop id that ended the row."""
        return self.ids[:-1] if self.reason in ("eos", "stop_id") else self.ids


@dataclass
class Counts:
    """What was computed for a whole batch.

    Attributes:
        passes: forward passes, each of any number of rows.
        slots: positions in them, padding of shorter prompts not counted.
        tokens: output tokens.
        thoughts: thoughts, of n tokens (or pauses) each.
    """

    passes: int = 0
    slots: int = 0
    tokens: int = 0
    thoughts: int = 0


def sayable_ids(shape: ModelConfig, device: torch.device) -> Tensor:
    """Rising ids that text may hold: what a thought may hold, and EOS."""
    return allowed_ids(shape.vocab_size, set(shape.forbidden) - {shape.eos_id}, device)


def uniforms(seed: int, numbers: Sequence[int], tokens: int, n: int) -> list[Tensor]:
    """The numbers that rows draw by, in [0, 1): those of a row depend on its own number and `seed`.

    Output tokens and thoughts have a generator each, so that neither n nor the number of tokens
    changes what the first tokens are drawn by.

    Returns:
        (R, tokens) for output tokens and (R, tokens, n) for thoughts, float64.
    """
    shapes = ((tokens,), (tokens, n))
    drawn = [torch.empty((len(numbers), *shape), dtype=torch.float64) for shape in shapes]
    for row, number in enumerate(numbers):
        states = np.random.SeedSequence([seed, number]).generate_state(2, np.uint64)
        for x, state in zip(drawn, states, strict=True):
            x[row].uniform_(generator=torch.Generator().manual_seed(int(state)))
    return drawn


def token_line(token: OutputToken, tokenizer: Tokenizer) -> str:
    """One output token, and what was thought before it."""
    line = f"{tokenizer.piece(token.id)!r:16} entropy {token.entropy:5.2f} nats"
    if token.thought is None:
        return line
    thought = "".join("…" if i < 0 else tokenizer.piece(i) for i in token.thought)
    return f"{line}  weight {token.weight:+.2f}  thought {thought!r}"
