"""What decoding is asked for, the numbers that it draws by, and what it gives."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.model.config import ModelConfig
from qs.model.tokenizer import Tokenizer
from qs.quietstar.ends import ENDED, PAUSE
from qs.quietstar.sampler import allowed_ids
from qs.settings import check_limits, setting
from qs.unused import refuse

Reason = Literal["eos", "stop", "length"]


def think_above(when: str) -> float:
    """Entropy of the base prediction, in nats, above which a token is thought about.

    Args:
        when: `always` (-inf), `never` (inf) or `entropy>X`.

    Raises:
        ValueError: it is none of them.
    """
    if when in ("always", "never"):
        return -math.inf if when == "always" else math.inf
    number = re.fullmatch(r"entropy>((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", when, re.ASCII)
    if number is None or math.isinf(float(number[1])):
        raise ValueError(
            "--think-when: expected always, never or entropy>X with X in nats "
            f"(such as entropy>1.5), got {when!r}"
        )
    return float(number[1])


@dataclass(frozen=True)
class Decoding:
    """How output tokens and the thoughts before them are drawn."""

    max_tokens: int = setting(128, "output tokens at most", least=1, most=2**20)
    temperature: float = setting(
        0.0, "temperature of output tokens; 0 takes the likeliest", least=0, temperature=True
    )
    top_p: float = setting(
        1.0,
        "draw output tokens from the likeliest that have this much probability together",
        above=0,
    )
    think_temperature: float = setting(
        0.0, "temperature of thoughts; 0 takes the likeliest", least=0, temperature=True
    )
    think_when: str = setting(
        "always", "always, never, or entropy>X: where the base prediction has above X nats"
    )
    fixed_weight: float | None = setting(None, "mixing weight to use instead of the head's")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.top_p > 1:
            raise ValueError(f"--top-p is a share in (0, 1], got {self.top_p}")
        think_above(self.think_when)


def check_effect(decoding: Decoding) -> None:
    """Refuse settings that others leave nothing to change, as a person gives them.

    Raises:
        ValueError: as `refuse` does.
    """
    given = {f.name for f in fields(Decoding) if getattr(decoding, f.name) != f.default}
    idle = {}
    if decoding.temperature == 0:
        idle["top_p"] = "drawn tokens, and --temperature 0 draws none: leave one out"
    if decoding.think_when == "never":
        told = "thoughts, and by --think-when never there are none: leave one out"
        idle |= dict.fromkeys(("think_temperature", "fixed_weight"), told)
    refuse(given, idle)


class OutputToken(NamedTuple):
    """One output token, and the thought before it (None: nothing was thought)."""

    id: int
    thought: tuple[int, ...] | None  # n ids or, if it ended itself, fewer; PAUSE for a pause
    weight: float | None  # of the mixing
    entropy: float  # of the base prediction, in nats
    log_p: float  # of the token in nats, in the mixed prediction (all ids, temperature 1)

    @property
    def generated(self) -> int:
        """Tokens that were drawn: this one, and those of the thought, pauses not among them."""
        return 1 + sum(i != PAUSE for i in self.thought or ())


@dataclass(frozen=True)
class Generated:
    """What followed one prompt, the EOS that ended it included."""

    tokens: tuple[OutputToken, ...]
    reason: Reason | None  # why it ended; None: it was not ended

    @property
    def ids(self) -> list[int]:
        """Output ids, EOS included."""
        return [token.id for token in self.tokens]

    @property
    def text_ids(self) -> list[int]:
        """Output ids without what ended them."""
        return self.ids[:-1] if self.reason == "eos" else self.ids


@dataclass
class Counts:
    """What was computed: forward passes, slots in them (padding not counted), tokens, thoughts."""

    passes: int = 0
    slots: int = 0
    tokens: int = 0
    thoughts: int = 0


def sayable_ids(shape: ModelConfig, device: torch.device) -> Tensor:
    """Rising ids that text may hold: what a thought may hold, and what ends a text."""
    return allowed_ids(shape.vocab_size, set(shape.forbidden) - set(shape.ends), device)


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


def thought_text(tokenizer: Tokenizer, before: Sequence[int], thought: Sequence[int]) -> str:
    """What was thought after the ids `before`, a pause as `…`; BOS and EOS are no text."""
    said = [i for i in thought if i not in (PAUSE, ENDED)]
    return "…" * list(thought).count(PAUSE) + tokenizer.continuation(before, said)


def token_line(token: OutputToken, tokenizer: Tokenizer, before: Sequence[int]) -> str:
    """One output token after the ids `before`, and what was thought before it."""
    line = f"{tokenizer.piece(token.id)!r:16} entropy {token.entropy:5.2f} nats"
    if token.thought is None:
        return line
    thought = thought_text(tokenizer, before, token.thought)
    return f"{line}  weight {token.weight:+.2f}  thought {thought!r}"
