"""Texts that a model writes after prompts, up to where a stop string says that they end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qs.inference.decoding import Decoding, Generated
from qs.inference.generate import generate
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar


class Written(NamedTuple):
    """What was written after a prompt: its text, and how it came about."""

    text: str
    generated: Generated


def write(
    quiet: QuietStar,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seed: int = 0,
    stops: Sequence[str] = (),
    longest: int | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Written | None]:
    """The text that follows each prompt, or None where a prompt leaves no room for any.

    Args:
        quiet, tokenizer: the model.
        prompts: ids, at least one in each.
        decoding: how to draw.
        seed: of the numbers that tokens and thoughts are drawn by.
        stops: a text ends with the token that completes the first of them.
        longest: tokens of a prompt and its text together; None: what the model was made for.
        numbers: of the rows, by default 0, 1, .. (see `Stream`).
    """
    longest = quiet.model.config.max_positions if longest is None else longest
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < longest]
    # a stop has at most as many tokens as bytes, and may begin and end inside of them
    tail = max((len(stop.encode()) for stop in stops), default=1)

    def ended(row: int, said: list[int]) -> bool:
        ending = text_after(tokenizer, said[-tail:])
        full = len(said) >= longest - len(prompts[fitting[row]])
        return full or any(stop in ending for stop in stops)

    results = generate(
        quiet,
        [prompts[i] for i in fitting],
        decoding,
        seed,
        stop=ended,
        numbers=fitting if numbers is None else [numbers[i] for i in fitting],
    )
    written: list[Written | None] = [None] * len(prompts)
    for i, result in zip(fitting, results, strict=True):
        written[i] = Written(text_after(tokenizer, result.text_ids), result)
    return written


def text_after(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids that follow others: a space that it begins with stays."""
    return tokenizer.decode([tokenizer.encode("\n")[-1], *ids])[1:]
