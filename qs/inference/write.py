"""Texts that a model writes after prompts, up to where a stop string says that they end."""

from collections.abc import Sequence
from typing import NamedTuple

from qs.inference.cache import Reading
from qs.inference.decoding import Decoding, OutputToken
from qs.inference.generate import Stream
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar


class Written(NamedTuple):
    """What was written after a prompt: text, stop and leading space included, and its tokens.

    It is `whole` if a stop or EOS ended it, and not the number of tokens that it may have.
    """

    text: str
    tokens: tuple[OutputToken, ...]
    whole: bool


def write(
    quiet: QuietStar,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seed: int = 0,
    stops: Sequence[str] = (),
    longest: int | None = None,
    numbers: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> list[Written | None]:
    """The text that follows each prompt, or None where a prompt leaves no room for any.

    Args:
        prompts, decoding, seed, numbers, reading: as of `generate.Stream`; if they were read
            already, all prompts leave room.
        stops: a text ends with the token that completes the first of them.
        longest: tokens of a prompt and its text together; None: what the model was made for.

    Raises:
        ValueError: a stop is empty.
    """
    if "" in stops:
        raise ValueError("stops: expected texts, found an empty one")
    longest = quiet.model.config.max_positions if longest is None else longest
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < longest]
    # a stop has at most as many tokens as bytes, and may begin and end inside of them
    tail = max((len(stop.encode()) for stop in stops), default=1)

    def ended(row: int, said: list[int]) -> bool:
        before = [*prompts[fitting[row]], *said[:-tail]]
        ending = tokenizer.continuation(before, said[-tail:])
        full = len(said) >= longest - len(prompts[fitting[row]])
        return full or any(stop in ending for stop in stops)

    rows = [prompts[i] for i in fitting]
    numbers = fitting if numbers is None else [numbers[i] for i in fitting]
    results = Stream(quiet, rows, decoding, seed, ended, numbers, reading).finish()
    written: list[Written | None] = [None] * len(prompts)
    for i, result in zip(fitting, results, strict=True):
        text = tokenizer.continuation(prompts[i], result.text_ids)
        whole = result.reason == "eos" or any(stop in text for stop in stops)
        written[i] = Written(text, result.tokens, whole)
    return written
